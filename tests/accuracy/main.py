"""Runs the accuracy instrument; tests/accuracy.sh is the way to call it.

Exit status: 0 done, 1 a cross-check or a measurement failed (with --check: or a bar), 2 bad
arguments.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import tempfile

import bars
import block_sizes
import crosscheck
import lm
import lm_data
import needles
import parallel
import plots
import report
import synthetic
import tiny_lm
from ours import Executables


@dataclasses.dataclass
class Context:
    """What every section needs."""

    ours: Executables
    scratch: str  # folder for files of this run
    quick: bool
    only: object  # compiled pattern or None
    jobs: int
    failures: list = dataclasses.field(default_factory=list)

    def chosen(self, section, codecs):
        """Those of `codecs` that --only lets through: it is searched in "section/codec"."""
        if self.only is None:
            return codecs
        return [codec for codec in codecs if self.only.search(f"{section}/{codec.name}")]

    def require(self, results):
        """Ends the run when data could not be made."""
        for result in results:
            if isinstance(result, parallel.Failure):
                raise RuntimeError(result.error)

    def gather(self, results):
        """Joins lists of rows; failures are kept for the end."""
        rows = []
        for result in results:
            if isinstance(result, parallel.Failure):
                self.failures.append(result.error)
            else:
                rows += result
        return rows


def _pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {error}") from error


def parse_arguments():
    """Bad arguments end with status 2 and a message."""
    parser = argparse.ArgumentParser(prog="tests/accuracy.sh", add_help=False)
    parser.add_argument("--json")
    parser.add_argument("--plots")
    parser.add_argument("--only", type=_pattern)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--build", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    return parser.parse_args()


def measure(context, model, write):
    """All sections in turn; `write` gets each one's rows as soon as they are there."""
    rows, synthetic_data = synthetic.run(context)
    write(rows)
    data = lm_data.make_data(context, model)
    for run in (lambda: lm.run(context, data), lambda: needles.run(context),
                lambda: block_sizes.run(context, synthetic_data, data)):
        found = run()
        write(found)
        rows += found
    return rows


def main():
    arguments = parse_arguments()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8"):
            pass  # refused now rather than after the measurements
    model = tiny_lm.TinyLm(arguments.data)
    wrong = tiny_lm.check_reference(model)
    if wrong:
        sys.exit("accuracy: error: the numpy model is off its reference.json:\n  "
                 + "\n  ".join(wrong))
    parallel.say("the numpy model agrees with reference.json")

    def write(rows):
        if arguments.json:
            with open(arguments.json, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    with tempfile.TemporaryDirectory(prefix="sketchkv-accuracy-") as scratch:
        ours = Executables(arguments.build, scratch)
        if ours.missing():
            sys.exit(f"accuracy: error: not there: {', '.join(ours.missing())}")
        context = Context(ours, scratch, arguments.quick, arguments.only, arguments.jobs)
        try:
            rows = measure(context, model, write)
        except RuntimeError as error:  # data that could not be made
            sys.exit(f"accuracy: error: {error}")
    checks = crosscheck.run(rows, arguments.quick)
    verdicts = bars.run(rows)
    write(checks + verdicts)
    rows += checks + verdicts
    report.show(rows)
    if arguments.plots:
        for path in plots.draw(rows, arguments.plots):
            parallel.say(f"drew {path}")
    for failure in context.failures[:20]:
        print(f"accuracy: error: {failure}", file=sys.stderr)
    if len(context.failures) > 20:
        print(f"accuracy: error: and {len(context.failures) - 20} more", file=sys.stderr)
    bad_checks = [row["data"] for row in checks if not row["holds"]]
    if bad_checks:
        print(f"accuracy: error: cross-checks failed: {'; '.join(bad_checks)}", file=sys.stderr)
    bad_bars = [row["data"] for row in verdicts if row["holds"] is False]
    if arguments.check and bad_bars:
        print(f"accuracy: error: bars failed: {'; '.join(bad_bars)}", file=sys.stderr)
    sys.exit(1 if context.failures or bad_checks or (arguments.check and bad_bars) else 0)


if __name__ == "__main__":
    main()
