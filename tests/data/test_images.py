import io
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from anytime.data import ImageFolder, read_image
from anytime.data.decoding import open_image, read_images, to_tensor
from anytime.data.files import read_lines, read_pickle
from anytime.data.stream import StreamedBatches
from anytime.support.views import frame_picture, to_channels


def save(path, mode="RGB", size=(40, 20)):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)
    return path


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_suits_any_model(tmp_path, mode, channels):
    image = read_image(save(tmp_path / "image.png", mode), (channels, 16, 16))
    assert image.shape == (channels, 16, 16)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_an_image_of_the_right_size_is_unchanged(tmp_path):
    path = save(tmp_path / "image.png")
    expected = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
    assert torch.equal(read_image(path, (3, 20, 40)), expected)


def test_the_centre_is_cropped(tmp_path):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (10, 0, 30, 20))
    image.save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png", (3, 20, 20)).min() == 1


def test_with_a_resize_ratio_the_view_is_that_of_streamed_test_images(tmp_path):
    path = save(tmp_path / "cat/image.png", size=(90, 70))
    save(tmp_path / "dog/other.png")
    data = ImageFolder(root=tmp_path, size=21, validation=0, test=0)
    data.setup("fit")
    trained = StreamedBatches(data.train_dataloader().images.files, torch.zeros(2), 1, (3, 21, 21))
    views = [image for images, _ in trained for image in images]
    view = read_image(path, (3, 21, 21), data.resize_ratio)
    assert data.resize_ratio == 8 / 7
    assert any(torch.equal(view, image) for image in views)


def test_the_exif_orientation_is_respected(tmp_path):
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (0, 0, 8, 8))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise: white on top
    image.save(tmp_path / "image.png", exif=exif)
    rotated = read_image(tmp_path / "image.png", (1, 16, 8))
    assert rotated[0, :8].min() == 1
    assert rotated[0, 8:].max() == 0


def test_missing_and_damaged_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.png"):
        read_image(tmp_path / "none.png", (3, 8, 8))
    Image.new("RGB", (64, 64), (9, 8, 7)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    for name, content in {"cut.png": data[: len(data) // 2], "text.png": b"no image", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged or in an unexpected format"):
            read_image(tmp_path / name, (3, 8, 8))
    with pytest.raises(ValueError, match=r"1 \(grey\) or 3 \(RGB\) channels, got \(2, 8, 8\)"):
        read_image(tmp_path / "whole.png", (2, 8, 8))


def test_16_bits_are_scaled_and_32_bits_rejected(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535)
    assert (read_image(tmp_path / "deep.png", (1, 8, 8))[0] - expected).abs().max() <= 0.5 / 255 + 1e-6
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff.*32-bit numbers \(mode F\) of unknown range"):
        read_image(tmp_path / "float.tiff", (1, 8, 8))


def streamed_view(tmp_path, name, size):
    """The image as evaluation sees it."""
    save(tmp_path / "dog/other.png")
    data = ImageFolder(root=tmp_path, size=size, validation=0, test=0)
    split = data.split("train")
    loader = StreamedBatches(split.images, split.targets, 1, (3, size, size))
    return next(iter(loader))[0][list(split.names).index(name)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_training_and_evaluation_respect_the_exif_orientation(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (21, 42, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "cat").mkdir()
    Image.fromarray(pixels).save(tmp_path / "cat/a.png", exif=exif)
    turned = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.transpose(1, 0, 2)}
    turned |= {6: pixels[::-1].transpose(1, 0, 2), 7: pixels[::-1, ::-1].transpose(1, 0, 2)}
    turned |= {8: pixels[:, ::-1].transpose(1, 0, 2)}
    upright = torch.from_numpy(turned[orientation].copy()).permute(2, 0, 1) / 255
    assert torch.equal(read_image(tmp_path / "cat/a.png", tuple(upright.shape)), upright)
    assert torch.equal(streamed_view(tmp_path, "cat/a.png", 20), read_image(tmp_path / "cat/a.png", (3, 20, 20), 8 / 7))
    assert torch.equal(read_images([tmp_path / "cat/a.png"], tuple(upright.shape))[0] / 255, upright)  # into memory


def with_alpha(mode, value, alpha):
    """An image of one colour and opacity, in one of PIL's ways to store transparency."""
    image = Image.new("RGBA", (8, 8), (value, value, value, alpha))
    if mode == "P":  # one colour of the palette is transparent
        image = Image.new("P", (8, 8), 0)
        image.putpalette([value] * 3)
        image.info["transparency"] = bytes([alpha])
    elif mode == "RGB":  # one colour is transparent
        image = Image.new("RGB", (8, 8), (value,) * 3)
        image.info["transparency"] = (value,) * 3 if alpha == 0 else (255 - value,) * 3
    elif mode == "L":
        image = Image.new("L", (8, 8), value)
        image.info["transparency"] = value if alpha == 0 else 255 - value
    elif mode != "RGBA":
        image = image.convert(mode)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_parts_show_white_everywhere(tmp_path, mode, channels):
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat/a.png"
    for alpha in (0, 255):
        image = with_alpha(mode, 0, alpha)
        image.save(path, **({"transparency": image.info["transparency"]} if "transparency" in image.info else {}))
        assert (read_image(path, (channels, 8, 8)) == (alpha == 0)).all()
        assert (streamed_view(tmp_path, "cat/a.png", 8) == (alpha == 0)).all()
    if mode in ("RGBA", "LA", "P"):
        image = with_alpha(mode, 100, 51)  # a fifth of 100 and four fifths of 255
        image.save(path, **({"transparency": image.info["transparency"]} if mode == "P" else {}))
        assert read_image(path, (channels, 8, 8)).mul(255).unique().tolist() == pytest.approx([224], abs=1)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (30_000, 3)])
def test_thin_images_are_cropped_before_they_are_resized(tmp_path, size):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "cat/a.png")
    largest = 0

    def resize(self, wanted, *arguments, original=Image.Image.resize, **more):
        nonlocal largest
        largest = max(largest, wanted[0] * wanted[1])
        return original(self, wanted, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        for view in (
            read_image(tmp_path / "cat/a.png", (3, 224, 224), 8 / 7),
            read_image(tmp_path / "cat/a.png", (3, 224, 224)),
            streamed_view(tmp_path, "cat/a.png", 224),
        ):
            assert (view.mul(255).round().amax((1, 2)) == torch.tensor([10, 20, 30])).all()
    assert 0 < largest <= 256 * 8 * 256


def test_a_thin_image_shows_its_centre(tmp_path):
    image = Image.new("RGB", (2000, 10))
    image.paste((255, 255, 255), (990, 0, 1010, 10))
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (3, 16, 16), 8 / 7).min() == 1


def test_images_of_ordinary_shape_are_resized_as_by_torchvision(tmp_path):
    image = Image.open(save(tmp_path / "a.png", size=(640, 90))).convert("RGB")
    expected = v2.Compose([v2.Resize(24), v2.CenterCrop(21)])(image)
    assert torch.equal(read_image(tmp_path / "a.png", (3, 21, 21), 8 / 7).mul(255).byte(), to_tensor(expected))


def test_images_of_too_many_pixels_are_errors(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match=r"a\.png is damaged or in an unexpected format: Image size \(1600 pixels\) exceeds"):
        read_image(tmp_path / "a.png", (3, 8, 8))


@pytest.mark.parametrize("reader", [lambda path: read_image(path, (3, 8, 8)), read_lines, read_pickle])
def test_a_pipe_is_no_file(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is damaged .*it is a pipe, a socket or a device, not an ordinary file"):
        reader(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("bits", "transparent", "row"), [(1, 1, "40"), (2, 2, "20"), (4, 10, "0a"), (8, 100, "0064"), (16, 1000, "000003e8")]
)
def test_the_transparent_grey_value_of_a_png_shows_white_at_any_depth(bits, transparent, row):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header, pixels = (
        struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0),
        zlib.compress(b"\0" + bytes.fromhex(row)),
    )  # 0, transparent
    for value, expected in ((transparent, [0, 255]), (0, [255, transparent * 255 // (2**bits - 1)])):
        rest = (b"tRNS", struct.pack(">H", value)), (b"IDAT", pixels), (b"IEND", b"")
        content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in ((b"IHDR", header), *rest))
        assert list(open_image(content, channels=1).tobytes()) == pytest.approx(expected, abs=1)
        assert list(open_image(content, channels=3).tobytes()[::3]) == pytest.approx(expected, abs=1)
        opened = Image.open(io.BytesIO(content))
        for _ in range(2):  # as a frame, and again when it is loaded
            assert to_channels(frame_picture(opened), 1).tobytes() == open_image(content, channels=1).tobytes()


def test_large_images_are_not_copied(tmp_path, monkeypatch):
    """The largest have 180 million pixels: each copy takes 700 MB, and 64 bits per pixel 1.4 GB."""
    monkeypatch.setattr(Image.Image, "copy", lambda _: pytest.fail("copied"))
    assert open_image(save(tmp_path / "image.png")).size == (40, 20)
    Image.fromarray(np.arange(1_000_000, dtype=np.uint32).astype(np.uint16).reshape(1000, 1000)).save(tmp_path / "deep.png")
    tracemalloc.start()
    try:
        image = open_image(tmp_path / "deep.png", 1)
        assert tracemalloc.get_traced_memory()[1] < 5 * 1_000_000
    finally:
        tracemalloc.stop()
    assert image.getpixel((300, 0)) == 1
