"""What the user types as the name of a class is consent to import it; nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from anytime.model import create_model
from anytime.support.names import import_object
from anytime.support.trust import UntrustedName, names_from, typed_paths
from anytime.training.foreign import check_foreign


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


@pytest.mark.parametrize(
    "options",
    [
        {"vision_config": {"_attn_implementation": "someone/kernel"}},
        {"sub": [{"attn_implementation": "someone/kernel"}]},
        {"sub": {"backbone": "hf-hub:someone/net"}},
        {"use_kernels": True},
        {"architecture": "resnet18", "model_args": {"checkpoint_path": "/evil.pth"}},
    ],
)
def test_a_file_names_no_code_or_file_at_any_depth(options: dict[str, object]) -> None:
    pytest.importorskip("transformers")
    with names_from("config.json"), pytest.raises(UntrustedName, match="may download and run"):
        create_model("attach", backbone="hf:vit", options=options, input_size=32)


def test_names_of_timm_go_through_our_own_checks() -> None:
    pytest.importorskip("transformers")
    for options in ({}, {"architecture": "hf-hub:someone/net"}, {"model_args": {"checkpoint_path": "x.pth"}}):
        with pytest.raises(ValueError, match="hf:timm_wrapper hands names to timm unchecked; use timm:NAME"):
            create_model("attach", backbone="hf:timm_wrapper", options=options, input_size=32)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"arguments": {"backbone": "torchvision:resnet18", "pretrained": True}}, "pretrained"),
        ({"members": [["attach", {"pretrained": True}]]}, "pretrained"),
        ({"backbone": "hf:someone/net"}, "hf:someone/net"),
        ({"backbone": "hf:net-of-someone"}, "hf:net-of-someone"),
    ],
)
def test_resuming_uses_no_network_at_any_depth(arguments: dict[str, object], named: str) -> None:
    model = {"class_path": "any", "init_args": arguments}
    with pytest.raises(UntrustedName, match=f"theirs sets model ... {named}, which uses the network"):
        check_foreign({"model": model}, Path("theirs"))
    model["init_args"] = {"backbone": "timm:x", "pretrained": False}
    check_foreign({"model": model}, Path("theirs"))


@pytest.mark.parametrize("path", ["x", '["x"]', "a b.c", "mine.Net()", "../mine.Net", "anytime./tmp/mine.Net"])
def test_what_is_no_import_path_is_never_imported(path: str) -> None:
    with names_from("outer", trust=True), pytest.raises(ValueError, match="it is no import path"):
        import_object(path, "loss")
