"""The same pixels, as a file, as a PIL image in any mode and as an array, are the same picture, or one clear error."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from anytime import create_model
from anytime.data import read_image
from anytime.data.decoding import open_image
from anytime.support.views import frame_picture, to_channels

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)
ALPHA = RANDOM.integers(0, 256, (6, 8), dtype=np.uint8)
ALPHA[0], ALPHA[1] = 0, 255
GREY = Image.fromarray(COLOURS).convert("L")
RGBA = Image.merge("RGBA", [*Image.fromarray(COLOURS).split(), Image.fromarray(ALPHA)])


def png(values: np.ndarray, bits: int, kind: int, transparent: tuple[int, ...]) -> bytes:
    """A PNG of grey values `[H, W]` (kind 0) or colours `[H, W, 3]` (kind 2) with a transparent one."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    flat = values.reshape(height, -1).astype(">u2").view(np.uint8).reshape(height, -1, 2)
    each = np.unpackbits(flat, axis=2)[:, :, 16 - bits :].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(each, axis=1))
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = (b"IHDR", header), (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)), (b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (*parts, (b"IEND", b"")))


def prepared(image: Image.Image) -> np.ndarray:
    return np.asarray(to_channels(frame_picture(image), 3)).astype(int)


def decoded(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


WAYS: dict[str, Callable[[bytes], Image.Image]] = {
    "opened": lambda content: Image.open(io.BytesIO(content)),
    "decoded": decoded,
    "copied": lambda content: decoded(content).copy(),
}


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("way", WAYS)
def test_a_transparent_grey_value_is_white_in_every_way_or_an_error(bits: int, way: str) -> None:
    top = 2**bits - 1
    values = RANDOM.integers(0, top + 1, (6, 8))
    for value in {0, 1, top // 2, top}:
        values[0, :2] = value
        content = png(values, bits, 0, (value,))
        shown = np.where(values == value, 255, (values * 255 + top // 2) // top)[..., None].repeat(3, 2)
        assert np.array_equal(np.asarray(open_image(content)), shown)
        if way != "opened" and bits in (2, 4) and value:  # Pillow no longer knows how many bits there were
            step = 255 // top * value
            with pytest.raises(ValueError, match=f"transparent value {value} may stand for pixels of {step}") as caught:
                prepared(WAYS[way](content))
            image = WAYS[way](content)
            exec(str(caught.value).rpartition("in 8 bits: ")[2], {"image": image})
            assert np.array_equal(prepared(image), shown)
        else:
            assert np.array_equal(prepared(WAYS[way](content)), shown)


@pytest.mark.parametrize("way", WAYS)
def test_a_transparent_colour(way: str) -> None:
    values = COLOURS.astype(int)
    colour = tuple(int(value) for value in values[2, 3])
    content = png(values, 8, 2, colour)  # type: ignore[arg-type]
    shown = np.where((values == colour).all(2, keepdims=True), 255, values)
    assert np.array_equal(np.asarray(open_image(content)), shown)
    assert np.array_equal(prepared(WAYS[way](content)), shown)
    deep = png(values * 257, 16, 2, (65535, 300, 7))
    sentence = r"the transparent colour \(65535, 300, 7\) has 16 bits per channel, and the decoded pixels have 8"
    for read in (lambda: open_image(deep, name="deep.png"), lambda: prepared(WAYS[way](deep))):
        with pytest.raises(ValueError, match=sentence):
            read()


def palette_with_alpha() -> Image.Image:
    image = Image.fromarray(COLOURS).convert("P")
    image.info["transparency"] = bytes(range(0, 250, 5))
    return image


def applied() -> Image.Image:
    image = palette_with_alpha()
    image.apply_transparency()  # into the palette
    return image


def lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(Image.fromarray(COLOURS), ImageCms.buildTransform(*profiles, "RGB", "LAB"))  # type: ignore[return-value]


MODES: dict[str, tuple[Image.Image, Image.Image, int]] = {  # an image, what it shows, and how far rounding may go
    **{mode: (Image.fromarray(COLOURS).convert(mode), Image.fromarray(COLOURS), 0) for mode in ("RGBX", "CMYK")},
    **{mode: (Image.fromarray(COLOURS).convert(mode), Image.fromarray(COLOURS), 8) for mode in ("YCbCr", "HSV")},
    "LAB": (lab(), Image.fromarray(COLOURS), 20),
    "RGBa": (RGBA.convert("RGBa"), RGBA, 2),
    "LA": (RGBA.convert("LA"), RGBA.convert("LA").convert("RGBA"), 0),
    "La": (RGBA.convert("LA").convert("La"), RGBA.convert("LA").convert("RGBA"), 2),
    "PA": (RGBA.convert("PA"), RGBA.convert("PA").convert("RGBA"), 0),
    "P, transparent": (palette_with_alpha(), palette_with_alpha().convert("RGBA"), 0),
    "P, applied": (applied(), palette_with_alpha().convert("RGBA"), 0),
    "P of RGBA": (RGBA.quantize(16), RGBA.quantize(16).convert("RGBA"), 0),
    "1": (GREY.convert("1"), GREY.convert("1").convert("RGB"), 0),
    "I;16B": (Image.frombytes("I;16B", (8, 6), np.asarray(GREY).astype(">u2").__mul__(257).tobytes()), GREY.convert("RGB"), 0),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_shows_its_colours_on_white(mode: str) -> None:
    image, shown, rounding = MODES[mode]
    colours = np.asarray(shown.convert("RGBA")).astype(float)
    alpha = colours[..., 3:] / 255
    expected = colours[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(prepared(image) - expected).max() <= rounding + 0.5
    grey = np.asarray(to_channels(frame_picture(image), 1)).astype(int)
    luma = np.asarray(Image.fromarray(prepared(image).astype(np.uint8)).convert("L")).astype(int)
    assert np.abs(grey - luma).max() <= 1 + (mode == "YCbCr")


@pytest.mark.parametrize(
    ("mode", "value"), [("L", b"\0"), ("1", "x"), ("RGB", b""), ("P", (0, 0, 0)), ("I;16", (0,)), ("RGB", (1, 2))]
)
def test_a_transparent_value_of_another_kind_is_an_error(mode: str, value: Any) -> None:
    image = Image.fromarray(np.zeros((4, 4), np.uint16)) if mode == "I;16" else Image.new(mode, (4, 4))
    image.info["transparency"] = value
    with pytest.raises(ValueError, match=f"the transparent value .* fits no pixels of mode {mode}"):
        prepared(image)


def test_files_images_and_arrays_of_one_picture_are_one_tensor(tmp_path: Path) -> None:
    model = create_model("anytimenet", width=4, blocks=(2, 2, 2), scheme=(1, 1)).eval()
    model.info.input_size, model.info.resize_ratio = (3, 6, 8), 1
    for name, array in (("colour", COLOURS), ("grey", np.asarray(GREY))):
        Image.fromarray(array).save(path := tmp_path / f"{name}.png")
        read = read_image(path, (3, 6, 8))[None]
        for frame in (
            array,
            torch.from_numpy(array.copy()),
            Image.fromarray(array),
            Image.open(path),
            decoded(path.read_bytes()),
        ):
            assert torch.equal(model.prepare(frame), read)
