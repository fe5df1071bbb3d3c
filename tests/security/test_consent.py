"""What the user types as the name of a class is consent to import it; nothing else is."""

from __future__ import annotations

import pytest

from anytime.model import create_model
from anytime.support.trust import UntrustedName, names_from, typed_paths


def test_blocks_of_names() -> None:
    assert typed_paths(["--model", "mine.Net", "--model.head=my.heads.Head", "--epochs", "3"]) == {"mine.Net", "my.heads.Head"}
    with names_from("outer", trust=True), names_from("inner"):
        assert type(create_model("anytime.models.anytimenet.AnytimeNet")).__name__ == "AnytimeNet"
        with pytest.raises(ValueError, match="cannot be imported"):
            create_model("no.such.Model")  # trusted, so that the import is tried
    with names_from("outer"), names_from("inner", typed={"no.such.Model"}):
        with pytest.raises(ValueError, match="cannot be imported"):
            create_model("no.such.Model")
        with pytest.raises(UntrustedName):
            create_model("no.such.Other")


@pytest.mark.parametrize("flag", ["data.root", "weights", "logger", "model.pretrained", "model.init_from", "data.classes"])
@pytest.mark.parametrize("equals", [True, False])
def test_only_names_of_classes_are_consent(flag: str, equals: bool) -> None:
    typed = [f"--{flag}=downloaded.evil"] if equals else [f"--{flag}", "downloaded.evil"]
    assert typed_paths(["--model", "mine.Net", *typed]) == {"mine.Net"}


def test_nothing_typed_is_no_consent() -> None:
    assert typed_paths([]) == set()
    assert typed_paths(["--model"]) == set()


def test_names_within_typed_mappings_are_consent() -> None:
    members = '[{"model": "mine.Net", "width": 2}, {"model": "anytimenet", "pretrained": "data.v2"}]'
    assert typed_paths(["--model.members", members]) == {"mine.Net"}
    assert typed_paths(["--model.arguments={backbone: mine.Net, root: data.v2}"]) == {"mine.Net"}


def test_consent_to_one_file_says_nothing_of_others() -> None:
    with names_from("remembered", remembered=True), pytest.raises(ValueError, match="cannot be imported"):
        create_model("no.such.Model")
    with names_from("remembered", remembered=True), names_from("inner"), pytest.raises(UntrustedName):
        create_model("no.such.Model")
    assert typed_paths(["--data.root", "/x/my.photos", "--model", "mine.Net"]) == {"mine.Net"}


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["someone/kernel", "flash_attention_2", {"": "someone/kernel"}])
def test_a_file_names_no_kernel_that_transformers_downloads(key: str, value: object) -> None:
    pytest.importorskip("transformers")
    with names_from("config.json"), pytest.raises(UntrustedName, match=f"{key}.*may download and run"):
        create_model("attach", backbone="hf:vit", options={key: value}, input_size=32)
