"""Asks a server about an image; the answers come as they improve."""

from __future__ import annotations

import http.client
import io
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from anytime.data.decoding import open_image
from anytime.support.documents import parse_json
from anytime.support.folders import check_ordinary
from anytime.support.text import one_line
from anytime.support.units import deadline_seconds

_LINE = 2**22  # bytes of one answer
_IMAGE = 2**24  # bytes of an image, as the server takes them
_BODY = 2**26  # bytes of all answers about it
_PATIENCE = 30.0  # seconds beyond twice the deadline
_USUAL = 15.0  # seconds: a deadline where the server decides
_MOST = {"step": 10**6, "steps": 10**6, "confidence": 1.0, "macs": 10**24, "seconds": 1e9}  # of an answer
_NAME = 1000  # characters of a class
_KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}


def check_url(url: str) -> str:
    """The address of a server without a slash at its end; raises ValueError unless it is one of HTTP."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"a server has an address like http://127.0.0.1:8000, got {url!r}")
    return url.rstrip("/")


def ask(url: str, model: str, path: Path, deadline: str | None = None) -> Iterator[dict[str, Any]]:
    """The answers of a server about an image file, each better than the one before.

    Args:
        url: The address of the server.
        model: The name of a model there.
        path: A JPEG or PNG, which is sent as it is, or another image, which is sent as PNG.
        deadline: When the last answer is due, such as `"20ms"`; None: the server's own deadline.

    Raises:
        FileNotFoundError: There is no such image.
        ValueError: It is no image; the server cannot be reached, has no answer in time, or says something else.
    """
    address = f"{check_url(url)}/v2/models/{quote(model, safe='')}/predict"
    body, kind = _image(path)
    headers = {"Content-Type": kind, "Accept": "application/x-ndjson"}
    if deadline is not None:
        headers["Anytime-Deadline"] = deadline
    request = urllib.request.Request(address, body, headers, method="POST")
    seconds = deadline_seconds(deadline)
    limit = _PATIENCE + 2 * max(_USUAL if seconds is None else seconds, 0.0)
    before: dict[str, Any] | None = None
    for line in _lines(request, url, limit):
        answer = _answer(line, url)
        least = 0 if before is None else before["step"] + (not answer["reason"])  # the last one repeats a step
        if answer["step"] < least or (before is not None and answer["steps"] != before["steps"]):
            raise ValueError(f"{url} is no server of this version: its answers do not improve from step to step")
        yield answer
        if answer["reason"]:
            return
        before = answer
    raise ValueError(f"the server {url} broke off before its last answer")


def _lines(request: urllib.request.Request, url: str, limit: float) -> Iterator[bytes]:
    """The lines of a reply; raises ValueError if it is longer than `_BODY`, or not complete after `limit` seconds."""
    lines: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    # in a thread of its own, because a server may send a byte now and then for ever
    threading.Thread(target=_read, args=(request, url, limit, lines), daemon=True).start()
    end = time.monotonic() + limit
    while True:
        try:
            line = lines.get(timeout=max(end - time.monotonic(), 0.0))
        except queue.Empty:
            late = f"the server {url} has not ended its answer within {limit:g} s"
            raise ValueError(f"{late}; give another --deadline, or another server") from None
        if isinstance(line, Exception):
            raise line
        if not line:
            return
        yield line


def _read(request: urllib.request.Request, url: str, limit: float, lines: queue.SimpleQueue[bytes | Exception]) -> None:
    """Puts the lines of a reply into a queue, and at last b"" or the error."""
    left = _BODY
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=limit) as reply:
            while line := reply.readline(_LINE):
                if (left := left - len(line)) < 0:
                    raise http.client.HTTPException(f"its answer has more than {_BODY:,} bytes")
                lines.put(line)
        lines.put(b"")
    except urllib.error.HTTPError as error:
        lines.put(ValueError(f"{url}: {_sentence(error)}"))
    except OSError as error:  # also URLError, which has a reason
        reason = getattr(error, "reason", None) or error
        lines.put(ValueError(f"the server {url} cannot be reached: {one_line(Exception(str(reason)))}"))
    except (ValueError, http.client.HTTPException) as error:
        lines.put(ValueError(f"{url} is none of this library's servers: {one_line(error)}"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A server of this library never names another, and an image goes only where the user sends it."""

    def http_error_302(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _image(path: Path) -> tuple[bytes, str]:
    check_ordinary(path)
    with path.open("rb") as file:
        content = file.read(_IMAGE + 1)
    if len(content) > _IMAGE:
        raise ValueError(f"{path} has more than {_IMAGE:,} bytes, more than a server takes")
    for start, kind in _KINDS.items():
        if content.startswith(start):
            return content, kind
    made = io.BytesIO()
    open_image(content, name=str(path)).save(made, "PNG")
    return made.getvalue(), "image/png"


def _answer(line: bytes, url: str) -> dict[str, Any]:
    answer = parse_json(line, f"the answer of {url}")
    wanted = {
        **{"step": int, "steps": int, "reason": str, "confidence": float},
        **{"macs": int, "class": str, "seconds": float, "missed": bool},
    }
    if not isinstance(answer, dict) or not all(type(answer.get(key)) is kind for key, kind in wanted.items()):
        raise ValueError(f"{url} is no server of this version: an answer lacks one of {', '.join(wanted)}")
    for key, most in _MOST.items():
        if not 0 <= answer[key] <= most:  # nor NaN
            raise ValueError(f"{url} is no server of this version: {key} of an answer lies outside 0..{most:g}")
    if answer["step"] > answer["steps"] or len(answer["class"]) > _NAME:
        raise ValueError(f"{url} is no server of this version: an answer has a step beyond the last, or a class of no name")
    return answer


def _sentence(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong."""
    try:
        said = json.loads(error.read(_LINE))["error"]
    except (ValueError, LookupError, TypeError, OSError, RecursionError, http.client.HTTPException):
        said = f"it answered with status {error.code}, which is none of this library's servers"
    return one_line(ValueError(str(said)))
