"""The application: what it answers, what it refuses and how, and that every place is freed."""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from anytime.server.app import ServerSettings
from anytime.server.reading import Refused, seconds_until

Play = Callable[..., Any]
PREDICT, INFER = "/v2/models/toy/predict", "/v2/models/toy/infer"
RAW = {"content-type": "application/octet-stream"}
GREY = bytes([115]) * 48  # 0.45 of the way from black to white


def infer_body(x: np.ndarray, **more: Any) -> dict[str, Any]:
    entry = {"name": "image", "datatype": "FP32", "shape": [*x.shape], "data": x.ravel().tolist()}
    return {"inputs": [entry], **more}


def png(size: tuple[int, int] = (9, 7), value: int = 115) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(file, "PNG")
    return file.getvalue()


def test_raw_pixels_png_and_jpeg_are_answered(play: Play) -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (9, 7), (115,) * 3).save(jpeg, "JPEG")

    async def scenario(client: Any, server: Any) -> None:
        bodies = {GREY: RAW, png(): {"content-type": "image/png"}, jpeg.getvalue(): {"content-type": "image/jpeg"}}
        bodies[bytes([115]) * (5 * 8 * 3)] = {**RAW, "anytime-shape": "5, 8, 3"}
        for body, headers in bodies.items():
            reply = await client.call("POST", PREDICT, body, headers)
            answer = json.loads(reply.body)
            assert reply.status == 200, reply.body
            assert (answer["label"], answer["class"], answer["step"], answer["steps"]) == (4, "4", 3, 3)
            assert (answer["reason"], answer["missed"], answer["macs"]) == ("complete", False, 180)
            assert answer["confidence"] == pytest.approx(0.6, abs=1e-4)
            assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-4)

    play(scenario)


@pytest.mark.parametrize("binary", [False, True])
def test_the_protocol_in_json_and_in_bytes(play: Play, binary: bool) -> None:
    x = np.array([0.15, 0.85], np.float32).repeat(48).reshape(2, 3, 4, 4)

    async def scenario(client: Any, server: Any) -> None:
        document, headers, data = infer_body(x, id="mine"), {}, b""
        if binary:
            document["inputs"][0].pop("data")
            document["inputs"][0]["parameters"] = {"binary_data_size": x.nbytes}
            document["parameters"] = {"binary_data_output": True, "timeout": 5_000_000, "priority": 0}
            data = x.tobytes()
            headers["inference-header-content-length"] = str(len(json.dumps(document)))
        reply = await client.call("POST", INFER, json.dumps(document).encode() + data, headers)
        assert reply.status == 200, reply.body
        end = int(reply.headers.get("inference-header-content-length", len(reply.body)))
        answer, rest = json.loads(reply.body[:end]), reply.body[end:]
        outputs = {}
        for entry in answer["outputs"]:
            kind = {"FP32": "<f4", "INT64": "<i8", "INT32": "<i4"}[entry["datatype"]]
            if binary:
                size = entry["parameters"]["binary_data_size"]
                values, rest = np.frombuffer(rest[:size], kind), rest[size:]
            else:
                values = np.array(entry["data"], kind)
            outputs[entry["name"]] = values.reshape(entry["shape"])
        assert not rest or not binary
        assert outputs["probabilities"].shape == (2, 10)
        assert outputs["label"].tolist() == outputs["probabilities"].argmax(1).tolist() == [1, 8]
        assert outputs["step"].tolist() == [3, 3]
        assert (answer["id"], answer["model_name"]) == ("mine", "toy")
        assert answer["parameters"]["macs"] == 360
        only = await client.call("POST", INFER, json.dumps(infer_body(x, outputs=[{"name": "label"}])).encode())
        assert [entry["name"] for entry in json.loads(only.body)["outputs"]] == ["label"]

    play(scenario)


def test_frames_of_bytes_are_resized(play: Play) -> None:
    frames = np.full((2, 6, 5, 3), 115, np.uint8)
    entry = {"name": "image", "datatype": "UINT8", "shape": [2, 6, 5, 3], "data": frames.ravel().tolist()}

    async def scenario(client: Any, server: Any) -> None:
        reply = await client.call("POST", INFER, json.dumps({"inputs": [entry]}).encode())
        (label,) = (each for each in json.loads(reply.body)["outputs"] if each["name"] == "label")
        assert label["data"] == [4, 4]

    play(scenario)


def test_health_and_metadata(play: Play) -> None:
    async def scenario(client: Any, server: Any) -> None:
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/toy/ready"):
            assert (await client.call("GET", path)).status == 200
        about = json.loads((await client.call("GET", "/v2/models/toy")).body)
        assert about["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 4, 4]}]
        assert (await client.call("GET", "/v2/models/other")).status == 404
        assert b"the models are toy" in (await client.call("POST", "/v2/models/other/infer")).body
        server.draining = True
        assert (await client.call("GET", "/v2/health/ready")).status == 503
        assert (await client.call("GET", "/v2/health/live")).status == 200
        reply = await client.call("POST", PREDICT, GREY, RAW)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")

    play(scenario)


def test_answers_stream_as_they_improve(play: Play, worker: Any) -> None:
    worker.policy = "edf"

    async def scenario(client: Any, server: Any) -> None:
        reply = await client.call("POST", PREDICT, GREY, {**RAW, "accept": "application/x-ndjson"})
        lines = [json.loads(line) for line in reply.body.splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 3]
        assert [line["reason"] for line in lines] == ["", "", "", "complete"]

    play(scenario)


def test_no_answer_in_time(play: Play, naming: Any) -> None:
    async def scenario(client: Any, server: Any) -> None:
        headers = {**RAW, "anytime-deadline": "0ms"}
        reply = await client.call("POST", PREDICT, GREY, headers)
        assert reply.status == 504
        assert b"no answer within 0 ms" in reply.body
        reply = await client.call("POST", PREDICT, GREY, {**headers, "anytime-prior": "yes"})
        answer = json.loads(reply.body)
        assert (reply.status, answer["step"], answer["missed"], answer["reason"]) == (200, -1, True, "deadline")
        assert answer["probabilities"] == [0.1] * 10
        listed = {"accept": "application/json;q=0.5, application/x-ndjson", "anytime-prior": "yes"}
        reply = await client.call("POST", PREDICT, GREY, headers | listed)
        assert reply.headers["content-type"] == "application/x-ndjson"
        assert reply.body.endswith(b"}\n")
        assert json.loads(reply.body) | {"seconds": 0} == answer | {"seconds": 0}
        x = np.full((1, 3, 4, 4), 0.5, np.float32)
        body = json.dumps(infer_body(x, parameters={"timeout": 0, "prior": True})).encode()
        assert json.loads((await client.call("POST", INFER, body)).body)["parameters"]["step"] == -1
        naming.gate.clear()  # the step hangs: the deadline is kept all the same
        reply = await client.call("POST", PREDICT, GREY, {**RAW, "anytime-deadline": "30ms"})
        assert reply.status == 504
        naming.gate.set()

    server = play(scenario)
    text = server.metrics.text().decode()
    assert 'anytime_requests_total{model="toy",outcome="no_answer"} 2.0' in text
    assert 'anytime_requests_total{model="toy",outcome="prior"} 3.0' in text
    assert 'anytime_answers_total{model="toy",step="0"} 5.0' in text
    assert 'anytime_hopeless_total{model="toy"} 4.0' in text


def test_too_many_live_images_and_clients_that_leave(play: Play, naming: Any, worker: Any) -> None:
    async def scenario(client: Any, server: Any) -> None:
        naming.gate.clear()
        gone = asyncio.Event()
        first = asyncio.create_task(client.call("POST", PREDICT, GREY, RAW, gone=gone))
        while worker.live == 0:
            await asyncio.sleep(0.001)
        reply = await client.call("POST", PREDICT, GREY, RAW)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert b"1 images are live" in reply.body
        x = np.full((2, 3, 4, 4), 0.5, np.float32)
        for path in (INFER, INFER.replace("/infer", "/versions/1/infer")):
            reply = await client.call("POST", path, json.dumps(infer_body(x)).encode())
            assert (reply.status, b"the request has 2 images, and this server takes at most 1" in reply.body) == (413, True)
        gone.set()
        await first
        assert worker.live == 0
        naming.gate.set()
        assert (await client.call("POST", PREDICT, GREY, RAW)).status == 200

    server = play(scenario, ServerSettings(max_live=1))
    text = server.metrics.text().decode()
    for outcome in ("full", "disconnected", "answered"):
        assert f'anytime_requests_total{{model="toy",outcome="{outcome}"}} 1.0' in text


def test_a_failing_network_is_a_500_and_a_dead_thread_is_started_again(play: Play, naming: Any, worker: Any) -> None:
    async def scenario(client: Any, server: Any) -> None:
        naming.errors.append("out of beans")
        reply = await client.call("POST", PREDICT, GREY, RAW)
        assert (reply.status, json.loads(reply.body)["error"]) == (500, "the model failed: RuntimeError: out of beans")
        naming.errors.clear()
        worker.close(1)  # as if it had died
        worker._closing = False
        assert (await client.call("GET", "/v2/health/ready")).status == 503
        while not worker.ready:
            await asyncio.sleep(0.01)
        assert (await client.call("POST", PREDICT, GREY, RAW)).status == 200

    server = play(scenario)
    assert 'anytime_worker_restarts_total{model="toy"} 1.0' in server.metrics.text().decode()


def test_a_body_that_is_too_large_is_not_read(play: Play) -> None:
    async def scenario(client: Any, server: Any) -> None:
        reply = await client.call("POST", PREDICT, bytes(101), RAW)
        assert (reply.status, reply.headers["connection"], client.read) == (413, "close", 0)
        reply = await client.call("POST", PREDICT, [bytes(30)] * 20, RAW)  # without a length
        assert (reply.status, client.read) == (413, 4)

    play(scenario, ServerSettings(max_body=100))


def test_a_slow_client_is_not_waited_for(play: Play) -> None:
    async def scenario(client: Any, server: Any) -> None:
        reply = await client.call("POST", PREDICT, [bytes(1)] * 48, RAW, pause=0.02)
        assert reply.status == 408
        assert b"the body did not arrive within 0.05 s" in reply.body

    play(scenario, ServerSettings(body_seconds=0.05))


def test_a_client_that_leaves_frees_its_place_wherever_it_is(play: Play, naming: Any, worker: Any) -> None:
    worker.policy, second, step = "edf", threading.Event(), naming.step

    def held(state: Any) -> Any:
        assert state[0] == 0 or second.wait(10)
        return step(state)

    naming.step = held

    async def scenario(client: Any, server: Any) -> None:
        await client.call("POST", PREDICT, [b"abc", None], RAW)  # in the middle of its body
        gone = asyncio.Event()
        stream = asyncio.create_task(client.call("POST", PREDICT, GREY, {**RAW, "accept": "application/x-ndjson"}, gone))
        while not worker.take_batches():
            await asyncio.sleep(0.001)
        gone.set()
        reply = await stream
        assert [json.loads(line)["step"] for line in reply.body.splitlines()] == [1]
        assert worker.live == 0
        second.set()

    server = play(scenario)
    assert 'anytime_requests_total{model="toy",outcome="disconnected"} 2.0' in server.metrics.text().decode()


def test_deadlines_are_cut_at_the_longest(play: Play, naming: Any) -> None:
    async def scenario(client: Any, server: Any) -> None:
        naming.gate.clear()
        reply = await client.call("POST", PREDICT, GREY, {**RAW, "anytime-deadline": "1000s"})
        assert reply.status == 504
        assert b"within 20 ms" in reply.body
        naming.gate.set()

    play(scenario, ServerSettings(max_deadline=0.02))


def test_a_due_time_counts_what_has_passed_on_the_way(play: Play, naming: Any) -> None:
    async def scenario(client: Any, server: Any) -> None:
        async def status(due: float) -> int:
            reply = await client.call("POST", PREDICT, GREY, {**RAW, "anytime-due": f"{due:.6f}"})
            return int(reply.status)

        assert [await status(time.time() + ahead) for ahead in (5.0, -1.0)] == [200, 504]
        naming.gate.clear()
        start = time.monotonic()
        assert await status(time.time() + 0.1) == 504  # the first step does not end
        assert time.monotonic() - start >= 0.09
        naming.gate.set()

    play(scenario)


def test_seconds_until_a_due_time_are_cut_and_clocks_that_differ_refused() -> None:
    assert seconds_until("1000.25", 10.0, now=1000.0) == 0.25
    assert seconds_until("1030", 10.0, now=1000.0) == 10.0
    assert seconds_until("950", 10.0, now=1000.0) == 0.0
    for due, side in (("1071", "71 s after"), ("929", "71 s before")):
        with pytest.raises(Refused, match=f"Anytime-Due lies {side} this server's time: the clocks differ"):
            seconds_until(due, 10.0, now=1000.0)


def test_whatever_clients_do_every_request_is_accounted_for(play: Play, naming: Any, worker: Any) -> None:
    source, count = random.Random(0), 150
    seen: dict[int, int] = {}

    async def one(client: Any, number: int) -> None:
        value, gone = source.randrange(10), asyncio.Event()
        await asyncio.sleep(source.random() * 0.3)
        kind, headers = source.choices(["plain", "leaves", "broken", "late"], [6, 2, 1, 1])[0], dict(RAW)
        if kind == "leaves":
            asyncio.get_running_loop().call_later(source.random() * 0.002, gone.set)
        if kind == "late":
            headers["anytime-deadline"] = "0s"
        body = bytes([25 * value + 13]) * (47 if kind == "broken" else 48)
        reply = await client.call("POST", PREDICT, body, headers, gone)
        seen[reply.status] = seen.get(reply.status, 0) + 1
        assert reply.status in {"broken": [400], "late": [504], "leaves": [200, 499]}.get(kind, [200]), reply.body
        if reply.status == 200:
            assert json.loads(reply.body)["label"] == int((25 * value + 13) / 25.5), "an answer to another image"

    async def scenario(client: Any, server: Any) -> None:
        await asyncio.gather(*(one(client, number) for number in range(count)))
        assert worker.live == 0

    server = play(scenario)
    lines = server.metrics.text().decode().splitlines()
    counted = {
        line.split('outcome="')[1].split('"')[0]: float(line.split()[-1]) for line in lines if "requests_total{" in line
    }
    assert sum(counted.values()) == sum(seen.values()) == count
    by_outcome = {"answered": 200, "disconnected": 499, "refused": 400, "no_answer": 504}
    assert {outcome: counted[outcome] for outcome in by_outcome} == {o: seen.get(s, 0) for o, s in by_outcome.items()}


def test_many_at_once_are_all_answered_and_counted(play: Play) -> None:
    async def scenario(client: Any, server: Any) -> None:
        calls = [client.call("POST", PREDICT, bytes([25 * (n % 10) + 13]) * 48, RAW) for n in range(100)]
        for n, reply in enumerate(await asyncio.gather(*calls)):
            assert reply.status == 200, reply.body
            assert json.loads(reply.body)["label"] == int((25 * (n % 10) + 13) / 25.5)

    server = play(scenario)
    text = server.metrics.text().decode()
    assert 'anytime_requests_total{model="toy",outcome="answered"} 100.0' in text
    assert 'anytime_answers_total{model="toy",step="3"} 100.0' in text
    assert 'anytime_live{model="toy"} 0.0' in text
    assert torch.is_inference_mode_enabled() is False


def test_a_network_without_finite_answers_is_a_500(play: Play, naming: Any) -> None:
    """It was a 504, as if the deadline had been too short."""

    async def scenario(client: Any, server: Any) -> None:
        naming.bias.data.fill_(math.nan)
        for accept in ("application/json", "application/x-ndjson"):
            reply = await client.call("POST", PREDICT, GREY, {**RAW, "accept": accept})
            assert reply.status == 500
            assert "the model gave no finite answer: its weights hold NaN" in json.loads(reply.body)["error"]

    play(scenario)
