"""The servers of a run: our own, a bare gRPC one, Redis. All on loopback, all free to use all cores."""

import os
import shutil
import socket
import subprocess
import time

import contest

START_SECONDS = 30


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Servers:
    """Each is started when its address is first asked for."""

    def __init__(self, folder, scratch):
        """`folder`: of the programs."""
        self._bin, self._scratch = folder, scratch
        self._processes, self._addresses = [], {}

    def _start(self, name, argv, ready):
        """Returns what `ready` returns once it returns something."""
        with open(os.path.join(self._scratch, name + ".log"), "w", encoding="utf-8") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes.append(process)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and process.poll() is None:
            found = ready()
            if found:
                return found
            time.sleep(0.02)
        raise contest.Failed(f"{name} does not serve (status {process.poll()})")

    def _with_port_file(self, name, argv):
        path = os.path.join(self._scratch, name + ".port")

        def ready():
            if not os.path.exists(path):
                return None
            with open(path, encoding="utf-8") as file:
                return "127.0.0.1:" + file.read().strip()

        return self._start(name, [part.format(port_file=path) for part in argv], ready)

    def _once(self, name, start):
        if name not in self._addresses:
            self._addresses[name] = start()
        return self._addresses[name]

    def sketchkvd(self):
        return self._sketchkvd("sketchkvd", [
            "--host-bytes", "2GiB", "--gpu", "none", "--shm-socket",
            os.path.join(self._scratch, "shm.sock")])

    def sketchkvd_on_gpu(self):
        return self._sketchkvd("sketchkvd_on_gpu", [
            "--host-bytes", "8GiB", "--gpu", "0", "--gpu-bytes", "8GiB"])

    def _sketchkvd(self, name, options):
        return self._once(name, lambda: self._with_port_file(name, [
            os.path.join(self._bin, "sketchkvd"), "--listen", "127.0.0.1:0", "--port-file",
            "{port_file}", "--log-level", "warn", *options]))

    def bare(self):
        return self._once("bare", lambda: self._with_port_file("bare", [
            os.path.join(self._bin, "sketchkv_bench_bare"), "{port_file}"]))

    def redis(self):
        """(path of its Unix socket, TCP port); two empty texts where Redis is not installed."""
        return self._once("redis", self._start_redis)

    def _start_redis(self):
        program = shutil.which("redis-server")
        if program is None:
            return "", ""
        path, port = os.path.join(self._scratch, "redis.sock"), str(_free_port())
        self._start("redis", [program, "--save", "", "--appendonly", "no", "--port", port,
                              "--bind", "127.0.0.1", "--unixsocket", path, "--dir",
                              self._scratch], lambda: os.path.exists(path))
        return path, port

    def close(self):
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
