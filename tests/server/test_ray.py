"""The application on a Ray cluster of its own, which ends with it."""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

pytest.importorskip("ray.serve", reason="needs the extra ray")
pytest.importorskip("starlette")
pytest.importorskip("httptools")

import anytime
from anytime.server.launch import listen
from anytime.server.ray import ray_app, serve_on_ray
from anytime.server.scheduler import Limits
from anytime.support.cluster import connect

RAW = {"Content-Type": "application/octet-stream"}


def test_what_makes_no_sense_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"policy must be one of greedy, .*, got 'lazy'"):
        ray_app("fast_cifar10", policy="lazy")
    for replicas in (0, (2, 1), (0, 4)):
        with pytest.raises(ValueError, match="replicas must be a number of at least 1"):
            ray_app("fast_cifar10", replicas=replicas)


def test_a_cluster_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    for given in (address, f"ray://{address}"):
        with pytest.raises(ValueError, match=f"the Ray cluster {given} cannot be reached: .*refused"):
            connect(given)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=f"the Ray cluster {address} cannot be reached"):
        connect()


def post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, RAW | headers), timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")  # of Ray
def test_replicas_answer_by_relative_and_absolute_deadlines_and_one_that_is_killed_returns(
    tmp_path: Path, request: Any
) -> None:
    import ray

    torch.manual_seed(0)
    model = anytime.create_model("anytimenet", num_classes=10, width=4).eval()
    model.info.input_size = (3, 32, 32)
    model.save(tmp_path / "run")
    request.addfinalizer(ray.shutdown)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v2/models/small/predict"
    pixels = os.urandom(3072)
    image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, 32, 32, 3).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = model(image)[-1, 0].softmax(0)
    seen, ended = list[str](), Event()

    def client() -> None:
        try:
            for headers in ({"Anytime-Deadline": "5s"}, {"Anytime-Due": f"{time.time() + 5:.6f}"}):
                status, answer = post(url, pixels, headers)
                assert status == 200, answer
                assert answer["step"] == answer["steps"] == model.num_steps
                torch.testing.assert_close(torch.tensor(answer["probabilities"]), expected, atol=1e-4, rtol=0)
            status, answer = post(url, pixels, {"Anytime-Due": f"{time.time() - 1:.6f}"})
            assert status == 504, answer
            assert "no answer within 0 ms" in answer["error"]
            seen.append("answered")
            kill_a_replica()
            until = time.monotonic() + 60
            while post(url, pixels, {"Anytime-Deadline": "5s"})[0] != 200:
                assert time.monotonic() < until
                time.sleep(0.2)
            seen.append("returned")
        finally:
            ended.set()

    def kill_a_replica() -> None:
        actors = ray.util.list_named_actors(all_namespaces=True)
        name = next(actor["name"] for actor in actors if actor["name"].startswith("SERVE_REPLICA::"))
        ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)

    serve_on_ray(ray_app({"small": tmp_path / "run"}, limits=Limits(max_batch=2)), "127.0.0.1", port, 1, ended, client)
    assert seen == ["answered", "returned"]
    assert not ray.is_initialized()
