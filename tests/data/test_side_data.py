"""Published numbers about the images of a data set, in files of the published layout, and folds of a data set."""

import itertools
import zipfile

import numpy as np
import pytest
import torch

from anytime.data.side_data import read_cscores, read_human_consistency
from anytime.data.splits import folds

LABELS = np.array([3, 0, 2, 1, 0])


@pytest.fixture
def cscores(tmp_path):
    np.savez(tmp_path / "scores.npz", labels=LABELS, scores=np.array([0.1, 0.9, 0.5, 0.0, 1.0]))
    return tmp_path / "scores.npz"


def test_cscores(cscores):
    side = read_cscores(cscores)
    assert side.split == "train"
    for labels in (torch.from_numpy(LABELS), LABELS, LABELS.tolist()):
        assert side.of(labels).tolist() == [0.1, 0.9, 0.5, 0.0, 1.0]
    with pytest.raises(ValueError, match="C-scores are known for 5 images, all of the train split, but there are 4 labels"):
        side.of(torch.arange(4))
    other = torch.tensor([3, 0, 1, 2, 0])
    with pytest.raises(ValueError, match="2 of 5 labels differ, the first at position 2, 2 instead of 1"):
        side.of(other)


def test_human_consistency(tmp_path):
    counts = np.array([[50, 0, 0], [25, 25, 0], [0, 10, 40], [0, 30, 20]])
    np.save(tmp_path / "counts.npy", counts)
    np.save(tmp_path / "probs.npy", counts / counts.sum(1, keepdims=True))
    side = read_human_consistency(tmp_path / "counts.npy")
    shares = counts / 50
    wanted = [sum(p * np.log(p) for p in row if p) for row in shares]
    assert side.values.tolist() == pytest.approx(wanted)
    assert side.values.tolist() == pytest.approx(read_human_consistency(tmp_path / "probs.npy").values.tolist())
    assert side.split == "test"
    assert torch.equal(side.of(torch.tensor([0, 0, 2, 1])), side.values)
    with pytest.raises(ValueError, match=r"people agree with 25.0% of the labels"):
        side.of(torch.tensor([1, 2, 0, 1]))
    with pytest.raises(ValueError, match="known for 4 images, all of the test split, but there are 3 labels"):
        side.of(torch.arange(3))


def test_equal_human_answers_are_equally_consistent(tmp_path):
    """1, 2 and 48 answers for any three classes: their sum in the order of the classes differs by rounding."""
    counts = torch.zeros(720, 10)
    for row, classes in enumerate(itertools.permutations(range(10), 3)):
        counts[row, list(classes)] = torch.tensor([1.0, 2.0, 48.0])
    np.save(tmp_path / "counts.npy", counts.numpy())
    assert len(read_human_consistency(tmp_path / "counts.npy").values.unique()) == 1


def test_human_answers_of_a_partly_mixed_order_are_of_other_images(tmp_path):
    """In the official order people disagree with 0.8 % of the labels; half an order is no order."""
    labels = torch.arange(1000) % 10
    np.save(tmp_path / "counts.npy", np.eye(10)[labels.numpy()] * 50)
    side = read_human_consistency(tmp_path / "counts.npy")
    few = labels.clone()
    few[:10] = (few[:10] + 1) % 10
    assert torch.equal(side.of(few), side.values)
    mixed = labels.clone()
    mixed[600:] = (mixed[600:] + 1) % 10
    with pytest.raises(ValueError, match=r"people agree with 60.0% .* with at least 95%"):
        side.of(mixed)


def test_damaged_files_are_named(tmp_path, cscores):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere"):
        read_cscores(tmp_path / "nowhere.npz")
    cscores.write_bytes(cscores.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"scores\.npz is damaged"):
        read_cscores(cscores)
    for name, arrays in {
        "lengths": {"labels": LABELS, "scores": np.zeros(4)},
        "range": {"labels": LABELS, "scores": np.full(5, 2.0)},
        "lacks": {"labels": LABELS},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=f"{name}.npz is damaged or in an unexpected format"):
            read_cscores(tmp_path / f"{name}.npz")
    for name, answers in {"vector": np.zeros(3), "negative": -np.ones((2, 2)), "none": np.zeros((2, 2))}.items():
        np.save(tmp_path / f"{name}.npy", answers)
        with pytest.raises(ValueError, match=f"{name}.npy is damaged or in an unexpected format"):
            read_human_consistency(tmp_path / f"{name}.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects\.npy is damaged .*: it holds Python objects"):
        read_human_consistency(tmp_path / "objects.npy")
    np.savez(tmp_path / "objects.npz", labels=np.array([{}], dtype=object), scores=np.zeros(1))
    with pytest.raises(ValueError, match=r"objects\.npz is damaged .*: it holds Python objects"):
        read_cscores(tmp_path / "objects.npz")
    with pytest.raises(ValueError, match=r"lacks\.npz is damaged .*: it holds no scores$"):
        read_cscores(tmp_path / "lacks.npz")


def test_files_of_another_kind_are_said(tmp_path, cscores):
    """numpy advises to load them with allow_pickle, which would run their code."""
    np.save(tmp_path / "one.npy", np.zeros((2, 2)))
    (tmp_path / "text").write_text("counts of people\n")
    (tmp_path / "empty").touch()
    with zipfile.ZipFile(tmp_path / "bytes.npz", "w") as archive:
        archive.writestr("labels", "3 0 2")
        archive.writestr("scores", "0.1 0.9 0.5")
    for read, name, message in (
        (read_cscores, "one.npy", "it must be an .npz file of numpy, not an .npy file"),
        (read_human_consistency, cscores.name, "it must be an .npy file of numpy, not an .npz file"),
        (read_cscores, "bytes.npz", "its labels, scores must be an array"),
        (read_cscores, "text", "it must be an .npz file of numpy, and its beginning is not"),
        (read_human_consistency, "text", "it must be an .npy file of numpy, and its beginning is not"),
        (read_human_consistency, "empty", "it must be an .npy file of numpy, and its beginning is not"),
    ):
        with pytest.raises(ValueError, match=f"{name} is damaged or in an unexpected format: {message}"):
            read(tmp_path / name)


@pytest.mark.parametrize(("count", "k"), [(23, 4), (40, 10), (7, 7), (100, 3)])
def test_folds_hold_out_each_sample_once_and_each_class_in_equal_shares(count, k):
    labels = torch.arange(count) % 3
    found = folds(labels, k, seed=1)
    assert sorted(i for _, held_out in found for i in held_out.tolist()) == list(range(count))
    sizes = [len(held_out) for _, held_out in found]
    assert max(sizes) - min(sizes) <= 1
    for train, held_out in found:
        assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(count))
        for label in range(3):
            share = int((labels == label).sum()) / k
            assert abs(int((labels[held_out] == label).sum()) - share) < 2
    assert [h.tolist() for _, h in folds(labels, k, seed=1)] == [h.tolist() for _, h in found]


def test_folds_keep_groups_together():
    labels = torch.arange(60) // 20
    groups = torch.arange(60) // 4
    for _, held_out in folds(labels, 5, groups=groups):
        assert len(held_out) == 12
        assert len(groups[held_out].unique()) == 3
    with pytest.raises(ValueError, match="2 groups of these sizes fill only 2 of 3 folds"):
        folds(torch.zeros(10, dtype=torch.int64), 3, groups=torch.arange(10) // 5)
