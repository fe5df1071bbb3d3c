import pickle

import numpy as np
import pytest
import torch

from anytime.data import CIFAR10, CIFAR100, default_root

RANDOM = np.random.default_rng(0)


def write_binary(root, per_file=20):
    """Writes both CIFAR sets in the official binary layout; returns labels and pixels of CIFAR-10's training split."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    written = []
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        labels = np.arange(per_file, dtype=np.uint8) % 10
        pixels = RANDOM.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        np.hstack([labels[:, None], pixels]).tofile(folder / f"{name}.bin")
        written.append((labels, pixels))
    folder = root / "cifar-100-binary"
    folder.mkdir()
    for name in ("train", "test"):
        fine = np.arange(100, dtype=np.uint8)
        pixels = RANDOM.integers(0, 256, (100, 3072), dtype=np.uint8)
        np.hstack([fine[:, None] // 5, fine[:, None], pixels]).tofile(folder / f"{name}.bin")
    labels, pixels = map(np.concatenate, zip(*written[:5], strict=True))
    return labels, pixels.reshape(-1, 3, 32, 32)


def write_pickled(root, content=None):
    """Writes CIFAR-10 in torchvision's layout, pickled like the official files."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = RANDOM.integers(0, 256, (10, 3072), dtype=np.uint8)
        batch = content or {"data": data, "labels": list(range(10)), "filenames": [b"a.png"] * 10}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def test_binary_layout(tmp_path):
    labels, pixels = write_binary(tmp_path)
    data = CIFAR10(root=tmp_path, validation=0, augment="none", batch_size=100)
    data.setup()
    images, targets = data.train_dataloader().images, data.train_dataloader().targets
    assert torch.equal(images, torch.from_numpy(pixels))
    assert targets.tolist() == labels.tolist()
    assert data.class_names[3] == "cat"
    assert (data.input_size, data.num_classes, data.levels) == ((3, 32, 32), 10, ())
    assert np.allclose(data.mean, pixels.mean((0, 2, 3)) / 255, atol=1e-12)
    assert np.allclose(data.std, pixels.std((0, 2, 3)) / 255, atol=1e-12)
    assert data.val_dataloader() == []
    assert len(data.test_dataloader().targets) == 20


def test_pickled_layout(tmp_path):
    folder = write_pickled(tmp_path)
    batch = pickle.loads((folder / "data_batch_2").read_bytes())
    data = CIFAR10(root=tmp_path, validation=0)
    data.setup()
    images = data.train_dataloader().images
    assert torch.equal(images[10:20], torch.from_numpy(batch["data"]).view(10, 3, 32, 32))
    assert data.train_dataloader().targets.tolist() == list(range(10)) * 5


def test_pickled_cifar100(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    batch = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [7, 99], "coarse_labels": [1, 19]}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    data = CIFAR100(labels="both", root=tmp_path, validation=0)
    assert data.test_dataloader().targets.tolist() == [[7, 1], [99, 19]]


class Malicious:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize("content", [Malicious(), {"data": Malicious(), "labels": [0]}])
def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys, content):
    write_pickled(tmp_path, content)
    with pytest.raises(ValueError, match=r"data_batch_1 .*it would run .*print, which no data file needs"):
        CIFAR10(root=tmp_path).setup()
    assert capsys.readouterr().out == ""


def test_label_levels(tmp_path):
    write_binary(tmp_path)
    fine, coarse, both = (CIFAR100(labels, root=tmp_path, validation=0) for labels in ("fine", "coarse", "both"))
    for data in (fine, coarse, both):
        data.setup()
    assert fine.test_dataloader().targets.tolist() == list(range(100))
    assert coarse.test_dataloader().targets.tolist() == [i // 5 for i in range(100)]
    assert both.test_dataloader().targets.tolist() == [[i, i // 5] for i in range(100)]
    assert (fine.num_classes, coarse.num_classes, both.num_classes) == (100, 20, 120)
    assert both.levels == (100, 20)
    assert both.class_names == fine.class_names + coarse.class_names
    _, targets = next(iter(both.test_dataloader()))
    assert targets.shape == (100, 2)


def test_classes_are_renumbered_on_every_level(tmp_path):
    write_binary(tmp_path)
    data = CIFAR100("both", root=tmp_path, validation=0, classes=["apple", "*tree", "Aquarium_Fish"])
    data.setup()
    assert data.class_names[:3] == ["apple", "aquarium_fish", "maple_tree"]
    assert data.levels == (7, len(data.class_names) - 7)
    targets = data.test_dataloader().targets
    assert targets[:, 0].tolist() == list(range(7))
    assert sorted(targets[:, 1].unique().tolist()) == list(range(data.levels[1]))
    assert [data.class_names[7:][i] for i in targets[:2, 1]] == ["aquatic_mammals", "aquatic_mammals"]


def test_wrong_level():
    with pytest.raises(ValueError, match="'fine', 'coarse' or 'both', got 'medium'"):
        CIFAR100(labels="medium")


def test_a_missing_set_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"cifar-10-batches-bin or .*{tmp_path}.*--data.download true"):
        CIFAR10(root=tmp_path).setup()
    with pytest.raises(FileNotFoundError, match=rf"there is no folder {tmp_path}/none"):
        CIFAR10(root=tmp_path / "none").setup()
    write_binary(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin"):
        CIFAR10(root=tmp_path).setup()


def test_damaged_files_are_named(tmp_path):
    write_binary(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    content = path.read_bytes()
    for damaged in (content[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data_batch_2\.bin .*records of 3073; it may be truncated"):
            CIFAR10(root=tmp_path).setup()
    path.write_bytes(b"\x0a" + content[1:])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin: label 10 is outside 0\.\.9"):
        CIFAR10(root=tmp_path).setup()


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.zeros((10, 3072), np.uint8)},
        {"data": np.zeros((9, 3072), np.uint8), "labels": list(range(10))},
        {"data": np.zeros((10, 3072), np.float32), "labels": list(range(10))},
        ["no dictionary"],
    ],
)
def test_damaged_pickles_are_named(tmp_path, content):
    write_pickled(tmp_path, content)
    with pytest.raises(ValueError, match="data_batch_1 is damaged"):
        CIFAR10(root=tmp_path).setup()


def test_truncated_pickle(tmp_path):
    path = write_pickled(tmp_path) / "test_batch"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="test_batch is damaged"):
        CIFAR10(root=tmp_path).setup()


def test_download_is_left_to_torchvision(tmp_path, monkeypatch):
    asked = []

    def download(root, download):
        asked.append((root, download))
        write_pickled(root)

    download.url = "https://example.org/cifar-10.tar.gz"  # as torchvision's class has one
    monkeypatch.setattr("torchvision.datasets.CIFAR10", download)
    CIFAR10(root=tmp_path, download=True).setup()
    assert asked == [(tmp_path, True)]


@pytest.mark.skipif(not CIFAR10.found(), reason=f"no CIFAR-10 in {default_root()}")
def test_the_real_cifar10():
    data = CIFAR10()
    data.setup()
    train, validation, test = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert (train.size, validation.size, test.size) == (45_000, 5_000, 10_000)
    assert torch.bincount(validation.targets).tolist() == [500] * 10
    assert torch.bincount(test.targets).tolist() == [1000] * 10
    assert np.allclose(data.mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    assert np.allclose(data.std, [0.2470, 0.2435, 0.2616], atol=2e-3)
