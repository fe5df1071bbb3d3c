"""Hostile requests: a status code and a sentence each, and nothing stays behind."""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

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


def bomb() -> bytes:
    """A PNG that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


HALF = np.full((1, 3, 4, 4), 0.5, np.float32)
IMAGE = {"content-type": "image/png"}


def changed(**changes: Any) -> bytes:
    """A request whose input has other entries."""
    document = infer_body(HALF)
    document["inputs"][0] |= changes
    return json.dumps(document).encode()


def document(**changes: Any) -> bytes:
    return json.dumps(infer_body(HALF) | changes).encode()


NO_TIMES = ("", "\t", "x" * 999, "NaN", "nanms", "ms", "[5]", "true")
WRONG_TIMES = (*NO_TIMES, "5 min", "5 m", "0x10ms", "5msms", "--5ms", "1,5ms", "5ms; 6ms")
WRONG_DUES = ("", "x" * 999, "nan", "inf", "-5", "1e9", "20ms", "1,5", "9" * 13, "²")
WRONG_SHAPES = ("4,4", "4,4,x", "-4,-4,3", "9" * 50 + ",1,1", "0,0,0", "²,4,3", "4;4;3", "4,4,3,1", "4.0,4,3", "", "None")
STARTS = b"GIF89a|BM|RIFF....WEBPVP8 |II*|<svg/>|PK\3\4|%PDF-1.7|\x89PNG\r\n\x1a\n|\xff\xd8\xff\xe0|\xff\xd8\xff\xd9"
NO_IMAGES = (bytes(99), *(start + bytes(60) for start in STARTS.split(b"|")))
WRONG_TYPES = (
    "image/gif",
    "image/webp",
    "application/json",
    "multipart/form-data; boundary=a",
    "image/png, image/png",
    "x" * 99,
)
HOSTILE: list[tuple[str, bytes, dict[str, str], int, str]] = [
    *((PREDICT, GREY, {**RAW, "anytime-deadline": text}, 400, "Anytime-Deadline must be") for text in WRONG_TIMES),
    (PREDICT, GREY, {**RAW, "anytime-deadline": "-5ms"}, 504, "no answer within -5 ms"),
    (PREDICT, GREY, {**RAW, "anytime-deadline": "-inf"}, 504, "no answer within"),
    (PREDICT, GREY, {**RAW, "anytime-deadline": "1e300"}, 200, "complete"),
    *((PREDICT, GREY, {**RAW, "anytime-due": text}, 400, "Anytime-Due must be Unix seconds") for text in WRONG_DUES),
    (PREDICT, GREY, {**RAW, "anytime-due": "1"}, 400, "before this server's time: the clocks differ"),
    (PREDICT, GREY, {**RAW, "anytime-due": "9" * 12}, 400, "after this server's time: the clocks differ"),
    (PREDICT, GREY, {**RAW, "anytime-due": "1", "anytime-deadline": "1s"}, 400, "either Anytime-Deadline or Anytime-Due"),
    (PREDICT, GREY, {**RAW, "anytime-prior": "maybe"}, 400, "Anytime-Prior must be yes or no, got 'maybe'"),
    (PREDICT, GREY, {"content-type": "text/html"}, 415, "Content-Type must be"),
    (PREDICT, GREY[:-1], RAW, 400, "raw pixels of shape 4,4,3 are 48 bytes, got 47"),
    (PREDICT, b"", RAW, 400, "got 0"),
    *((PREDICT, GREY, {**RAW, "anytime-shape": text}, 400, "") for text in WRONG_SHAPES),
    (PREDICT, b"", {**RAW, "anytime-shape": "0,4,3"}, 400, "a frame must be"),
    (PREDICT, bytes(16), {**RAW, "anytime-shape": "2,2,4"}, 400, "a frame must be"),
    *((PREDICT, body, IMAGE, 400, "no JPEG or PNG image") for body in NO_IMAGES),
    *((PREDICT, GREY, {"content-type": kind}, 415, "Content-Type must be") for kind in WRONG_TYPES),
    (PREDICT, b"", IMAGE, 400, "no JPEG or PNG image"),
    (PREDICT, png()[:45], IMAGE, 400, "damaged"),
    (PREDICT, bomb(), IMAGE, 413, "more than 33,554,432"),
    (PREDICT, GREY, {**RAW, "content-length": "1e9"}, 400, "Content-Length must be a number"),
    (PREDICT, GREY, {**RAW, "content-length": "-1"}, 400, "Content-Length must be a number"),
    (PREDICT, GREY, {**RAW, "content-length": "9" * 30}, 413, "the body has more than"),
    (INFER, b"", {}, 400, "the request is damaged"),
    (INFER, b"\xff\xfe{", {}, 400, "the request"),
    (INFER, b"[" * 100_000, {}, 400, "nested too deeply"),
    (INFER, b'{"a":' * 5000 + b"1" + b"}" * 5000, {}, 400, "nested too deeply"),
    (INFER, b"[1]", {}, 400, "the request must be a JSON object"),
    (INFER, b"{}", {}, 400, "inputs must be a list of one tensor named 'image'"),
    (INFER, document(inputs=[]), {}, 400, "inputs must be a list"),
    (INFER, document(inputs={"image": 1}), {}, 400, "inputs must be a list"),
    (INFER, document(parameters=[1]), {}, 400, "parameters must be a JSON object"),
    (INFER, document(parameters={"timeout": "1"}), {}, 400, "timeout must be a whole number"),
    (INFER, document(parameters={"timeout": -1}), {}, 400, "timeout must be a whole number"),
    (INFER, document(parameters={"timeout": True}), {}, 400, "timeout must be a whole number"),
    (INFER, document(parameters={"timeout": 10**30}), {}, 400, "timeout must be a whole number"),
    (INFER, document(parameters={"priority": 7}), {}, 400, "priority must be 0, got 7"),
    (INFER, document(parameters={"prior": "yes"}), {}, 400, "prior must be true or false"),
    (INFER, document(id="x" * 5000), {}, 400, "id must be a text"),
    (INFER, document(outputs=[{"name": "soul"}]), {}, 400, "outputs are probabilities, label, confidence, step, got 'soul'"),
    (INFER, document(outputs="label"), {}, 400, "outputs must be a list"),
    (INFER, document(outputs=[{"name": ["label"]}]), {}, 400, "outputs are"),
    (INFER, changed(datatype="FP64"), {}, 400, "datatype of 'image' must be FP32 or UINT8"),
    (INFER, changed(datatype=["FP32"]), {}, 400, "datatype of 'image' must be FP32 or UINT8"),
    (INFER, changed(shape=[1, 3, 4]), {}, 400, "shape of 'image' must be four numbers"),
    (INFER, changed(shape=[1, 3, 4, -4]), {}, 400, "whole number in"),
    (INFER, changed(shape=[1, 3, 4, 1e99]), {}, 400, "whole number in"),
    (INFER, changed(shape=[2**24, 2**24, 2**24, 2**24]), {}, 400, "must be"),
    (INFER, changed(data=[0.5] * 47), {}, 400, "must be 48 numbers, as shape"),
    (INFER, changed(data=["0.5"] * 48), {}, 400, "must be numbers"),
    (INFER, changed(data=[True] + [0.5] * 47), {}, 400, "must be numbers"),
    (INFER, changed(data=["x" * 10_000] + [""] * 10_000), {}, 400, "must be numbers"),
    (INFER, changed(data=["a"] * 48), {}, 400, "must be numbers"),
    (INFER, changed(data=[[0.5], 0.5]), {}, 400, "must be numbers"),
    (INFER, changed(data=None), {}, 400, "data of 'image'"),
    (INFER, changed(data=[10**400] * 48), {}, 400, "must be numbers"),
    (INFER, changed(data=[math.nan] * 48), {}, 400, "NaN"),
    (INFER, changed(data=[7.0] * 48), {}, 400, "images must lie in [0, 1]"),
    (INFER, changed(datatype="UINT8", shape=[1, 4, 4, 3], data=[256] * 48), {}, 400, "must be whole numbers in 0..255"),
    (INFER, changed(shape=[3, 4, 4, 1]), {}, 400, "images must be FP32 [B, 3, 4, 4]"),
    (INFER, changed(shape=[65, 3, 1, 1], data=[0.5] * 195), {}, 413, "at most 64 images"),
    (INFER, document(), {"inference-header-content-length": "9"}, 400, "the request is damaged"),
    (INFER, changed(parameters={"binary_data_size": 192}), {}, 400, "0 bytes follow the header"),
    (INFER, changed(parameters={"binary_data_size": 2**60}), {}, 400, "binary_data_size must be a whole number"),
    (INFER, changed(parameters=3), {}, 400, "parameters of 'image' must be a JSON object"),
    (INFER, document(), {"inference-header-content-length": "10000"}, 400, "more than the"),
    (INFER, document(), {"inference-header-content-length": "-1"}, 400, "must be a number"),
    (INFER, document(), {"inference-header-content-length": "9" * 99}, 400, "must be a number"),
]  # fmt: skip


def test_hostile_requests_get_a_status_and_a_sentence(play: Play, worker: Any) -> None:
    assert len(HOSTILE) >= 100

    async def scenario(client: Any, server: Any) -> None:
        for path, body, headers, status, says in HOSTILE:
            reply = await client.call("POST", path, body, headers)
            assert reply.status == status, (body[:80], headers, reply.body)
            text = reply.body.decode()
            assert says in (json.loads(text)["error"] if status != 200 else text), (body[:80], headers, text)
            assert len(text) < 2000
            assert "\\n" not in text
        assert worker.live == 0

    play(scenario)
