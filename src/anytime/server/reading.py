"""What a client sends: its deadline, its body and its images, each bounded before it is read."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anytime.data.decoding import open_image
from anytime.model import AnytimeModel
from anytime.support.text import one_line, quoted
from anytime.support.units import typed_seconds
from anytime.support.views import middle_view, to_tensor

if TYPE_CHECKING:
    from starlette.requests import Request

FORMATS = ("JPEG", "PNG")
MOST_PIXELS = 2**25  # of a compressed image: 100 MB of RGB


GONE = 499  # the client has disconnected; nobody reads this status
SKEW = 60.0  # seconds that a due time may lie beyond what a deadline can be; more means that the clocks differ
_UNIX = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)


class Refused(Exception):
    """A request that cannot be answered: the status code and a sentence for the client."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status, self.sentence = status, sentence
        super().__init__(sentence)


@dataclass(frozen=True)
class Wishes:
    """What a request asks for besides its images.

    Attributes:
        deadline: Seconds from its arrival, at most the server's longest.
        prior: Whether a request without an answer in time gets equal probabilities instead of an error.
    """

    deadline: float
    prior: bool = False


def wished_deadline(given: str | None, default: float, longest: float, name: str = "Anytime-Deadline") -> float:
    """Seconds of a header such as `20ms`; none means the server's own, and too many its longest.

    Raises:
        Refused: 400, NaN or no time.
    """
    if given is None:
        return min(default, longest)
    if len(given) > 100:
        raise Refused(400, f"{name} must be a time such as '20ms', got {len(given)} characters")
    try:
        seconds = typed_seconds(given, name)
    except (ValueError, TypeError) as error:
        raise Refused(400, one_line(error)) from None
    return longest if seconds is None else min(seconds, longest)


def seconds_until(due: str, longest: float, now: float | None = None) -> float:
    """Seconds from now to a due time, which counts what has passed on the way here; 0 if it is over, at most `longest`.

    The error is the difference of the clocks of client and server.

    Args:
        due: Unix seconds, such as `1764500000.25`.
        longest: The most seconds that a request may have.
        now: Unix seconds; None: the clock of this machine.

    Raises:
        Refused: 400, no number, or so far from now that the clocks must differ.
    """
    if not _UNIX.fullmatch(due):
        raise Refused(400, f"Anytime-Due must be Unix seconds such as 1764500000.25, got {quoted(due)}")
    left = float(due) - (time.time() if now is None else now)
    if abs(left) > longest + SKEW:
        side = "after" if left > 0 else "before"
        raise Refused(400, f"Anytime-Due lies {abs(left):,.0f} s {side} this server's time: the clocks differ")
    return min(max(left, 0.0), longest)


def wishes(headers: Mapping[str, str], default: float, longest: float) -> Wishes:
    """What the headers ask for.

    Raises:
        Refused: 400, a header has another form, or there are both a deadline and a due time.
    """
    prior = headers.get("anytime-prior", "no").strip().lower()
    if prior not in ("yes", "no"):
        raise Refused(400, f"Anytime-Prior must be yes or no, got {quoted(prior)}")
    deadline, due = headers.get("anytime-deadline"), headers.get("anytime-due")
    if deadline is not None and due is not None:
        raise Refused(400, "a request names either Anytime-Deadline or Anytime-Due, got both")
    seconds = wished_deadline(deadline, default, longest) if due is None else seconds_until(due, longest)
    return Wishes(seconds, prior == "yes")


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request; one that is too large is not read, and a client that sends too slowly is not waited for.

    Raises:
        Refused: 413 it has more than `most` bytes; 408 it did not come within `seconds`; 400 its stated length is no number;
            499 the client has gone.
    """
    too_large = f"the body has more than {most:,} bytes, the most that this server takes"
    stated = request.headers.get("content-length")
    if stated is not None:
        if not (stated.isascii() and stated.isdigit()):
            raise Refused(400, f"Content-Length must be a number, got {quoted(stated)}")
        if len(stated) > 15 or int(stated) > most:
            raise Refused(413, too_large)
    parts, length, more = list[bytes](), 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Refused(GONE, "the client has gone")
                parts.append(message.get("body", b""))
                length, more = length + len(parts[-1]), message.get("more_body", False)
                if length > most:
                    raise Refused(413, too_large)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {seconds:g} s") from None
    return b"".join(parts)


def decoded(body: bytes, model: AnytimeModel, size: tuple[int, int, int]) -> Tensor:
    """A JPEG or PNG as `[1, C, H, W]` float32 in [0, 1], by the path of evaluation and `anytime predict`.

    Raises:
        Refused: 400 the image is damaged or of another format; 413 it has too many pixels.
    """
    try:
        with Image.open(BytesIO(body), formats=FORMATS) as image:
            pixels = math.prod(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, Image.DecompressionBombError):
            raise Refused(413, f"the image has more than {MOST_PIXELS:,} pixels") from None
        raise Refused(400, f"the body is no {' or '.join(FORMATS)} image: its {len(body):,} bytes cannot be read") from None
    if pixels > MOST_PIXELS:
        raise Refused(413, f"the image has {pixels:,} pixels, more than {MOST_PIXELS:,}")
    try:
        picture = open_image(body, size[0], name="the image")
        view = middle_view(picture, size[1:], model.info.resize_ratio, model.info.stretched)
    except (ValueError, FileNotFoundError) as error:
        raise Refused(400, one_line(error)) from None
    return to_tensor(view).float().div_(255)[None]


def raw_frame(body: bytes, shape: str | None, model: AnytimeModel, size: tuple[int, int, int]) -> Tensor:
    """Raw uint8 pixels, row by row, as `[1, C, H, W]` float32 in [0, 1].

    Args:
        body: The pixels.
        shape: `H,W,C` of the frame; None: those of the model's images.
        model: What will take them.
        size: (channels, height, width) of its images.

    Raises:
        Refused: 400, the shape is no shape, or the body has another length.
    """
    channels, height, width = size
    numbers = [height, width, channels]
    if shape is not None:
        parts = shape.split(",") if len(shape) < 100 else []
        if len(parts) != 3 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
            raise Refused(400, f"Anytime-Shape must be height,width,channels such as 480,640,3, got {quoted(shape)}")
        numbers = [int(part) for part in parts]
    if math.prod(numbers) != len(body):
        text = ",".join(map(str, numbers))
        raise Refused(
            400, f"raw pixels of shape {text} are {math.prod(numbers):,} bytes, got {len(body):,}; see Anytime-Shape"
        )
    return prepared(np.frombuffer(body, np.uint8).reshape(numbers), model, size)


def prepared(frame: np.ndarray, model: AnytimeModel, size: tuple[int, int, int]) -> Tensor:
    """A uint8 frame `(H, W, C)` as `[1, C, H, W]`; one of the model's own size is taken as it is.

    Raises:
        Refused: 400, the frame has another form.
    """
    channels, height, width = size
    if frame.shape == (height, width, channels):
        return torch.from_numpy(np.divide(frame.transpose(2, 0, 1)[None], 255, dtype=np.float32, order="C"))
    try:
        return model.prepare(frame).cpu()
    except (ValueError, TypeError) as error:
        raise Refused(400, one_line(error)) from None


def number(given: Any, name: str, low: float, high: float) -> int:
    """A whole number of a JSON document.

    Raises:
        Refused: 400, it is none, or outside low..high.
    """
    if type(given) is not int or not low <= given <= high:
        raise Refused(400, f"{name} must be a whole number in {low:g}..{high:g}, got {quoted(given)}")
    return given
