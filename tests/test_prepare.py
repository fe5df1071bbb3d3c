"""`model.prepare`: frames as cameras deliver them take the way of `predict` and of evaluation, bit by bit."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import anytime
from anytime import Predictor, create_model
from anytime.data import CIFAR10, CUB200, GTSRB, ImageFolder, StanfordCars, read_image
from anytime.data.decoding import read_images
from anytime.data.stream import LazyImages, StreamedBatches
from anytime.support.views import middle_view, shorten

RANDOM = np.random.default_rng(0)
FRAME = RANDOM.integers(0, 256, (48, 64, 3), dtype=np.uint8)
GREY = RANDOM.integers(0, 256, (48, 64), dtype=np.uint8)
JAGGED = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(3, 3)], layout=torch.jagged)


def model_of(size=(3, 32, 32), ratio: float = 8 / 7):
    model = create_model("anytimenet", width=4, blocks=(2, 2, 2), scheme=(1, 1), in_channels=size[0]).eval()
    model.info.input_size, model.info.resize_ratio = size, ratio
    return model


def read(path: Path, image: np.ndarray, model) -> torch.Tensor:
    Image.fromarray(image).save(path / "frame.png")
    return read_image(path / "frame.png", model.info.input_size, model.info.resize_ratio)[None]


def picture(image: np.ndarray, row: int) -> Image.Image:
    return Image.fromarray(image)


COLOUR = {
    "rows, columns, colours": lambda: FRAME,
    "colours first": lambda: FRAME.transpose(2, 0, 1),
    "colours first, contiguous": lambda: np.ascontiguousarray(FRAME.transpose(2, 0, 1)),
    "part of a larger frame": lambda: np.pad(FRAME, ((3, 2), (1, 5), (0, 0)))[3:-2, 1:-5],
    "torch": lambda: torch.from_numpy(FRAME),
    "torch, colours first": lambda: torch.from_numpy(FRAME.transpose(2, 0, 1).copy()),
    "read-only": lambda: np.frombuffer(FRAME.tobytes(), np.uint8).reshape(FRAME.shape),
}


@pytest.mark.parametrize("ratio", [1.0, 8 / 7, 0.5])
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 32, 32), (3, 20, 60), (3, 48, 64), (3, 100, 90)])
@pytest.mark.parametrize("form", COLOUR)
def test_a_frame_is_prepared_as_predict_reads_its_file(tmp_path: Path, form: str, size, ratio: float) -> None:
    model = model_of(size, ratio)
    prepared = model.prepare(COLOUR[form]())
    assert (prepared.dtype, list(prepared.shape), prepared.is_contiguous()) == (torch.float32, [1, *size], True)
    assert torch.equal(prepared, read(tmp_path, FRAME, model))
    reverse = COLOUR[form]()
    reverse = (
        reverse.flip(reverse.shape.index(3)) if isinstance(reverse, torch.Tensor) else np.flip(reverse, reverse.shape.index(3))
    )
    assert torch.equal(model.prepare(reverse, bgr=True), prepared)


@pytest.mark.parametrize("grey", [GREY, GREY[:, :, None], GREY[None], torch.from_numpy(GREY)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_frame_suits_any_model(tmp_path: Path, grey, channels: int) -> None:
    model = model_of((channels, 32, 32))
    assert torch.equal(model.prepare(grey, bgr=True), read(tmp_path, GREY, model))


@pytest.mark.parametrize("ratio", [1.0, 8 / 7])
def test_a_frame_is_prepared_as_in_evaluation(ratio: float) -> None:
    files, model = LazyImages(partial(picture, FRAME), torch.arange(1)), model_of(ratio=ratio)
    batches = StreamedBatches(files, torch.zeros(1), 1, (3, 32, 32), resize_ratio=ratio)
    (images, _), *_ = batches
    assert torch.equal(images, model.prepare(FRAME))


def test_a_frame_is_stretched_if_the_test_images_were(tmp_path: Path) -> None:
    model = model_of()
    model.info.stretched = StanfordCars.stretched
    Image.fromarray(FRAME).save(tmp_path / "frame.png")
    evaluated = read_images([tmp_path / "frame.png"], (3, 32, 32)).float() / 255  # as Stanford Cars and GTSRB are read
    assert torch.equal(model.prepare(FRAME), evaluated)
    assert torch.equal(read_image(tmp_path / "frame.png", 32, stretched=True)[None], evaluated)
    assert not torch.equal(model_of(ratio=1.0).prepare(FRAME), evaluated)
    assert (GTSRB.stretched, StanfordCars.stretched) == (True, True)
    assert (ImageFolder.stretched, CUB200.stretched, CIFAR10.stretched) == (False, False, False)


def test_evaluation_takes_the_ratio_that_a_data_set_states(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(FRAME[::-1] if number % 2 else FRAME).save(tmp_path / name / f"{number}.png")

    class Covering(anytime.data.ImageFolder):
        resize_ratio = 1.0

    data = Covering(root=tmp_path, size=32, test=2, validation=0)
    data.setup("test")
    images = torch.cat([images for images, _ in data.test_dataloader()])
    views = [model_of(ratio=1.0).prepare(np.ascontiguousarray(frame))[0] for frame in (FRAME, FRAME[::-1])]
    assert all(any(torch.equal(image, view) for view in views) for image in images)


def test_the_predictor_answers_a_prepared_frame() -> None:
    model = model_of()
    predictor = Predictor(model, anytime.profile(model, 32, repeats=1, warmup=0))
    assert predictor(model.prepare(FRAME)).step == model.num_steps


def test_the_view_is_that_of_torchvision() -> None:
    for _ in range(200):
        height, width, rows, columns = RANDOM.integers(1, 60, 4).tolist()
        ratio = float(RANDOM.choice([8 / 7, 0.5, 1.3, 2.0, 1.0001]))
        image = Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))
        resized = v2.Resize(round(max(rows, columns) * ratio))(shorten(image))
        expected = v2.CenterCrop((rows, columns))(resized)
        assert np.array_equal(np.asarray(middle_view(image, (rows, columns), ratio)), np.asarray(expected))


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (np.zeros((48, 64, 4), np.uint8), ValueError, r"got uint8 \[48, 64, 4\] from 0 to 0; drop alpha: frame\[..., :3\]$"),
        (np.zeros((4, 48, 64), np.uint8), ValueError, r"got uint8 \[4, 48, 64\] from 0 to 0; drop alpha: frame\[:3\]$"),
        (np.zeros((48, 64, 2), np.uint8), ValueError, r"1 or 3 channels, or \(H, W\), got uint8 \[48, 64, 2\] from 0 to 0$"),
        (np.zeros((1, 48, 64, 3), np.uint8), ValueError, r"got uint8 \[1, 48, 64, 3\]"),
        (np.zeros(64, np.uint8), ValueError, r"got uint8 \[64\]"),
        (np.zeros((0, 64, 3), np.uint8), ValueError, r"got uint8 \[0, 64, 3\]"),
        (np.zeros((3, 64, 3), np.uint8), ValueError, r"\(3, 64, 3\) can be read as \(H, W, C\) and as \(C, H, W\)"),
        (np.full((48, 64, 3), 255.0), TypeError, r"must be uint8, got float64 \[48, 64, 3\] from 255 to 255"),
        (torch.full((3, 48, 64), 0.5), TypeError, r"got torch.float32 \[3, 48, 64\] from 0.5 to 0.5; images in \[0, 1\] go"),
        (np.full((48, 64), np.nan), TypeError, r"got float64 \[48, 64\], 3072 of 3072 NaN or infinite$"),
        (np.zeros((48, 64, 3), np.uint16), TypeError, r"got uint16 \[48, 64, 3\]"),
        ([[1, 2]], TypeError, "a numpy array or torch tensor of uint8, or a PIL image, got list"),
        (np.full((48, 64, 3), "x"), TypeError, r"must be uint8, got <U1 \[48, 64, 3\]$"),
        (np.full((48, 64, 3), None), TypeError, r"must be uint8, got object \[48, 64, 3\]$"),
        (np.zeros((48, 64), [("red", np.uint8)]), TypeError, r"must be uint8, got \[\('red', '\|?u1'\)\] \[48, 64\]$"),
        (np.zeros((48, 64), complex), TypeError, r"must be uint8, got complex128 \[48, 64\]$"),
        (np.zeros((48, 64), "datetime64[s]"), TypeError, r"must be uint8, got datetime64\[s\] \[48, 64\]$"),
        (torch.zeros(48, 64, dtype=torch.complex64), TypeError, r"must be uint8, got torch.complex64 \[48, 64\]$"),
        (torch.zeros(48, 64, dtype=torch.uint8, device="meta"), TypeError, "values in memory, got a meta tensor"),
        (torch.zeros(48, 64, device="meta"), TypeError, "values in memory, got a meta tensor"),
        (torch.zeros(48, 64, dtype=torch.uint8).to_sparse(), TypeError, "values in memory, got a sparse_coo tensor"),
        (JAGGED, TypeError, "values in memory, got a jagged tensor"),
        (Image.new("F", (8, 8)), ValueError, "a PIL image of mode F has 32-bit pixels of unknown range"),
        (Image.new("I", (8, 8)), ValueError, "a PIL image of mode I has 32-bit pixels of unknown range"),
        (Image.new("RGB", (0, 8)), ValueError, r"a PIL image must have pixels, got size \(0, 8\)"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_what_is_no_frame_is_described(frame, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model_of().prepare(frame)


@pytest.mark.parametrize(
    "frame",
    [
        FRAME.astype(np.float32),
        FRAME.astype(np.float64) / 255,
        FRAME.astype(np.float16),
        FRAME.astype(np.uint16),
        FRAME.astype(np.int64),
        FRAME.astype(np.uint16) * 257,
        (FRAME / 255).astype(">f4"),
        FRAME.astype(">u2") * 257,
        torch.from_numpy(FRAME).float(),
        torch.from_numpy(FRAME).double() / 255,
        torch.from_numpy(FRAME).to(torch.bfloat16),
        torch.from_numpy(FRAME).int(),
        torch.from_numpy(FRAME.astype(np.uint16) * 257),
    ],
    ids=lambda frame: f"{frame.dtype} to {frame.max():g}" if isinstance(frame, np.ndarray) else str(frame.dtype),
)
def test_the_conversion_that_an_error_names_is_right(frame) -> None:
    model = model_of()
    with pytest.raises(TypeError, match=r"a frame must be uint8, got .*; convert it") as caught:
        model.prepare(frame)
    converted = eval(str(caught.value).rpartition(": ")[2], {"frame": frame, "np": np, "torch": torch})
    assert torch.equal(model.prepare(converted), model.prepare(FRAME))


@pytest.mark.parametrize("white", [1.04, 1.2])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_frame_that_interpolation_made_brighter_than_white_is_clipped(white: float, kind: Callable[[Any], Any]) -> None:
    model, frame = model_of(), kind((FRAME / 255 * white).astype(np.float32))
    with pytest.raises(TypeError, match=r"a frame must be uint8, got .*; convert it if its white is 1: ") as caught:
        model.prepare(frame)
    converted = eval(str(caught.value).rpartition(": ")[2], {"frame": frame, "np": np, "torch": torch})
    assert torch.equal(
        model.prepare(converted), model.prepare((np.clip(FRAME / 255 * white, 0, 1) * 255).round().astype(np.uint8))
    )


def test_a_mask_is_converted_to_black_and_white() -> None:
    for mask, way in (
        (GREY > 99, "frame.astype(np.uint8) * 255"),
        (torch.from_numpy(GREY) > 99, "frame.to(torch.uint8) * 255"),
    ):
        with pytest.raises(TypeError, match=r"a frame must be uint8, got .* from 0 to 1; convert it: ") as caught:
            model_of().prepare(mask)
        assert str(caught.value).endswith(way)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_a_pil_image_is_prepared_as_predict_reads_its_file(tmp_path: Path, mode: str) -> None:
    model, path = model_of(), tmp_path / ("frame.tif" if mode == "CMYK" else "frame.png")
    image = Image.fromarray(GREY.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(FRAME).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(path, exif=exif)
    expected = read_image(path, model.info.input_size, model.info.resize_ratio)[None]
    assert not torch.equal(expected, model.prepare(image))
    with Image.open(path) as stored:
        assert torch.equal(model.prepare(stored), expected)
        with pytest.raises(
            ValueError, match=f"a PIL image of mode {stored.mode} names the order of its colours: leave bgr out"
        ):
            model.prepare(stored, bgr=True)


def test_a_model_that_does_not_know_its_input_size_says_so() -> None:
    model = create_model("anytimenet", width=4, blocks=(2, 2, 2), scheme=(1, 1))
    with pytest.raises(
        ValueError, match=r"does not know the size of its images; say it: model.info.input_size = \(3, 224, 224\)"
    ):
        model.prepare(FRAME)
    model = model_of((4, 32, 32))
    with pytest.raises(ValueError, match=r"1 \(grey\) or 3 \(RGB\) channels, the model takes images of 4"):
        model.prepare(FRAME)


def test_networks_with_exits_know_the_size_that_they_were_built_for() -> None:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten(), torch.nn.Linear(64, 10)
    )
    model = anytime.attach_exits(layers, exits=["1"], input_size=8)
    assert model.prepare(FRAME).shape == (1, 3, 8, 8)
