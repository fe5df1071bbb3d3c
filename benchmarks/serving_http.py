"""The server over HTTP: CPU time of a request besides the model, and a soak with hostile clients.

    python benchmarks/serving_http.py overhead [--requests 2000] [--out FILE]
    python benchmarks/serving_http.py soak [--seconds 600] [--load 2] [--kill] [--out FILE]

Overhead: raw pixels over a connection that is kept alive. `loop_ms` is the CPU time of the thread that reads and answers
requests; `other_ms` that of the others, which run the model and the scheduler.

Soak: open-loop Poisson arrivals. Each image is of one colour, and any answer that the network gives to it by itself is right;
the answer to another image would show. Some clients disconnect, some send broken bodies, and with --kill the thread that
computes dies every 5 seconds. The command fails unless every request has a reply, all are accounted for in the metrics, no
answer is that to another image, and the memory stays flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import torch

import anytime

MODEL = "anytimenet_cifar10"
PATH = f"/v2/models/{MODEL}/predict"
COLOURS = [(r, g, b) for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)]
PATIENCE = 30  # seconds for a reply
GROWTH = 0.05  # of the memory, from the second quarter of a soak to its last
KILLING = """
import asyncio, ctypes, random, sys, threading, anytime.commands.serve as serve
from anytime.server import launch
def kill():  # raises an error in the thread that computes, between two of its instructions
    for thread in threading.enumerate():
        if thread.name == "anytime-worker" and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(MemoryError))
    threading.Timer(5, kill).start()
timer = threading.Timer(5, kill); timer.daemon = True
if "--kill" in sys.argv:
    timer.start()
serve.run([word for word in sys.argv[1:] if word != "--kill"])
"""


class Served:
    """A server in a process of its own."""

    def __init__(self, *options: str) -> None:
        words = [sys.executable, "-c", KILLING, MODEL, "--port", "0", "--threads", "1", *options]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(line.split("/v2/")[0].rpartition(":")[2])
        self.full = float(line.partition("full answer ")[2].split()[0]) / 1e3

    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far of the first thread, which runs the event loop, and of all threads."""
        folder = Path(f"/proc/{self.process.pid}/task")  # nanoseconds; the ticks of `stat` are 10 ms, and samples
        spent = {thread.name: int((thread / "schedstat").read_text().split()[0]) / 1e9 for thread in folder.iterdir()}
        return spent[str(self.process.pid)], sum(spent.values())

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> int:
        """The exit code after SIGTERM; -9 if the server does not end within a minute."""
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


async def request(
    port: int, body: bytes, headers: dict[str, str], leave: float | None = None, path: str = PATH, method: str = "POST"
) -> tuple[int, bytes]:
    """The status and body of a reply; with `leave` the client disconnects after so many seconds (status 0)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        lines = "".join(f"{key}: {value}\r\n" for key, value in ({"Content-Length": str(len(body))} | headers).items())
        writer.write((head + lines + "\r\n").encode() + body)
        await writer.drain()
        if leave is not None:
            await asyncio.sleep(leave)
            return 0, b""
        reply = await reader.read()
        start, _, content = reply.partition(b"\r\n\r\n")
        return (int(start.split()[1]) if start else -1), content
    finally:
        writer.close()


async def metric(port: int) -> dict[str, float]:
    """All samples of `/metrics`, histograms left out."""
    _, text = await request(port, b"", {}, path="/metrics", method="GET")
    lines = [line.rpartition(" ") for line in text.decode().splitlines() if line and line[0] != "#" and "_bucket" not in line]
    return {name: float(value) for name, _, value in lines}


async def overhead(served: Served, requests: int) -> dict[str, float]:
    """CPU milliseconds of a request, by thread."""
    body, headers = bytes(32 * 32 * 3), "Content-Type: application/octet-stream\r\nContent-Length: 3072\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)

    async def some(count: int) -> None:
        for _ in range(count):
            writer.write(f"POST {PATH} HTTP/1.1\r\nHost: a\r\n{headers}\r\n".encode() + body)
            start = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[16:]) for line in start.lower().splitlines() if line.startswith(b"content-length: "))
            await reader.readexactly(length)

    await some(50)
    before = served.cpu()
    await some(requests)
    loop, everything = (after - earlier for after, earlier in zip(served.cpu(), before, strict=True))
    writer.close()
    return {"loop_ms": 1e3 * loop / requests, "other_ms": 1e3 * (everything - loop) / requests, "requests": requests}


async def soak(served: Served, seconds: float, load: float) -> dict[str, Any]:
    """What came of all requests, and the memory over time."""
    model, source = anytime.load(MODEL).eval(), random.Random(0)
    frames = [bytes(colour) * 1024 for colour in COLOURS]
    with torch.inference_mode():
        x = torch.tensor(COLOURS, dtype=torch.float32)[:, :, None, None].expand(-1, -1, 32, 32) / 255
        expected = [{int(row[n].argmax()) for row in model(x)} for n in range(len(COLOURS))]
    outcomes: dict[str, int] = {}
    raw, memory = {"Content-Type": "application/octet-stream"}, []

    async def one(kind: str) -> None:
        n = source.randrange(len(COLOURS))
        deadline = {"Anytime-Deadline": f"{source.choice([1.5, 4, 12]) * served.full:.6f}s"}
        try:
            if kind == "broken":
                call = request(served.port, frames[n][: source.randrange(3000)], {**raw, "Content-Length": "3072"}, 0.01)
            elif kind == "wrong":
                call = request(served.port, os.urandom(100), {"Content-Type": "image/jpeg"})
            else:
                call = request(served.port, frames[n], raw | deadline, served.full / 2 if kind == "leaves" else None)
            status, content = await asyncio.wait_for(call, PATIENCE)
            if kind == "plain" and status == 200 and json.loads(content)["label"] not in expected[n]:
                status = -2  # the answer to another image
        except (OSError, TimeoutError):
            status = -1
        key = f"{kind} {status}"
        outcomes[key] = outcomes.get(key, 0) + 1

    tasks, end = set[asyncio.Task[None]](), time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(source.expovariate(load / served.full))
        kind = source.choices(["plain", "leaves", "broken", "wrong"], [90, 4, 3, 3])[0]
        task = asyncio.create_task(one(kind))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if source.random() < 0.01:
            memory.append(served.memory())
    await asyncio.gather(*tasks)
    await asyncio.sleep(1)  # those who left are noticed
    values = await metric(served.port)
    counted = {
        key.split('outcome="')[1][:-2]: value for key, value in values.items() if key.startswith("anytime_requests_total")
    }
    quarter = max(len(memory) // 4, 1)
    return {
        "outcomes": dict(sorted(outcomes.items())), "counted": counted, "live": values[f'anytime_live{{model="{MODEL}"}}'],
        "restarts": values[f'anytime_worker_restarts_total{{model="{MODEL}"}}'], "sent": sum(outcomes.values()),
        "memory_start": statistics.median(memory[quarter : 2 * quarter]), "memory_end": statistics.median(memory[-quarter:]),
    }  # fmt: skip


def faults(results: dict[str, Any], code: int) -> list[str]:
    """What a soak must not show, as sentences."""
    found = [f"{count} requests ended as {kind!r}" for kind, count in results["outcomes"].items() if " -" in kind]
    if (counted := sum(results["counted"].values())) != results["sent"]:
        found.append(f"{results['sent']} requests were sent, the metrics count {counted:.0f}")
    if results["live"]:
        found.append(f"{results['live']:.0f} requests are still live")
    if results["memory_end"] > (1 + GROWTH) * results["memory_start"]:
        found.append(f"the memory has grown from {results['memory_start']:,} to {results['memory_end']:,} bytes")
    return found + [f"the server ended with exit code {code}"] * (code != 0)


def main() -> None:
    """Prints the numbers and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "soak"])
    parser.add_argument("--requests", type=int, default=2000, help="overhead: requests (default: 2000)")
    parser.add_argument("--seconds", type=float, default=600, help="soak: how long (default: 600)")
    parser.add_argument("--kill", action="store_true", help="soak: kill the thread that computes from time to time")
    parser.add_argument("--load", type=float, default=2.0, help="soak: full answers in the time of one (default: 2)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    served = Served(*(["--kill"] if options.kill else []))
    try:
        if options.what == "overhead":
            results: dict[str, Any] = asyncio.run(overhead(served, options.requests))
        else:
            results = asyncio.run(soak(served, options.seconds, options.load))
    finally:
        code = served.end()
    found = faults(results, code) if options.what == "soak" else []
    print(json.dumps(results, indent=1), *found, sep="\n")
    harness.write(options.out, {**results, "exit_code": code, **harness.environment("cpu")})
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
