"""A download that fails names the data set, the address and what to do."""

from __future__ import annotations

import ssl
import urllib.request
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest

import anytime.data
from anytime.data import ImageData
from anytime.data.files import downloading

OFFICIAL = [name for name in anytime.data.list_datasets() if getattr(anytime.data, name).fetch is not ImageData.fetch]
ERRORS = [
    URLError(OSError("Name or service not known")),
    HTTPError("http://a", 404, "Not Found", {}, None),  # type: ignore[arg-type]
    ConnectionResetError("reset"),
    TimeoutError("timed out"),
    ssl.SSLError("bad certificate"),
    IncompleteRead(b"x"),
]


@pytest.mark.parametrize("name", sorted({*OFFICIAL} - {"ImageNet"}))
def test_a_failed_download_says_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(*_: object, **__: object) -> None:
        raise ERRORS[0]

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    kind = getattr(anytime.data, name)
    with pytest.raises(
        ValueError, match=f"^{kind.title}: the download failed: https?://.*Name or service not known"
    ) as caught:
        kind(root=tmp_path, download=True).setup()
    assert f"; try again, or put {kind.files[0]}" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_of_the_network_names_the_address(error: Exception) -> None:
    with pytest.raises(RuntimeError, match=r"^https://a/b: .*\w"), downloading("https://a/b"):
        raise error


def test_a_full_disk_is_no_failed_download() -> None:
    with pytest.raises(OSError, match="No space left"), downloading("https://a/b"):
        raise OSError(28, "No space left on device")
