"""Files that are larger than a network needs are not read; those of real networks are, and consent lifts the limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import anytime
from anytime.model import create_model
from anytime.pretrained import chain_networks
from anytime.saving import CONFIG, ModelInfo
from anytime.support.documents import TooLarge, parse_json, parse_yaml
from anytime.support.trust import names_from
from anytime.training.config import UsageError, read_recipe
from anytime.training.launch import resume_training
from anytime.training.rundir import check_new, read_run

ANN: dict[str, Any] = {"units": 1, "width": 2, "in_channels": 1}
NAMES = tuple(f"class {i}, with {'some' * 8} words" for i in range(10_000))


def sparse(path: Path, size: int = 2**36) -> Path:
    """A file of 64 GiB that takes no space; reading it would take all memory."""
    path.touch()
    os.truncate(path, size)
    return path


def test_a_sequence_of_many_networks_with_many_classes_loads(tmp_path: Path) -> None:
    for units in range(1, 11):
        model = create_model("ann", len(NAMES), **ANN | {"units": units})
        model.info = ModelInfo(data="Mine", input_size=(1, 8, 8), class_names=NAMES)
        model.save(tmp_path / str(units))
    chain_networks([tmp_path / str(units) for units in range(1, 11)]).save(tmp_path / "chain")
    assert anytime.load(tmp_path / "chain").info.class_names == NAMES


def test_a_long_recipe_needs_consent(tmp_path: Path) -> None:
    text = yaml.safe_dump({"model": "ann", "data": {"class_path": "ImageFolder", "init_args": {"root": "x" * 500_000}}})
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"more than 500,000; if you trust this file, use trust=True, or --trust"):
        read_recipe(tmp_path / "r.yaml")
    with names_from("r.yaml", remembered=True):
        assert len(read_recipe(tmp_path / "r.yaml")["data"]["init_args"]["root"]) == 500_000


def test_consent_lifts_the_number_of_values() -> None:
    for parse, text in ((parse_json, "[" + "1," * 100_001 + "1]"), (parse_json, "[" + "[]," * 100_001 + "1]")):
        with pytest.raises(TooLarge, match="holds more than 100,000 values; if you trust this file"):
            parse(text, "a file")
        with names_from("a file", trust=True):
            assert len(parse(text, "a file")) == 100_002
    with names_from("a file"), pytest.raises(TooLarge):
        parse_yaml("a" * 500_001, "a file")


def test_documents_without_end_are_not_read(tmp_path: Path) -> None:
    create_model("ann", 3, **ANN).save(tmp_path)
    sparse(tmp_path / CONFIG)
    with pytest.raises(ValueError, match=r"config\.json has 68,719,476,736 bytes, more than 33,554,432; if you trust"):
        anytime.load(tmp_path)
    with pytest.raises(ValueError, match=r"profile\.json has 68,719,476,736 bytes"):
        anytime.Profile.load(sparse(tmp_path / "profile.json"))
    with pytest.raises(UsageError, match=r"config\.yaml has 68,719,476,736 bytes"):
        read_recipe(sparse(tmp_path / "config.yaml"))
    with pytest.raises(ValueError, match=r"config\.yaml has 68,719,476,736 bytes"):
        resume_training(tmp_path)
    sparse(tmp_path / "run.json")
    with pytest.raises(UsageError, match=r"run\.json is not of this library"):
        check_new(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match=r"run\.json has 68,719,476,736 bytes"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (None, "it has 68,719,476,736 bytes, its header describes [0-9,]{4,7}$"),
        (b"", "its header is damaged"),
        (b"\xff" * 8, "its header has more than 2,000,000 bytes"),
        (b"\x02" + b"\0" * 7 + b"[]", "has no attribute"),
    ],
)
def test_weights_without_end_are_not_read(start: bytes | None, message: str, tmp_path: Path) -> None:
    create_model("ann", 3, **ANN).save(tmp_path)
    if start is not None:
        (tmp_path / "model.safetensors").write_bytes(start)
    sparse(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors is damaged: .*{message}"):
        anytime.load(tmp_path)
