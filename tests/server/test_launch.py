"""A real server on a port: clients of the protocol, the command's own client, and its end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httptools")
pytest.importorskip("prometheus_client")

import anytime
from anytime.cli import main
from anytime.server import client
from anytime.server.launch import Runner, application, listen, make_worker, names
from anytime.server.scheduler import Limits

RAW = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def served(worker: Any) -> Iterator[tuple[str, Runner]]:
    """The address of a server, and what runs it."""
    sock = listen("127.0.0.1", 0)
    runner = Runner(application({"toy": worker}), drain=0.2)
    thread = threading.Thread(target=lambda: asyncio.run(runner.serve([sock])))
    thread.start()
    while not runner.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}", runner
    finally:
        runner.handle_exit(signal.SIGTERM, None)
        thread.join(10)
    assert not thread.is_alive()


def post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_clients_of_the_protocol(served: tuple[str, Runner]) -> None:
    triton = pytest.importorskip("tritonclient.http")
    x = np.array([0.15, 0.85], np.float32).repeat(48).reshape(2, 3, 4, 4)
    with triton.InferenceServerClient(served[0].removeprefix("http://")) as asking:
        assert asking.is_server_live()
        assert asking.is_server_ready()
        assert asking.is_model_ready("toy", "1")
        assert asking.get_model_metadata("toy")["inputs"][0]["shape"] == [-1, 3, 4, 4]
        for binary, version in ((True, ""), (False, "1")):
            image = triton.InferInput("image", x.shape, "FP32")
            image.set_data_from_numpy(x, binary_data=binary)
            wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]
            answer = asking.infer("toy", [image], model_version=version, outputs=wanted, timeout=5_000_000, request_id="mine")
            assert answer.as_numpy("label").tolist() == [1, 8]
            assert answer.as_numpy("probabilities").shape == (2, 10)
            assert answer.get_response()["parameters"]["reason"] == "complete"


def test_the_command_asks_a_server(
    served: tuple[str, Runner], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = served
    for name in ("a.png", "b.jpg", "c.bmp"):
        Image.new("RGB", (9, 7), (115,) * 3).save(tmp_path / name)
        assert main(["predict", "toy", str(tmp_path / name), "--server", url, "--deadline", "2s"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[0].endswith(f"{name} (toy at {url})")
        assert re.search(r"step 3/3 .*180 MACs .* ms  4 \(60 %\)$", shown[-1])
    failing = {
        ("toy", "--deadline", "0"): (1, f"{url}: there was no answer within 0 ms"),
        ("other",): (1, "there is no model of this name here; the models are toy"),
        ("toy", "--stop", "confidence=0.9"): (2, "--stop is decided where the model runs"),
        ("toy", "--top", "3"): (2, "--top is decided where the model runs"),
        ("toy", "--server", "ftp://a"): (2, "a server has an address like http://127.0.0.1:8000, got 'ftp://a'"),
        ("toy", "--server", "http://127.0.0.1:1"): (1, "the server http://127.0.0.1:1 cannot be reached"),
        ("toy", "--deadline", "soon"): (2, "deadline must be a number of seconds"),
    }
    for (model, *more), (code, says) in failing.items():
        assert main(["predict", model, str(tmp_path / "a.png"), "--server", url, *more]) == code
        assert says in capsys.readouterr().err
    monkeypatch.setattr(client, "_IMAGE", 50)
    assert main(["predict", "toy", str(tmp_path / "a.png"), "--server", url]) == 1
    assert "a.png has more than 50 bytes, more than a server takes" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "a.txt").write_text("no image")
    assert main(["predict", "toy", str(tmp_path / "a.txt"), "--server", url]) == 1
    assert "a.txt is damaged" in capsys.readouterr().err


def test_answers_of_other_servers_are_checked() -> None:
    for line in (b"[]", b"{", b'{"step": 1}', b"[" * 10_000):
        with pytest.raises(ValueError, match=r"the answer of http://a|is no server of this version"):
            client._answer(line, "http://a")


def test_live_requests_are_answered_before_the_end(served: tuple[str, Runner], worker: Any, naming: Any) -> None:
    url, runner = served
    naming.gate.clear()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(post, f"{url}/v2/models/toy/predict", bytes([115]) * 48, {**RAW, "Anytime-Deadline": "5s"})
        while worker.live == 0:
            time.sleep(0.001)
        runner.handle_exit(signal.SIGTERM, None)
        assert post(f"{url}/v2/models/toy/predict", bytes(48), RAW)[0] == 503
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5)
        naming.gate.set()
        status, told = answer.result(10)
    assert (status, told["label"], told["step"]) == (200, 4, 3)


def send_on(sock: socket.socket) -> None:
    for _ in range(100):
        sock.sendall(b"a" * 2**14)
        time.sleep(0.001)


def test_a_broken_request_does_not_hurt_the_next(served: tuple[str, Runner]) -> None:
    url, _ = served
    port = int(url.rpartition(":")[2])
    for garbage in (
        b"\x00\xff" * 50 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /" + b"a" * 70_000,
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
        b"POST /v2/models/toy/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v2/models/toy/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.sendall(garbage)
            assert sock.recv(100).startswith(b"HTTP/1.1 4")
    chunked = b"POST /v2/models/toy/predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for start in (b"GET /v2 HTTP/1.1\r\nHost: a\r\nA: ", chunked + b"0\r\nA: ", chunked + b"1;a="):  # what follows never ends
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.sendall(start)
            with pytest.raises(ConnectionError):
                send_on(sock)
    with socket.create_connection(("127.0.0.1", port), 5) as sock:  # a client that leaves in the middle of its body
        sock.sendall(b"POST /v2/models/toy/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 48\r\n\r\nabc")
    assert post(f"{url}/v2/models/toy/predict", bytes([115]) * 48, RAW)[0] == 200


def test_names_of_served_models() -> None:
    assert names(["runs/cats/", "dog=runs/dogs"]) == {"cats": "runs/cats/", "dog": "runs/dogs"}
    with pytest.raises(ValueError, match="two models would be served as 'a'"):
        names(["a", "runs/a"])
    with pytest.raises(ValueError, match="needs a name of letters"):
        names(["a b=runs/a"])


def test_a_worker_of_a_trained_model() -> None:
    model = anytime.create_model("anytimenet", width=2)
    with pytest.raises(ValueError, match="does not know the size"):
        make_worker(model)
    model.info.input_size = (3, 8, 8)
    worker = make_worker(model, Limits(2), stop="confidence=0.9")
    assert worker.costs.sizes == [1, 2]
    with pytest.raises(ValueError, match="policy must be one of"):
        make_worker(model, Limits(1), "greddy")


def test_the_command_ends_at_wrong_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cases = {
        ("runs/nothing",): "no run directory",
        ("anytimenet_cifar10", "--port", "99999"): "--port must lie in 0..65535, got 99999",
        ("anytimenet_cifar10", "--deadline", "soon"): "--deadline must be a number of seconds, or text with a unit",
        ("anytimenet_cifar10", "--deadline", "0"): "--deadline must be a time above 0, got '0'",
        ("anytimenet_cifar10", "--max-deadline", "inf"): "--max-deadline must be a time above 0, got 'inf'",
        ("anytimenet_cifar10", "--margin", "-1ms"): "--margin must be a time of at least 0, got '-1ms'",
        ("anytimenet_cifar10", "--margin", "1s"): "--margin must be shorter than --deadline and --max-deadline",
        ("anytimenet_cifar10", "--stop", "confidenc=0.9"): "confidence",
        ("a=",): "a served model is NAME=RUN, and 'a=' names no run",
        ("anytimenet_cifar10", "--max-batch", "0"): "--max-batch must be at least 1, got 0",
        ("anytimenet_cifar10", "--max-batch", "9999"): "--max-batch must be at most 1024, got 9999",
        ("anytimenet_cifar10", "--policy", "fair"): "--policy must be one of greedy, edf, slackfit, full, got 'fair'",
        ("anytimenet_cifar10", "--ray", "--replicas", "4:2"): "--replicas must be a number of at least 1, or LEAST:MOST",
        ("anytimenet_cifar10", "--ray", "--replicas", "many"): "such as 1:4, got 'many'",
        ("anytimenet_cifar10", "--replicas", "2"): "--replicas needs --ray",
        ("a=anytimenet_cifar10", "a=anytimenet_cifar10"): "two models would be served as 'a'",
    }
    for words, says in cases.items():
        assert main(["serve", *words]) == 2
        assert says in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "anytimenet_cifar10", "--port", str(taken.getsockname()[1])]) == 1
    assert "Address already in use" in capsys.readouterr().err


def test_a_missing_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else find(name, *more))
    assert main(["serve", "anytimenet_cifar10"]) == 1
    assert "a server needs uvicorn: pip install 'anytime-nets[serve]'" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_served(naming: Any) -> None:
    naming.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="the weights of the model are not finite: bias holds NaN or infinity"):
        make_worker(naming)
