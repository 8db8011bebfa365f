"""Runs independent measurements in forked workers, so that they see the data without copies."""

import multiprocessing
import sys
import time
import traceback

_START = time.monotonic()
_job = None  # (work, items), set before the fork: only an index and a result cross to a worker


def say(text):
    """A progress line on stderr."""
    print(f"[{time.monotonic() - _START:4.0f} s] {text}", file=sys.stderr, flush=True)


class Failure:
    """A measurement that raised: the rest goes on, the run ends with status 1."""

    def __init__(self, error):
        self.error = error  # one line


def _call(index):
    work, items = _job
    try:
        return index, work(items[index])
    except Exception as error:  # pylint: disable=broad-except
        if not isinstance(error, RuntimeError):  # those explain themselves
            traceback.print_exc()
        return index, Failure(f"{error}" or type(error).__name__)


def run(work, items, jobs, label):
    """[work(item) for item in items] in `jobs` processes; a Failure where one raised."""
    global _job  # pylint: disable=global-statement
    _job = (work, items)
    results = [None] * len(items)
    if not items:
        return results
    shown = time.monotonic()
    with multiprocessing.get_context("fork").Pool(max(1, min(jobs, len(items)))) as pool:
        for done, (index, result) in enumerate(pool.imap_unordered(_call, range(len(items))), 1):
            results[index] = result
            if time.monotonic() - shown > 20:
                shown = time.monotonic()
                say(f"{label}: {done} of {len(items)}")
    return results
