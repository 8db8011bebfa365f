"""Contenders in processes of their own, measured side by side.

A process reads `prepare`, `run` and `drop` lines (tests/bench/contender.h says which) and answers
each with one line. Contenders of one contest take turns, one repetition each a round, so that what
else happens on the machine hits all of them alike; medians are compared.
"""

import dataclasses
import statistics
import subprocess
import sys
import time

_START = time.monotonic()


def say(text):
    """A line of progress on stderr."""
    print(f"[{time.monotonic() - _START:4.0f} s] {text}", file=sys.stderr, flush=True)


class Process:
    """One program that serves contenders; started when it is first asked, by `argv`."""

    def __init__(self, argv, environment):
        self._argv, self._environment, self._process = argv, environment, None
        self.broken = None  # why it is of no use

    def ask(self, line):
        """Returns (first word, rest) of the answer; "error" and a reason when it is gone."""
        if self.broken:
            return "error", self.broken
        if self._process is None:
            self._process = subprocess.Popen(
                self._argv, env=self._environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True)
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.broken = f"{self._argv[-1]} ended with status {self._process.wait()}"
            return "error", self.broken
        word, _, rest = answer.strip().partition(" ")
        return word, rest

    def close(self):
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()


class AbsentProcess:
    """Stands for a program that is not here: so is each of its contenders, for `reason`."""

    def __init__(self, reason):
        self._reason = reason

    def ask(self, line):
        del line
        return "absent", self._reason

    def close(self):
        pass


@dataclasses.dataclass
class Entry:
    """A contender of a contest: what `process` is to prepare under `label`."""

    label: str
    process: Process | AbsentProcess
    name: str
    options: dict


@dataclasses.dataclass
class Result:
    """Of one contender. `times`: nanoseconds a unit of work, one a repetition."""

    label: str
    times: list
    bytes_per_unit: float
    absent: str = ""  # why it was not measured

    @property
    def median(self):
        return statistics.median(self.times)

    @property
    def fastest(self):
        return min(self.times)

    def percentile(self, share):
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Failed(Exception):
    """A contender that should have run did not."""


def run(entries, rounds):
    """Returns the result of each entry by label. A contender that is not here is absent with its
    reason; one that fails raises Failed."""
    results, ready = {}, []
    try:
        for number, entry in enumerate(entries):
            options = " ".join(f"{key}={value}" for key, value in entry.options.items())
            word, rest = entry.process.ask(f"prepare c{number} {entry.name} {options}")
            if word == "ok":
                results[entry.label] = Result(entry.label, [], float(rest))
                ready.append((number, entry))
            elif word == "absent":
                results[entry.label] = Result(entry.label, [], 0.0, rest)
            else:
                raise Failed(f"{entry.label}: {rest}")
        for turn in range(rounds if ready else 0):
            start = turn % len(ready)
            for number, entry in ready[start:] + ready[:start]:
                word, rest = entry.process.ask(f"run c{number}")
                if word != "ok":
                    raise Failed(f"{entry.label}: {rest}")
                nanoseconds, units = map(float, rest.split())
                results[entry.label].times.append(nanoseconds / units)
    finally:
        for number, entry in ready:
            entry.process.ask(f"drop c{number}")
    return results
