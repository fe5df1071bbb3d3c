"""Asks a server about an image; the answers come as they improve."""

from __future__ import annotations

import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from anytime.data.decoding import open_image
from anytime.support.documents import parse_json
from anytime.support.folders import check_ordinary
from anytime.support.text import one_line, printable

_LINE = 2**22  # bytes of one answer
_BODY = 2**26  # bytes of an image
_PATIENCE = 30.0  # seconds beyond the deadline
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
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as reply:
            while line := reply.readline(_LINE):
                yield _answer(line, url)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url}: {_sentence(error)}") from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"the server {url} cannot be reached: {printable(str(reason))}") from None


def _image(path: Path) -> tuple[bytes, str]:
    check_ordinary(path)
    with path.open("rb") as file:
        content = file.read(_BODY + 1)
    if len(content) > _BODY:
        raise ValueError(f"{path} has more than {_BODY:,} bytes, more than a server takes")
    for start, kind in _KINDS.items():
        if content.startswith(start):
            return content, kind
    made = io.BytesIO()
    open_image(content, name=str(path)).save(made, "PNG")
    return made.getvalue(), "image/png"


def _answer(line: bytes, url: str) -> dict[str, Any]:
    answer = parse_json(line, f"the answer of {url}")
    wanted = {"step": int, "steps": int, "reason": str, "confidence": float, "macs": int, "class": str, "seconds": float}
    if not isinstance(answer, dict) or not all(isinstance(answer.get(key), kind) for key, kind in wanted.items()):
        raise ValueError(f"{url} is no server of this version: an answer lacks one of {', '.join(wanted)}")
    return answer


def _sentence(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong."""
    try:
        said = json.loads(error.read(_LINE))["error"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        said = f"it answered with status {error.code}, which is none of this library's servers"
    return one_line(ValueError(str(said)))
