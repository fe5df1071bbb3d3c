import numpy as np
import pytest
import torch
from torch.nn import functional

from anytime.data import hashing
from anytime.data.augment import crop_and_flip, random_crop, random_flip


def images(number: int, size: int = 6) -> torch.Tensor:
    return torch.randint(1, 256, (number, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_splitmix64_reference_values():
    # The first outputs for seed 0 of Vigna's splitmix64.c.
    state = torch.tensor([0, 0x9E3779B97F4A7C15 - 2**64])
    assert [value % 2**64 for value in hashing.splitmix64(state).tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_keys_depend_on_every_word_and_on_nothing_else():
    index = torch.arange(1000)
    keys = hashing.keys(index, 1, 2)
    assert len(keys.unique()) == 1000
    assert torch.equal(hashing.keys(index[500:], 1, 2), keys[500:])
    for words in [(2, 1), (1, 3), (0, 2), (1,), (-1, 2**70)]:
        assert not torch.equal(hashing.keys(index, *words), keys)


def test_randint_is_uniform_and_salts_are_independent():
    keys = hashing.keys(torch.arange(90_000), 0)
    pairs = hashing.randint(keys, 9, 1) * 9 + hashing.randint(keys, 9, 2)
    counts = torch.bincount(pairs, minlength=81).double()
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_square < 125  # exceeded with probability 0.1 % at 80 degrees of freedom


def test_permutation():
    assert hashing.permutation(1000, 1, 2).sort().values.equal(torch.arange(1000))
    assert not hashing.permutation(1000, 1, 2).equal(hashing.permutation(1000, 1, 3))


def test_crops_are_windows_of_the_padded_image():
    batch, padding = images(200), 2
    crops = random_crop(batch, hashing.keys(torch.arange(200), 0), padding)
    padded = functional.pad(batch, [padding] * 4)
    positions = set()
    for image, crop in zip(padded, crops, strict=True):
        here = [(y, x) for y in range(5) for x in range(5) if torch.equal(image[:, y : y + 6, x : x + 6], crop)]
        assert len(here) == 1
        positions.update(here)
    assert len(positions) == 25


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crops_of_the_mirrored_image(dtype):
    batch, keys = images(100).to(dtype)[..., :5], hashing.keys(torch.arange(100), 0)
    crops = random_crop(batch, keys, 3, "reflect")
    assert crops.dtype == dtype
    padded = np.pad(batch.numpy(), [(0, 0), (0, 0), (3, 3), (3, 3)], "reflect")
    # The positions are those of the black padding.
    rows, columns = hashing.randint(keys, 7, 1).tolist(), hashing.randint(keys, 7, 2).tolist()
    for image, crop, y, x in zip(padded, crops.numpy(), rows, columns, strict=True):
        assert np.array_equal(image[:, y : y + 6, x : x + 5], crop)
    assert torch.equal(crop_and_flip(3, False, "reflect")(batch, keys), crops)
    assert torch.equal(random_crop(batch, keys, 3), random_crop(batch, keys, 3, "zeros"))


def test_wrong_padding():
    batch, keys = images(2), hashing.keys(torch.arange(2), 0)
    with pytest.raises(ValueError, match="padding_mode must be 'zeros' or 'reflect', got 'mirror'"):
        random_crop(batch, keys, 2, "mirror")
    with pytest.raises(ValueError, match="to mirror the image, padding must be below its size, 6, got 6"):
        random_crop(batch, keys, 6, "reflect")


def test_half_of_the_images_are_mirrored():
    batch = images(1000)
    flipped = random_flip(batch, hashing.keys(torch.arange(1000), 0))
    mirrored = (flipped == batch.flip(-1)).flatten(1).all(1)
    same = (flipped == batch).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 440 < mirrored.sum() < 560


def test_augmentation_of_a_sample_does_not_depend_on_its_batch():
    batch, keys = images(10), hashing.keys(torch.arange(10), 0)
    augment = crop_and_flip(2, True)
    assert torch.equal(augment(batch, keys)[3:5], augment(batch[3:5], keys[3:5]))
    assert crop_and_flip(0, False) is None
