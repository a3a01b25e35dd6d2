#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load and faults on a simulated server: streams, overload, clients that leave, dawdle or lie, SIGTERM.

usage: soak.py QUATRAIN MODEL [--long] [--only NAME,…] [--strict]

Without --long each part takes a few seconds and only what must hold on any machine is checked: nothing lost,
nothing leaked, bounds kept. --long has the full counts, which take about ten minutes. --strict also checks
times, which needs two cores to itself. Everything stays on 127.0.0.1.
"""
import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request

COUNTS = {  # name: (short, full)
    "streams": (300, 8000), "gets": (5000, 200_000), "overload_seconds": (4, 120), "disconnects": (300, 10_000),
    "slow_headers": (60, 2000), "slow_bodies": (60, 2000), "slow_readers": (30, 1000), "drains": (3, 100)}


class Failure(Exception):
    pass


class Run:
    """Flags, and what was seen."""

    def __init__(self, flags):
        self.flags = flags
        self.faults = []

    def count(self, name):
        return COUNTS[name][1 if self.flags.long else 0]

    def check(self, holds, text):
        print(f"  {'ok' if holds else 'FAULT'}: {text}", flush=True)
        if not holds:
            self.faults.append(text)

    def check_time(self, holds, text):
        """Of a figure that other work on the machine spoils."""
        if self.flags.strict:
            self.check(holds, text)
        else:
            print(f"  {'as wanted' if holds else 'more than wanted'}: {text}", flush=True)

    def bench(self, server, *args):
        result = subprocess.run([self.flags.quatrain, "bench", "serve", "--base-url", server.url, "-o", "json",
                                 *map(str, args)], capture_output=True, text=True)
        if result.returncode != 0:
            raise Failure(result.stderr)
        return json.loads(result.stdout)


class Server:
    def __init__(self, run, *flags):
        self.process = subprocess.Popen(
            [run.flags.quatrain, "serve", run.flags.model, "--port", "0", *map(str, flags)],
            stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.search(r"serving at (http://127\.0\.0\.1:(\d+))", line)
            if found:
                self.url, self.port = found.group(1), int(found.group(2))
                return
        raise Failure("the server did not start")

    def load(self):
        with urllib.request.urlopen(self.url + "/load", timeout=30) as reply:
            return json.load(reply)

    def memory_mb(self, key="VmRSS"):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            return int(re.search(key + r":\s+(\d+)", file.read()).group(1)) / 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def settled(self, seconds=30):
        """Waits until nothing runs; what is left."""
        end = time.monotonic() + seconds
        while True:
            load = self.load()
            if load["running"] + load["waiting"] == 0 or time.monotonic() > end:
                return load
            time.sleep(0.05)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        rest = self.process.stderr.read()
        self.process.stderr.close()
        return self.process.wait(timeout=60), rest


def request(path, body=None, fields=""):
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode()
    text = json.dumps(body)
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\n{fields}\r\n{text}").encode()


STREAM = request("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 2000, "stream": True})


def streams(run):
    """Many streams at two tokens a second each, then plain requests."""
    count = run.count("streams")
    server = Server(run, "--simulate", 2, "--max-num-seqs", 16384, "--max-num-queued-reqs", 16384)
    report = run.bench(server, "-n", count, "--request-rate", max(100, count / 8), "--input-len", 16,
                       "--output-len", 30 if run.flags.long else 6, "--token-interval", 0.5)
    peak = server.memory_mb("VmHWM")
    run.check(report["completed"] == count, f"{report['completed']} of {count} streams complete")
    run.check(peak <= 100, f"{peak:.0f} MB server memory at most")
    run.check_time(report["p99_first_byte_ms"] <= 20, f"first byte p99 {report['p99_first_byte_ms']:.2f} ms")
    run.check_time(report["p99_lag_ms"] <= 5, f"lag p99 {report['p99_lag_ms']:.2f} ms")
    gets = run.count("gets")
    report = run.bench(server, "-n", gets, "--endpoint", "models", "--max-concurrency", 64)
    run.check(report["completed"] == gets, f"{report['completed']} of {gets} GET /v1/models answered")
    rate = report["request_throughput"]
    run.check_time(rate >= 20_000, f"{rate:.0f} GET /v1/models a second")
    code, _ = server.stop()
    run.check(code == 0, f"exit status {code}")


def overload(run):
    """Ten times as many requests as the server can answer."""
    seconds = run.count("overload_seconds")
    server = Server(run, "--simulate", 100, "--max-num-seqs", 32, "--max-num-queued-reqs", 64)
    common = ["--input-len", 16, "--output-len", 32]
    peak = run.bench(server, *common, "--max-concurrency", 64, "--duration", max(4, seconds / 8), "-n", 10**6)
    peak_rate = peak["request_throughput"]
    before = server.memory_mb()
    report = run.bench(server, *common, "--request-rate", 10 * peak_rate, "--duration", seconds, "-n", 10**6)
    after = server.memory_mb()
    share = 100 * report["request_throughput"] / peak_rate
    run.check_time(share >= 95, f"goodput {share:.1f} % of the peak of {peak_rate:.1f} requests/s")
    run.check_time(report["p99_refusal_ms"] <= 10,
                   f"{report['refused']} refusals, p99 {report['p99_refusal_ms']:.2f} ms")
    run.check(set(report["status"]) <= {"200", "503"}, f"statuses {report['status']}")
    run.check(report["failed"] == 0, f"{report['failed']} requests failed")
    run.check(after <= before + 12, f"memory {before:.1f} MB before, {after:.1f} MB after")
    server.settled()
    server.stop()


async def leave(server, rng):
    """One client that goes at some moment: before, in the middle of, or after its request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    kind = rng.random()
    data = STREAM if kind < 0.7 else request("/v1/completions", {"prompt": "a", "max_tokens": 2000})
    writer.write(data if kind > 0.2 else data[:rng.randrange(len(data))])
    try:
        await writer.drain()
        if rng.random() < 0.6:
            await asyncio.wait_for(reader.read(rng.randrange(1, 4000)), rng.random() * 0.2)
    except (asyncio.TimeoutError, ConnectionError):
        pass
    if rng.random() < 0.3:
        writer.transport.abort()  # a reset
    else:
        writer.close()


def disconnects(run):
    """Clients that leave at random moments leave nothing behind."""
    count = run.count("disconnects")
    server = Server(run, "--simulate", 50, "--max-num-seqs", 256, "--max-num-queued-reqs", 4096)
    before = server.descriptors()
    rng = random.Random(1)

    async def all_of_them():
        for begin in range(0, count, 100):
            await asyncio.gather(*(leave(server, rng) for _ in range(min(100, count - begin))))

    asyncio.run(all_of_them())
    load = server.settled()
    end = time.monotonic() + 10
    while server.descriptors() > before and time.monotonic() < end:
        time.sleep(0.05)
    left = server.descriptors() - before
    run.check(load["kv_blocks_used"] == 0, f"{count} clients left, {load['kv_blocks_used']} KV blocks held")
    run.check(load["running"] + load["waiting"] == 0, "no request goes on")
    run.check(left <= 0, f"{max(0, left)} descriptors held")
    code, _ = server.stop()
    run.check(code == 0, f"exit status {code}")


async def dawdle(server, stop, kind):
    """One slow client of a kind, until it is cut off or the run ends. True if it was cut off."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=4096)
    data = {"header": request("/health", fields="A: b\r\n" * 50), "body": request("/tokenize", {"prompt": "a" * 5000}),
            "reader": STREAM * 3}[kind]
    at = len(data) if kind == "reader" else data.index(b"\r\n\r\n") + 4 if kind == "body" else 1
    try:
        writer.write(data[:at])
        while not stop.is_set():
            await asyncio.sleep(0.5)
            if kind == "reader":
                await reader.read(1)
            else:
                at += 1
                writer.write(data[at - 1:at])
                await writer.drain()
                if reader.at_eof():
                    return True
    except ConnectionError:
        return True
    finally:
        writer.transport.abort()
    return False


def slow(run):
    """Slow headers, bodies and readers do not slow others down, and the first two are cut off."""
    server = Server(run, "--simulate", 20, "--max-num-seqs", 4096, "--header-timeout", 4, "--body-timeout", 4,
                    "--min-body-rate", 1000)
    load = ["-n", 10**6, "--duration", 20 if run.flags.long else 3, "--request-rate", 50, "--input-len", 16,
            "--output-len", 10, "--token-interval", 0.05]
    alone = run.bench(server, *load)

    async def crowd():
        stop = asyncio.Event()
        kinds = [kind for kind in ("header", "body", "reader") for _ in range(run.count(
            {"header": "slow_headers", "body": "slow_bodies", "reader": "slow_readers"}[kind]))]
        clients = [asyncio.create_task(dawdle(server, stop, kind)) for kind in kinds]
        await asyncio.sleep(1)
        report = await asyncio.to_thread(run.bench, server, *load)
        await asyncio.sleep(5)
        stop.set()
        cut_off = await asyncio.gather(*clients, return_exceptions=True)
        return kinds, report, cut_off

    kinds, beside, cut_off = asyncio.run(crowd())
    slow_senders = [was for kind, was in zip(kinds, cut_off) if kind != "reader"]
    run.check(all(was is True for was in slow_senders),
              f"{slow_senders.count(True)} of {len(slow_senders)} slow senders were cut off")
    run.check(beside["failed"] == 0 and beside["refused"] == 0, f"{beside['completed']} other requests complete")
    more = 100 * (beside["p99_e2el_ms"] / alone["p99_e2el_ms"] - 1)
    run.check_time(more <= 10, f"p99 of others {alone['p99_e2el_ms']:.1f} ms alone, {beside['p99_e2el_ms']:.1f} ms "
                   f"beside {len(kinds)} slow clients: {more:+.1f} %")
    left = server.settled()
    run.check(left["kv_blocks_used"] == 0, f"{left['kv_blocks_used']} KV blocks held at the end")
    server.stop()


def drains(run):
    """SIGTERM under load: every answer that was begun comes whole, and the exit status says so."""
    lost = 0
    count = run.count("drains")
    for round_number in range(count):
        server = Server(run, "--simulate", 200, "--max-num-seqs", 64)
        # Chats stream fast and take a fifth of a second; SIGTERM comes while they run.
        loader = subprocess.Popen([run.flags.quatrain, "bench", "serve", "--base-url", server.url, "-o", "json",
                                   "-n", "4000", "--duration", "3", "--max-concurrency", "48", "--input-len", "8",
                                   "--output-len", "40", "--timeout", "20"], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, text=True)
        while server.load()["running"] < 20 and loader.poll() is None:
            time.sleep(0.005)
        time.sleep(random.Random(round_number).random() * 0.2)
        code, rest = server.stop()
        report = json.loads(loader.communicate()[0])
        # What was answered was answered whole or refused; a connection after the end finds no server.
        cut = report["failed"] - report["status"].get("0", 0)
        if code != 0 or cut != 0 or "every request was finished" not in rest or report["completed"] < 20:
            lost += 1
            print(f"  round {round_number}: exit {code}, {cut} cut off, {report['status']}: {rest.strip()}")
    run.check(lost == 0, f"{count} drains under load, {lost} lost an answer")


PARTS = {part.__name__: part for part in (streams, overload, disconnects, slow, drains)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("quatrain")
    parser.add_argument("model")
    parser.add_argument("--long", action="store_true", help="the full counts")
    parser.add_argument("--strict", action="store_true", help="times count too")
    parser.add_argument("--only", help=f"parts with commas between: {', '.join(PARTS)}")
    flags = parser.parse_args()
    names = flags.only.split(",") if flags.only else list(PARTS)
    if not set(names) <= set(PARTS):
        parser.error(f"--only knows {', '.join(PARTS)}")
    run = Run(flags)
    for name in names:
        begin = time.monotonic()
        print(f"{name}: {PARTS[name].__doc__.splitlines()[0]}", flush=True)
        try:
            PARTS[name](run)
        except (Failure, OSError) as error:
            run.check(False, f"{name}: {error}")
        print(f"  {time.monotonic() - begin:.1f} s, load average {os.getloadavg()[0]:.1f}", flush=True)
    if run.faults:
        sys.exit(f"{len(run.faults)} faults")


if __name__ == "__main__":
    main()
