import numpy as np
import pytest
import torch
from PIL import Image

from anytime.data import ImageFolder, read_image
from anytime.data.stream import StreamedBatches


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
    save(tmp_path / "cat/other.png")
    data = ImageFolder(root=tmp_path, size=21, validation=0, test=1)
    data.setup()
    views = [image for loader in (data.test_dataloader(),) for images, _ in loader for image in images]
    trained = StreamedBatches(data.train_dataloader().images.files, torch.zeros(1), 1, (3, 21, 21))
    views += [image for images, _ in trained for image in images]
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
