"""`anytime serve` and LitServe with batching, one after the other under the same requests over HTTP.

    python benchmarks/serving_litserve.py [--loads 0.5 1 2 4] [--requests 2000] [--repeats 3] [--out FILE]

Needs litserve. Both run the packaged model with one thread. LitServe answers with the whole network at contract cost, in
batches of up to 16 that wait at most 2 ms, in a process beside the one that speaks HTTP; `anytime serve` is one process.
Arrivals are Poisson; a load of 1 is one request in the time of a full answer at batch 1, which the server measures at its
start. A deadline is four times that, from the scheduled arrival, and a reply that is not back by then counts as wrong. Client
and servers share the cores, so a reply may need some milliseconds: `--margin` is what `anytime serve` keeps free for that.
Images are test images of CIFAR-10.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch
from serving_http import MODEL, PATIENCE, Served, request

from anytime.data import create_data

BATCH, WAIT = 16, 0.002
RIVAL = f"""
import base64, sys, torch, anytime, litserve
class Api(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.model = anytime.load({MODEL!r}).eval()
    def decode_request(self, request):
        pixels = torch.frombuffer(bytearray(base64.b64decode(request["pixels"])), dtype=torch.uint8)
        return pixels.view(32, 32, 3).permute(2, 0, 1).float().div(255)
    def predict(self, x):
        with torch.inference_mode():
            return self.model.jump(x, self.model.num_steps)[0].argmax(1)
    def encode_response(self, label):
        return {{"label": int(label)}}
if __name__ == "__main__":
    api = Api(max_batch_size={BATCH}, batch_timeout={WAIT})
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=30)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False, num_api_servers=1)
"""


class Rival:
    """LitServe in processes of its own."""

    def __init__(self, folder: Path) -> None:
        script = folder / "litserve_api.py"  # its workers import it again
        script.write_text(RIVAL)
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = sock.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    async def ready(self, body: bytes) -> None:
        """Waits until it answers."""
        for _ in range(600):
            try:
                if (await request(self.port, body, {"Content-Type": "application/json"}, path="/predict"))[0] == 200:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.1)
        raise RuntimeError("LitServe did not start")

    def end(self) -> None:
        """Ends all its processes; it leaves its workers behind if only the first is told to end."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


async def loaded(
    port: int, calls: list[tuple[float, bytes, int]], headers: dict[str, str], path: str, due: float
) -> dict[str, float]:
    """What came of calls (arrival, body, label): shares in time and right, and seconds from the scheduled arrival."""
    start, seconds, good = time.monotonic() + 0.05, list[float](), 0

    async def one(arrival: float, body: bytes, label: int) -> None:
        nonlocal good
        try:
            status, content = await asyncio.wait_for(request(port, body, headers, path=path), PATIENCE)
        except (OSError, TimeoutError):
            status, content = -1, b""
        took = time.monotonic() - start - arrival
        seconds.append(took if status == 200 else float("inf"))
        good += status == 200 and took <= due and json.loads(content)["label"] == label

    tasks = []
    for arrival, body, label in calls:
        await asyncio.sleep(max(start + arrival - time.monotonic(), 0))
        tasks.append(asyncio.create_task(one(arrival, body, label)))
    await asyncio.gather(*tasks)
    ordered = sorted(seconds)
    return {
        "in_time": sum(took <= due for took in seconds) / len(calls),
        "accuracy": good / len(calls),
        "p50_ms": 1e3 * ordered[len(ordered) // 2],
        "p99_ms": 1e3 * ordered[int(0.99 * len(ordered))],
    }


async def compare(options: argparse.Namespace, ours: Served, rival: Rival) -> list[dict[str, Any]]:
    """The medians over the repeats, by load and server, the servers in turn."""
    data = create_data("cifar10")
    data.setup("test")
    images, labels = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    pixels = [image.tobytes() for image in (255 * images).round().byte().permute(0, 2, 3, 1).contiguous().numpy()]
    as_json = [json.dumps({"pixels": base64.b64encode(frame).decode()}).encode() for frame in pixels]
    await rival.ready(as_json[0])
    due = options.deadline * ours.full
    raw = {"Content-Type": "application/octet-stream", "Anytime-Deadline": f"{due:.6f}s"}
    servers = {
        "anytime serve": (ours.port, pixels, raw, f"/v2/models/{MODEL}/predict"),
        "LitServe": (rival.port, as_json, {"Content-Type": "application/json"}, "/predict"),
    }
    rows = []
    for load in options.loads:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for repeat in range(options.repeats):
            for name, (port, bodies, headers, path) in servers.items():
                source, arrival, calls = random.Random(repeat), 0.0, []
                for _ in range(options.requests):
                    arrival += source.expovariate(load / ours.full)
                    n = source.randrange(len(bodies))
                    calls.append((arrival, bodies[n], int(labels[n])))
                runs[name].append(await loaded(port, calls, headers, path, due))
                await asyncio.sleep(1)
        for name, done in runs.items():
            medians = {key: statistics.median(run[key] for run in done) for key in done[0]}
            rows.append({"load": load, "server": name, **medians, "by_repeat": done})
            print(
                f"load {load:3.1f}  {name:13}  in time {medians['in_time']:7.2%}  accuracy {medians['accuracy']:6.2%}  "
                f"p50 {medians['p50_ms']:.1f} ms  p99 {medians['p99_ms']:.1f} ms",
                flush=True,
            )
    return rows


def main() -> None:
    """Prints a line per load and server, and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--deadline", type=float, default=4.0, help="in times of a full answer (default: 4)")
    parser.add_argument("--requests", type=int, default=2000, help="of each run (default: 2000)")
    parser.add_argument("--margin", default="5ms", help="what anytime serve keeps free for the way back (default: 5ms)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each server and load (default: 3)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, rival = Served("--margin", options.margin), Rival(Path(folder))
        try:
            rows = asyncio.run(compare(options, ours, rival))
        finally:
            rival.end()
            ours.end()
    facts = {"model": MODEL, "full_ms": 1e3 * ours.full, "deadline_ms": 1e3 * options.deadline * ours.full}
    how = {"margin": options.margin, "requests": options.requests}
    harness.write(options.out, {"rows": rows, **facts, **how, **harness.environment("cpu")})


if __name__ == "__main__":
    main()
