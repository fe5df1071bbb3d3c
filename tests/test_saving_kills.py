"""Saving over an earlier model: kills at every change of a file, full disks, several writers."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import anytime.models  # noqa: F401, registers all models
from anytime.model import AnytimeModel, create_model
from anytime.saving import CONFIG, WEIGHTS, read_config, read_model
from anytime.support.files import part_of
from anytime.support.locks import InUse, only_writer

SAVE: dict[str, Callable[[AnytimeModel, Path], object]] = {
    "save": lambda model, folder: model.save(folder),
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
}
Killed = Callable[[int, Path, Callable[[], object]], bool]


def small(classes: int) -> AnytimeModel:
    return create_model("anytimenet", classes, blocks=(1, 1), scheme=((1, 1),), width=2, in_channels=1)


@pytest.mark.parametrize(("way", "earlier"), [("save_pretrained", 3), ("save", None)])
def test_a_kill_leaves_the_earlier_model_or_the_new_one(way: str, earlier: int | None, tmp_path: Path, killed: Killed) -> None:
    new, found = small(5), []
    for number in range(1, 40):
        folder = tmp_path / str(number)
        if earlier:
            small(earlier).save(folder)
        if not killed(number, folder, lambda folder=folder: SAVE[way](new, folder)):  # type: ignore[misc]
            break
        if earlier or (folder / WEIGHTS).exists():
            found.append(read_model(folder).num_classes)
            assert read_config(folder)["arguments"]["num_classes"] == found[-1]
        small(4).save(folder)
        assert set(os.listdir(folder)) - {"README.md"} == {CONFIG, WEIGHTS}
        assert read_model(folder).num_classes == 4
    assert 5 < number < 39
    assert found == sorted(found)
    assert set(found) == ({earlier, 5} if earlier else {5})


@pytest.mark.parametrize("way", SAVE)
@pytest.mark.parametrize("file", [0, 1])
def test_a_full_disk_leaves_the_earlier_model(way: str, file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(3).save(tmp_path)
    before = sorted(os.listdir(tmp_path))
    written = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        SAVE[way](small(5), tmp_path)
    assert Path(caught.value.filename).parent == tmp_path
    assert read_model(tmp_path).num_classes == 3
    assert sorted(os.listdir(tmp_path)) == before


def test_a_configuration_whose_weights_never_came_is_not_read(tmp_path: Path) -> None:
    small(3).save(tmp_path)
    small(5).save(tmp_path / "other")
    digest = read_config(tmp_path)["sha256"]
    for name in (digest, "0" * 64):  # of the weights that are there, and of others
        (tmp_path / f".config.json.{name}.next").write_bytes((tmp_path / "other" / CONFIG).read_bytes())
        assert read_model(tmp_path).num_classes == 3
    small(4).save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [CONFIG, WEIGHTS, "other"]


def test_two_threads_save_in_one_folder(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def save(classes: int) -> None:
        model = small(classes)
        try:
            for _ in range(4):
                model.save(tmp_path)
        except BaseException as error:  # the test's
            errors.append(error)

    threads = [threading.Thread(target=save, args=(classes,)) for classes in (3, 5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / CONFIG).exists():
            assert read_model(tmp_path).num_classes in (3, 5)
    assert not errors
    assert sorted(os.listdir(tmp_path)) == [CONFIG, WEIGHTS]


def test_threads_have_parts_of_their_own(tmp_path: Path) -> None:
    parts = [part_of(tmp_path / "file")]
    thread = threading.Thread(target=lambda: parts.append(part_of(tmp_path / "file")))
    thread.start()
    thread.join()
    assert parts[0] != parts[1]


def test_nothing_is_saved_into_a_training(tmp_path: Path) -> None:
    outcome: list[BaseException] = []

    def save() -> None:
        try:
            small(5).save(tmp_path)
        except InUse as error:
            outcome.append(error)

    with only_writer(tmp_path, "a training", brief=False):
        small(3).save(tmp_path)  # by the training itself
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
    assert "is in use: a training" in str(outcome[0])
    assert read_model(tmp_path).num_classes == 3
