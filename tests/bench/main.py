"""Runs the benchmarks; tests/bench.sh is the way to call it.

Exit status: 0 done (whether bars hold or not), 1 a contender failed, 2 bad arguments.
"""

import argparse
import json
import os
import re
import sys
import tempfile

import contest
import gpu_metrics
import gpu_service_metrics
import kernel_metrics
import report
import run_data
import servers
import service_metrics
from contest import say


PROGRAMS = ("sketchkv_bench", "sketchkv_bench_service", "sketchkv_bench_bare", "sketchkvd")
GPU_PROGRAM = "sketchkv_bench_gpu"


class Run:
    """How thorough a run is, and its processes."""

    def __init__(self, arguments, scratch):
        self.quick = arguments.quick
        self.rounds = 3 if arguments.quick else 11
        self._common = {"data": scratch, "min_ms": 1 if arguments.quick else 15}
        self._processes = []  # closed with the run

    def run(self, entries, rounds=None):
        for entry in entries:
            entry.options = {**entry.options, **self._common}
        return contest.run(entries, rounds or self.rounds)

    def close(self):
        for process in self._processes:
            process.close()


class Bench(Run):
    """A run on the CPU."""

    def __init__(self, arguments, scratch):
        super().__init__(arguments, scratch)
        cpus = sorted(os.sched_getaffinity(0))
        environment = {**os.environ, **{name: "1" for name in (
            "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}}
        pin = ["taskset", "-c", str(cpus[-1])]
        folder = os.path.dirname(os.path.abspath(__file__))
        program = os.path.join(arguments.build, "bin", "sketchkv_bench")
        # The last CPU: interrupts and everything else prefer the first.
        self.core = contest.Process(pin + [program], environment)
        self.torch = contest.Process(
            pin + ["/usr/bin/python3", os.path.join(folder, "torch_contenders.py")], environment)
        self.faiss = contest.Process(
            pin + [venv_python(arguments.build), os.path.join(folder, "faiss_contenders.py")],
            environment)
        # Free to use all of them.
        self.cpus = len(cpus)
        threads = {**environment, "OMP_NUM_THREADS": str(len(cpus)),
                   "OPENBLAS_NUM_THREADS": str(len(cpus))}
        self.all_cores = contest.Process([program], threads)
        self.torch_all_cores = contest.Process(
            ["/usr/bin/python3", os.path.join(folder, "torch_contenders.py")], threads)
        self.service = contest.Process([program + "_service"], threads)
        self.servers = servers.Servers(os.path.join(arguments.build, "bin"), scratch)
        self._processes = [self.core, self.torch, self.faiss, self.all_cores,
                           self.torch_all_cores, self.service, self.servers]

    def isas(self):
        """Levels of this CPU, the server's choice first."""
        word, rest = self.core.ask("isas")
        if word != "ok":
            raise contest.Failed(rest)
        return rest.split()


class GpuBench(Run):
    """A run on a GPU."""

    def __init__(self, arguments, scratch):
        super().__init__(arguments, scratch)
        folder = os.path.dirname(os.path.abspath(__file__))
        binaries = arguments.binaries or os.path.join(arguments.build, "bin")
        program = os.path.join(binaries, GPU_PROGRAM)
        self.gpu = contest.Process([program, "serve"], os.environ)
        if not os.access(program, os.X_OK):
            self.gpu = contest.AbsentProcess("needs a GPU: built without CUDA")
        self.torch = contest.Process(
            [sys.executable, os.path.join(folder, "gpu_torch_contenders.py")], os.environ)
        self.official = contest.AbsentProcess("--official-qjl names no checkout")
        if arguments.official_qjl:
            self.official = contest.Process(
                [sys.executable, os.path.join(folder, "official_qjl.py"), arguments.official_qjl],
                os.environ)
        self.service = contest.Process([os.path.join(binaries, "sketchkv_bench_service")],
                                       os.environ)
        self.servers = servers.Servers(binaries, scratch)
        self._processes = [self.gpu, self.torch, self.official, self.service, self.servers]

    def card(self):
        """("ok", its name) or ("absent", why there is none)."""
        answer = self.gpu.ask("card")
        if answer[0] == "error":
            raise contest.Failed(answer[1])
        return answer


def venv_python(build):
    """Of the virtual environment with faiss-cpu; without one, a Python that will not find it."""
    folder = os.path.join(build, "bench-venv")
    if os.path.exists(os.path.join(folder, "ready")):  # written when all is installed
        return os.path.join(folder, "bin", "python3")
    return "/usr/bin/python3"


def _pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {error}") from error


def parse_arguments():
    """Bad arguments end with status 2 and a message."""
    parser = argparse.ArgumentParser(prog="tests/bench.sh", add_help=False)
    parser.add_argument("--json")
    parser.add_argument("--only", type=_pattern)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--binaries")
    parser.add_argument("--official-qjl")
    parser.add_argument("--build", required=True)
    return parser.parse_args()


def metrics_of(bench):
    """(name, function, what it takes) of all metrics of a run."""
    if isinstance(bench, GpuBench):
        card = gpu_metrics.Card(bench)
        return [(name, metric, card) for name, metric in
                {**gpu_metrics.METRICS, **gpu_service_metrics.METRICS}.items()]
    kernels = kernel_metrics.Kernels(bench)
    return [(name, metric, kernels) for name, metric in kernel_metrics.METRICS.items()] + \
        [(name, metric, bench) for name, metric in service_metrics.METRICS.items()]


def measure(metrics, only, write):
    """Every chosen metric in turn; `write` gets its rows as soon as they are there."""
    failures, found = [], []
    for name, metric, context in metrics:
        if only is not None and not only.search(name):
            continue
        say(name)
        try:
            rows = metric(context)
        except contest.Failed as failure:
            failures.append(f"{name}: {failure}")
            continue
        write(rows)
        found += rows
    return found, failures


def main():
    arguments = parse_arguments()

    missing = [] if arguments.gpu else [
        name for name in PROGRAMS
        if not os.access(os.path.join(arguments.build, "bin", name), os.X_OK)]
    if missing:
        sys.exit(f"bench: error: not there: {', '.join(missing)}; build sketchkv_benchmarks")
    load = os.getloadavg()[0]  # what others do here before we begin

    def write(rows, mode="a"):
        for row in rows:
            row.update(quick=arguments.quick, load_before=load)
            if arguments.quick:
                row["holds"] = None
        if arguments.json:
            with open(arguments.json, mode, encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    write([], "w")  # refused now rather than after the measurements
    with tempfile.TemporaryDirectory(prefix="sketchkv-bench-") as scratch:
        run_data.write(scratch)
        bench = (GpuBench if arguments.gpu else Bench)(arguments, scratch)
        try:
            rows, failures = measure(metrics_of(bench), arguments.only, write)
        except contest.Failed as failure:  # the program itself does not run
            rows, failures = [], [str(failure)]
        finally:
            bench.close()
    report.show(rows)
    for failure in failures:
        print(f"bench: error: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
