#!/usr/bin/env python3
"""Triton's perf_analyzer and the load runner under the same loads, in interleaved rounds; and gRPC beside HTTP.

    loadtest/perf-analyzer/compare.py [--rounds N] [--seconds N] SLUICEGATE [-- COMMAND]

SLUICEGATE is the program to measure. COMMAND runs perf_analyzer (default: perf_analyzer); it needs glibc 2.38, so it may be a command such as
`chroot DIR /venv/bin/perf_analyzer`. The load runner has to be built (`make runner`); --no-runner leaves it out.

The model is mlp32: 32 floats in, one out, one row in a request. A closed loop has 8 requests at a time; an open one sends 2,000 a second at equal gaps. The
server runs with its default configuration, without a supervisor. Its CPU time is read from /proc, and divided by the requests that it counted itself
(/v2/models/mlp32/stats). Printed are medians over the rounds, and the lowest and highest throughput. Load generator and server share the cores.
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = "mlp32"
CLOSED = ["--concurrency-range", "8"]
OPEN = ["--request-rate-range", "2000"]
JSON = ["--input-tensor-format", "json", "--output-tensor-format", "json"]
BINARY = ["--input-tensor-format", "binary", "--output-tensor-format", "binary"]
# The first four have the names of the scenario's phases.
LOADS = {
    "http json, closed": ["-i", "http", *CLOSED, *JSON],
    "http binary, closed": ["-i", "http", *CLOSED, *BINARY],
    "http json, open": ["-i", "http", *OPEN, *JSON],
    "http binary, open": ["-i", "http", *OPEN, *BINARY],
    "grpc, closed": ["-i", "grpc", *CLOSED],
    "grpc, open": ["-i", "grpc", *OPEN],
    "grpc stream, closed": ["-i", "grpc", *CLOSED, "--streaming"],
}


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    def __init__(self, program, directory):
        self.address = f"127.0.0.1:{free_port()}"
        command = [program, "serve", "--models", "models", "--listen", self.address]
        command += ["--admin-listen", f"127.0.0.1:{free_port()}", "--data-dir", f"{directory}/data"]
        log = open(f"{directory}/log", "w")
        environment = {**os.environ, "SLUICEGATE__SERVER__SUPERVISE": "false"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://{self.address}/v2/health/ready", timeout=5)
                return
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"the server is not ready: {error}\n{Path(directory, 'log').read_text()[-2000:]}")
                time.sleep(0.1)

    def cpu_seconds(self):
        # The name of a process may contain spaces.
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def answered(self):
        stats = json.load(urllib.request.urlopen(f"http://{self.address}/v2/models/{MODEL}/stats", timeout=5))
        return sum(version["inference_stats"]["success"]["count"] for version in stats["model_stats"])

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def perf_analyzer(command, server, load, seconds):
    """Throughput per second, p50 and p99 in microseconds, and the server's CPU microseconds for a request."""
    # Three windows, whatever they show: rounds are interleaved instead.
    window = str(max(1000, int(seconds * 1000 / 3)))
    arguments = ["-m", MODEL, "-u", server.address, "-b", "1", "--measurement-interval", window, "-s", "999", "--max-trials", "3"]
    cpu, answered = server.cpu_seconds(), server.answered()
    ran = subprocess.run([*command, *arguments, *LOADS[load]], capture_output=True, text=True, timeout=600)
    cpu, answered = server.cpu_seconds() - cpu, server.answered() - answered
    text = ran.stdout + ran.stderr
    throughput = re.search(r"Throughput: ([0-9.]+) infer/sec", text)
    latency = {p: re.search(rf"{p} latency: ([0-9.]+) usec", text) for p in ("p50", "p99")}
    if ran.returncode or not throughput or not all(latency.values()):
        sys.exit(f"perf_analyzer, {load}: exit code {ran.returncode}\n{text[-3000:]}")
    return float(throughput[1]), float(latency["p50"][1]), float(latency["p99"][1]), cpu / answered * 1e6


def runner(program, seconds, directory):
    """The same figures of the load runner, by load."""
    command = [str(ROOT / "loadtest/runner/target/release/sluicegate-loadtest"), "run", "loadtest/perf-analyzer"]
    command += ["--sluicegate", program, "--root", str(ROOT), "--out", directory, "--rounds", "1", "--seconds", str(seconds * 4)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if ran.returncode:
        sys.exit(f"the load runner: exit code {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    phases = json.loads(Path(directory, "perf-analyzer.json").read_text())["phases"]
    of = lambda figures: (figures["throughput"], figures["whole"]["p50_us"], figures["whole"]["p99_us"], figures["cpu_us"])
    return {phase["name"]: of(phase["figures"]) for phase in phases}


def main():
    arguments = sys.argv[1:]
    command = ["perf_analyzer"]
    if "--" in arguments:
        at = arguments.index("--")
        arguments, command = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sluicegate", type=os.path.abspath)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each load in each round, at least 3")
    parser.add_argument("--no-runner", action="store_true")
    options = parser.parse_args(arguments)
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        server = Server(options.sluicegate, directory)
        try:
            for _ in range(options.rounds):
                for load in LOADS:
                    figures = perf_analyzer(command, server, load, options.seconds)
                    results.setdefault((load, "perf_analyzer"), []).append(figures)
                if not options.no_runner:
                    for load, figures in runner(options.sluicegate, options.seconds, directory).items():
                        results.setdefault((load, "load runner"), []).append(figures)
        finally:
            server.stop()
    print(f"{options.rounds} rounds of {options.seconds:g} s for each load, {os.cpu_count()} cores shared by load generator and server")
    print(f"{'load':<22}{'generator':<15}{'requests/s':>11}{'(rounds)':>18}{'p50 us':>9}{'p99 us':>9}{'server CPU us':>15}")
    for load in LOADS:
        for generator in ("perf_analyzer", "load runner"):
            if rounds := results.get((load, generator)):
                throughput, p50, p99, cpu = (statistics.median(column) for column in zip(*rounds))
                spread = f"({min(r[0] for r in rounds):.0f} to {max(r[0] for r in rounds):.0f})"
                print(f"{load:<22}{generator:<15}{throughput:>11.0f}{spread:>18}{p50:>9.0f}{p99:>9.0f}{cpu:>15.1f}")


main()
