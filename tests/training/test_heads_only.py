"""Training only the heads: which parts are heads, what stays unchanged, features that are kept in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from anytime.model import create_model
from anytime.models.surgery.attach.build import attach_exits
from anytime.objectives import Weighted
from anytime.training import HeadsOnly
from anytime.training.build import build
from anytime.training.config import UsageError, parse
from anytime.training.module import AnytimeModule
from anytime.training.regimes.freezing import find_heads
from anytime.training.regimes.heads_only import CachedFeatures
from anytime.training.schedules import Constant

SIZE = (1, 8, 8)


# Heads


def test_heads_are_found_by_convention_or_by_head_names(exits: Any, chain: Any) -> None:
    plain = exits().backbone
    assert list(find_heads(exits())) == ["heads"]
    assert list(find_heads(chain())) == ["head"]
    assert list(find_heads(chain(head_names=("layers.2", "head")))) == ["layers.2", "head"]
    assert list(find_heads(create_model("boosted", base="anytimenet", arguments={"width": 4}))) == ["model.head"]
    assert list(find_heads(create_model("cascaded_densenet", layers=(1, 1), growth=2))) == ["network.head"]
    assert list(find_heads(create_model("ann", units=1, width=2))) == ["heads"]  # its norms are identities
    assert list(find_heads(create_model("ann_densenet169"))) == ["norms", "heads"]
    members = tuple({"model": "ann", "arguments": {"units": n, "width": 2, "period": n}} for n in (1, 2))
    assert len(find_heads(create_model("eann", members=members))) == 2
    with pytest.raises(ValueError, match=r"heads of Chain are not known: it has no part.*head_names = \('classifier',\)"):
        find_heads(chain(head_names=()))
    with pytest.raises(ValueError, match=r"those found \(heads\) have no parameters; give it more than one answer"):
        find_heads(attach_exits(plain, 1, 10, input_size=SIZE))
    with pytest.raises(ValueError, match=r"Chain.head_names is \('fc',\), but .*fc"):
        find_heads(chain(head_names=("fc",)))


# Heads only


@pytest.mark.parametrize("cache", ["auto", "float32", "none"])
def test_heads_only_leaves_the_trunk_unchanged(
    exits: Any, train: Any, watch: Any, cache: Any, tmp_path: Path, capsys: Any
) -> None:
    model = exits(head="conv")
    changed, names = watch(model), set(model.state_dict())
    train(model, HeadsOnly(cache), tmp_path)
    assert changed() == {name for name in names if name.startswith("heads.")}  # including the heads' batch statistics
    assert all(p.requires_grad for p in model.parameters())
    kept = {"auto": "96 x 1,044 bytes of features in float16", "float32": "96 x 2,088 bytes of features in float32"}
    said = capsys.readouterr().err
    assert kept[cache] in said if cache in kept else not said


def test_heads_of_a_model_without_features_to_keep(train: Any, watch: Any, tmp_path: Path) -> None:
    model = create_model("anytimenet", 10, in_channels=1, blocks=(1, 2), scheme=((1, 1), (0, 1)), width=4)
    model.set_normalization([0.3], [0.3])
    changed = watch(model)
    train(model, HeadsOnly(), tmp_path)
    assert changed() == {"head.weight", "head.bias"}
    with pytest.raises(
        ValueError, match="cache='float16' needs a model with trunk_features and head_answers, which AnytimeNet"
    ):
        train(model, HeadsOnly("float16"), tmp_path / "other")


def test_cached_in_float32_without_augmentation_the_training_is_the_same(
    exits: Any, digits: Any, train: Any, tmp_path: Path
) -> None:
    models = {cache: exits() for cache in ("float32", "none")}
    for cache, model in models.items():
        train(model, HeadsOnly(cache), tmp_path / cache, data=digits(augment="none"))  # type: ignore[arg-type]
    for name, value in models["none"].state_dict().items():
        assert torch.allclose(value, models["float32"].get_parameter(name) if "heads" in name else value, atol=1e-6), name


def test_views_of_the_cache_are_the_image_and_its_augmentations(exits: Any, digits: Any) -> None:
    """With as many views as epochs, all but the first epoch are those of a training without the cache."""
    model, data = exits(), digits()
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    regime = HeadsOnly("float32", views=3)
    module = AnytimeModule(model, Weighted(), torch.optim.SGD, Constant(), regime=regime)
    trainer.strategy.connect(module)
    cached = regime.data(module, data)
    assert isinstance(cached, CachedFeatures)
    cached.trainer = trainer
    loader, plain = cached.train_dataloader(), digits(augment="none").train_dataloader()
    for epoch, images in ((0, plain), (1, data.train_dataloader()), (2, data.train_dataloader()), (3, plain)):
        loader.set_epoch(epoch)
        images.set_epoch(epoch)
        for (features, target), (batch, labels) in zip(loader, images, strict=True):
            assert torch.equal(target, labels)
            for h, expected in zip(features, model.trunk_features(batch), strict=True):
                assert torch.allclose(h, expected, atol=1e-6)


def test_cached_epochs_never_run_the_trunk(exits: Any, digits: Any, train: Any, tmp_path: Path) -> None:
    model, runs = exits(), []
    model.backbone.stem.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    train(model, HeadsOnly(), tmp_path, epochs=5, data=digits(validation=0))
    assert len(runs) == 2  # one batch to learn the size, one of all 96 images
    assert not any(runs)


def test_features_that_do_not_fit(exits: Any, train: Any, watch: Any, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(
        ValueError, match=r"96 x 1,044 bytes of features in float16, 9.33e-05 GiB, do not fit into memory=1e-06 GiB"
    ):
        train(exits(), HeadsOnly("float16", memory=1e-6), tmp_path / "a")
    model = exits()
    changed = watch(model)
    train(model, HeadsOnly("auto", memory=1e-6), tmp_path / "b")
    assert "do not fit into memory=1e-06 GiB; every batch passes the trunk" in capsys.readouterr().err
    assert {name.partition(".")[0] for name in changed()} == {"heads"}
    large = exits()
    nn.init.constant_(large.backbone.stem.bias, 1e6)
    with pytest.raises(ValueError, match=r"too large for float16, or not finite; use cache='bfloat16' or 'float32'"):
        train(large, HeadsOnly("float16"), tmp_path / "c")


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_a_trunk_in_train_mode_is_refused(exits: Any, train: Any, each: Any, cache: Any, tmp_path: Path) -> None:
    def spoil(module: AnytimeModule, _: Any) -> None:
        module.model.backbone.blocks[1].train()  # type: ignore[union-attr,index]

    with pytest.raises(ValueError, match=r"trunk is frozen, but 4 of its modules are in train mode \(first: Block\)"):
        train(exits(), HeadsOnly(cache), tmp_path, callbacks=[each(spoil)])


def test_additive_exits_train_only_their_heads(exits: Any, train: Any, watch: Any, tmp_path: Path) -> None:
    model = exits(additive=True)
    changed, names = watch(model), set(model.state_dict())
    train(model, HeadsOnly("float32"), tmp_path)
    assert changed() == {name for name in names if name.startswith("heads.")}


def test_heads_on_a_random_trunk_are_said(exits: Any, tmp_path: Path) -> None:
    data = ["--data=digits", "--data.limit=96", "--regime=heads_only"]
    flags = ["--model=anytimenet", "--model.width=4", *data]
    sentence = "the heads of anytimenet are trained on a trunk of random weights, which stays as it is; give --weights RUN"
    with pytest.warns(UserWarning, match=sentence):
        build(parse(flags))
    build(parse(flags), filled_later=True)
    name, gone = exits().config["arguments"]["backbone"], str(tmp_path / "gone.pt")
    inner = json.dumps({"backbone": name, "exits": 2, "input_size": [1, 8, 8], "pretrained": gone})
    with pytest.raises(FileNotFoundError, match=r"no weights at .*gone\.pt"):
        build(parse(["--model=zero_time_waste", "--model.base=attach", f"--model.arguments={inner}", *data]))


def test_weights_are_read_when_a_training_starts_but_not_when_it_resumes(exits: Any, tmp_path: Path) -> None:
    name = exits().config["arguments"]["backbone"]
    flags = ["--model=attach", f"--model.backbone={name}", "--model.exits=2", "--data=digits", "--data.limit=96"]
    with pytest.raises(
        UsageError, match=r"heads need a trained network, but this one has no weights: give --model\.pretrained FILE"
    ):
        build(parse([*flags, "--regime=heads_only"]))
    config = parse([*flags, "--regime=heads_only", f"--model.pretrained={tmp_path / 'gone.pt'}"])
    with pytest.raises(FileNotFoundError, match=r"no weights at .*gone\.pt"):
        build(config)
    job = build(config, filled_later=True)
    assert job.model.info.recipe["model"]["init_args"]["pretrained"] == str(tmp_path / "gone.pt")
