"""The Open Inference Protocol (version 2) over HTTP: JSON, and the extension that sends tensors as bytes.

Source: https://github.com/kserve/open-inference-protocol and the binary tensor data extension of NVIDIA Triton.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytime.model import AnytimeModel
from anytime.server.reading import Refused, number, prepared, wished_deadline
from anytime.server.worker import Served
from anytime.support.documents import parse_json
from anytime.support.text import one_line, quoted

INPUT = "image"
TYPES: dict[str, Any] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1"), "INT64": np.dtype("<i8"), "INT32": np.dtype("<i4")}
LENGTH = "inference-header-content-length"
MOST_IMAGES = 64  # of one request
_LONGEST_TEXT = 1000  # of a request's id


@dataclass(frozen=True)
class Infer:
    """A request for inference.

    Attributes:
        images: `[B, C, H, W]`.
        deadline: Seconds from its arrival; None if it does not say.
        prior: Whether equal probabilities replace an answer that does not come in time; None if it does not say.
        outputs: Names of the wanted tensors, and whether each is sent as bytes.
        id: Its own name, which the answer repeats.
    """

    images: Tensor
    deadline: float | None
    prior: bool | None
    outputs: Mapping[str, bool]
    id: str | None


OUTPUTS = {"probabilities": "FP32", "label": "INT64", "confidence": "FP32", "step": "INT32"}


def metadata(name: str, model: AnytimeModel, size: tuple[int, int, int]) -> dict[str, Any]:
    """What a model takes and gives."""
    shapes = {"probabilities": [-1, model.num_classes]}
    outputs = [{"name": key, "datatype": kind, "shape": shapes.get(key, [-1])} for key, kind in OUTPUTS.items()]
    inputs = [{"name": INPUT, "datatype": "FP32", "shape": [-1, *size]}]
    return {"name": name, "versions": ["1"], "platform": "anytime", "inputs": inputs, "outputs": outputs}


def parse(body: bytes, header_length: str | None, model: AnytimeModel, size: tuple[int, int, int], longest: float) -> Infer:
    """A request from its body.

    The input is `image`: FP32 `[B, C, H, W]` in [0, 1], or UINT8 frames `[B, H, W, C]` of any size. `parameters` may hold
    `timeout` (microseconds from the arrival; here the time until which it is answered) and `prior` (true or false).

    Raises:
        Refused: 400, it has another form.
    """
    document, data = _parts(body, header_length)
    parameters = _mapping(document.get("parameters", {}), "parameters")
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict) or inputs[0].get("name") != INPUT:
        raise Refused(400, f"inputs must be a list of one tensor named {INPUT!r}")
    images = _images(_tensor(inputs[0], data), model, size)
    if (level := parameters.get("priority", 0)) != 0:
        raise Refused(400, f"this server knows no priorities, so priority must be 0, got {quoted(level)}")
    timeout, prior, deadline = parameters.get("timeout"), parameters.get("prior"), None
    if timeout is not None:
        deadline = wished_deadline(f"{number(timeout, 'timeout', 0, 2**63)}us", longest, longest)
    if prior is not None and not isinstance(prior, bool):
        raise Refused(400, f"prior must be true or false, got {quoted(prior)}")
    name = document.get("id")
    if name is not None and not (isinstance(name, str) and len(name) <= _LONGEST_TEXT):
        raise Refused(400, f"id must be a text of at most {_LONGEST_TEXT} characters")
    return Infer(images, deadline, prior, _wanted(document, parameters), name)


def _parts(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON document, and the bytes after it."""
    end = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 16):
            raise Refused(400, f"Inference-Header-Content-Length must be a number, got {quoted(header_length)}")
        end = int(header_length)
        if end > len(body):
            raise Refused(400, f"Inference-Header-Content-Length is {end:,}, more than the {len(body):,} bytes of the body")
    try:
        document = parse_json(body[:end], "the request", nodes=len(body) + 1)
    except ValueError as error:
        raise Refused(400, one_line(error)) from None
    return _mapping(document, "the request"), body[end:]


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(400, f"{name} must be a JSON object, got {quoted(value)}")
    return value


def _tensor(entry: dict[str, Any], data: bytes) -> np.ndarray:
    """The values of an input, from JSON or from the bytes behind it."""
    kind, shape = entry.get("datatype"), entry.get("shape")
    if kind not in ("FP32", "UINT8"):
        raise Refused(400, f"datatype of {INPUT!r} must be FP32 or UINT8, got {quoted(kind)}")
    if not isinstance(shape, list) or len(shape) != 4:
        raise Refused(400, f"shape of {INPUT!r} must be four numbers, got {quoted(shape)}")
    sizes = [number(size, f"shape of {INPUT!r}", 1, 2**24) for size in shape]
    count, dtype = math.prod(sizes), TYPES[kind]
    length = _mapping(entry.get("parameters", {}), f"parameters of {INPUT!r}").get("binary_data_size")
    if length is not None:
        stated = number(length, "binary_data_size", 0, 2**40)
        if stated != count * dtype.itemsize or stated != len(data):
            raise Refused(
                400,
                f"{kind} of shape {sizes} is {count * dtype.itemsize:,} bytes; binary_data_size is {stated:,}, and "
                f"{len(data):,} bytes follow the header",
            )
        return np.frombuffer(data, dtype).reshape(sizes)
    values = entry.get("data")
    try:
        objects = np.asarray(values, object)  # without a type, a long text among them would take that length for each
        if not {*map(type, objects.flat)} <= {int, float}:
            raise TypeError
        array = objects.astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        raise Refused(400, f"data of {INPUT!r} must be numbers") from None
    if not isinstance(values, list) or array.size != count:
        raise Refused(400, f"data of {INPUT!r} must be {count:,} numbers, as shape {sizes} says, got {array.size:,}")
    if kind == "UINT8" and not _whole(array):
        raise Refused(400, f"data of {INPUT!r} must be whole numbers in 0..255, as UINT8 says")
    with np.errstate(over="ignore"):  # what becomes infinite is refused with the image
        return array.reshape(sizes).astype(dtype)


def _whole(array: np.ndarray) -> bool:
    return bool(((array >= 0) & (array <= 255) & (array == np.floor(array))).all())


def _images(array: np.ndarray, model: AnytimeModel, size: tuple[int, int, int]) -> Tensor:
    if len(array) > MOST_IMAGES:
        raise Refused(413, f"a request holds at most {MOST_IMAGES} images, got {len(array)}")
    if array.dtype == np.uint8:
        return torch.cat([prepared(frame, model, size) for frame in array])
    if array.shape[1:] != size:
        raise Refused(400, f"images must be FP32 [B, {', '.join(map(str, size))}], got shape {list(array.shape)}")
    return torch.from_numpy(array.astype(np.float32))


def _wanted(document: dict[str, Any], parameters: dict[str, Any]) -> dict[str, bool]:
    """The names of the wanted outputs, and whether each is sent as bytes."""
    everywhere = bool(parameters.get("binary_data_output", False))
    given = document.get("outputs")
    if given is None:
        return dict.fromkeys(OUTPUTS, everywhere)
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise Refused(400, "outputs must be a list of objects with a name")
    wanted = {}
    for entry in given:
        name = entry.get("name")
        if not isinstance(name, str) or name not in OUTPUTS:
            raise Refused(400, f"outputs are {', '.join(OUTPUTS)}, got {quoted(name)}")
        own = _mapping(entry.get("parameters", {}), f"parameters of {name!r}").get("binary_data", everywhere)
        wanted[name] = bool(own)
    return wanted


def respond(
    name: str, wanted: Infer, answers: Sequence[Served], facts: Mapping[str, Any], levels: Sequence[int]
) -> tuple[bytes, dict[str, str]]:
    """The body of a response and its headers.

    Args:
        name: The model.
        wanted: The request.
        answers: One for each image.
        facts: What the response says about all of them.
        levels: Sizes of the label levels; the label and the confidence are those of the first.
    """
    probabilities = np.stack([answer.probabilities for answer in answers]).astype("<f4")
    values = {
        "probabilities": probabilities,
        "label": probabilities[:, : levels[0]].argmax(1),
        "confidence": np.array([answer.confidence for answer in answers]),
        "step": np.array([answer.step for answer in answers]),
    }
    outputs, data = [], b""
    for key, binary in wanted.outputs.items():
        array = values[key].astype(TYPES[OUTPUTS[key]])
        entry: dict[str, Any] = {"name": key, "datatype": OUTPUTS[key], "shape": list(array.shape)}
        if binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            data += array.tobytes()
        else:
            entry["data"] = array.ravel().tolist()
        outputs.append(entry)
    document = {"model_name": name, "model_version": "1", "parameters": dict(facts), "outputs": outputs}
    if wanted.id is not None:
        document["id"] = wanted.id
    header = json.dumps(document).encode()
    if not data:
        return header, {"content-type": "application/json"}
    return header + data, {"content-type": "application/octet-stream", LENGTH: str(len(header))}
