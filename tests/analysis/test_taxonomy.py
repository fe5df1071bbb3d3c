"""Label levels per step: errors, choice, answers in words; and the superclass of errors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anytime
from anytime.analysis import curves
from anytime.analysis.taxonomy import compliance, compliance_courses, level_accuracies, level_errors
from anytime.data.sets.cifar import CIFAR100_SUPERCLASS
from anytime.data.taxonomy import from_paths
from anytime.stopping.levels import LevelChoice, answer_text, choose_levels, chosen_accuracy, highest_target
from anytime.trace import Trace

NAMES = ("albatross", "petrel", "gull", "owl", "seabird", "other bird")


def made(said: list[list[list[int]]], labels: list[list[int]], levels: list[int], names: Sequence[str] = ()) -> Trace:
    """A trace whose answers to sample n at step t are the classes `said[t][n]`, one for each level."""
    answers = torch.tensor(said)
    logits = torch.cat([torch.nn.functional.one_hot(answers[..., d], size) for d, size in enumerate(levels)], 2).float()
    several = len(levels) > 1
    return Trace(
        logits=logits,
        labels=torch.tensor(labels) if several else torch.tensor(labels)[:, 0],
        macs=torch.arange(1, len(said) + 1),
        contract_macs=None,
        seconds=None,
        class_names=tuple(names) or tuple(map(str, range(sum(levels)))),
        meta={"levels": levels} if several else {},
    )


@pytest.fixture
def birds() -> Trace:
    """Number of 4 samples that are right at the finest level: 1, 2, 4; at the coarser one: 3, 4, 3."""
    labels = [[0, 0], [1, 0], [2, 0], [3, 1]]
    said = [
        [[0, 0], [0, 0], [0, 0], [0, 0]],
        [[0, 0], [1, 0], [1, 0], [0, 1]],
        [[0, 0], [1, 0], [2, 1], [3, 1]],
    ]
    return made(said, labels, [4, 2], NAMES)


def test_errors_per_step_and_level(birds: Trace) -> None:
    assert level_accuracies(birds).tolist() == [[0.25, 0.75], [0.5, 1.0], [1.0, 0.75]]
    assert level_errors(birds).tolist() == [[0.75, 0.25], [0.5, 0.0], [0.0, 0.25]]
    for level in (0, 1):
        assert torch.equal(level_errors(birds)[:, level], curves.error(birds.level(level)))
    assert torch.equal(level_errors(birds.level(0))[:, 0], curves.error(birds.level(0)))


def test_choice(birds: Trace) -> None:
    assert highest_target(birds) == 0.75
    assert highest_target(birds.level(0)) == 0.25
    choice = choose_levels(birds, 0.75)
    assert choice == LevelChoice((4, 2), (1, 1, 0), 0.75, (0.75, 1.0, 1.0))
    assert chosen_accuracy(birds, choice).tolist() == [0.75, 1.0, 1.0]
    assert choose_levels(birds, 0.3).steps == (1, 0, 0)
    assert choose_levels(birds, 0.25).steps == (0, 0, 0)
    assert choose_levels(birds.level(0), 0.25).sizes == (4,)


def test_targets_out_of_reach(birds: Trace) -> None:
    message = (
        r"no label level reaches an accuracy of 0\.9 at step 1: the nearest is level 1 of 2 classes with 0\.75; every .* 0\.75"
    )
    with pytest.raises(ValueError, match=message):
        choose_levels(birds, 0.9)
    for target in (0, 1.5, math.nan):
        with pytest.raises(ValueError, match=rf"accuracy in \(0, 1\], got {target}"):
            choose_levels(birds, target)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.floats(0.01, 1))
def test_the_finest_sufficient_level_is_chosen(seed: int, target: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    said = torch.stack([torch.randint(size, (3, 7), generator=generator) for size in (4, 3, 2)], 2)
    trace = made(said.tolist(), [[0, 0, 0]] * 7, [4, 3, 2])
    reached = level_accuracies(trace)
    if target > highest_target(trace):
        with pytest.raises(ValueError, match="no label level reaches"):
            choose_levels(trace, target)
        return
    choice = choose_levels(trace, target)
    assert bool((chosen_accuracy(trace, choice) >= target).all())
    assert chosen_accuracy(trace, choice).tolist() == list(choice.accuracy)
    for step, level in enumerate(choice.steps):
        assert bool((reached[step, :level] < target).all())


def test_a_choice_for_another_trace(birds: Trace) -> None:
    choice = choose_levels(birds, 0.75)
    with pytest.raises(ValueError, match=r"choice is for 3 steps and levels \(4, 2\), the trace has 3 and \(4,\)"):
        chosen_accuracy(birds.level(0), choice)
    with pytest.raises(ValueError, match=r"choice is for 1 steps"):
        chosen_accuracy(birds, LevelChoice((4, 2), (0,), 0.5, (0.5,)))


def test_choice_is_saved_with_the_model(tmp_path: Path) -> None:
    model = anytime.create_model("anytimenet", (4, 2), blocks=(1, 1, 1), scheme=(1,), width=8)
    assert LevelChoice.saved_in(model) is None
    choice = LevelChoice((4, 2), (1,) * model.num_steps, 0.8, (0.9,) * model.num_steps)
    choice.save_to(model)
    model.save(tmp_path)
    assert LevelChoice.saved_in(anytime.load(tmp_path)) == choice
    assert LevelChoice.from_dict(json.loads(json.dumps(choice.to_dict()))) == choice
    with pytest.raises(ValueError, match=r"chosen for 2 steps and label levels \(4, 2\), but the model has 1"):
        LevelChoice((4, 2), (1, 0), 0.8, (0.9, 0.9)).save_to(model)
    model.info.answer_levels = {"sizes": [4, 2]}
    with pytest.raises(ValueError, match="not a choice of label levels"):
        LevelChoice.saved_in(model)


def test_wrong_choices() -> None:
    with pytest.raises(ValueError, match=r"label levels in 0\.\.1, got \(0, 2\)"):
        LevelChoice((4, 2), (0, 2), 0.5, (0.5, 0.5))
    with pytest.raises(ValueError, match=r"accuracy must hold 2 values"):
        LevelChoice((4, 2), (0, 1), 0.5, (0.5,))
    for step in (0, 3):
        with pytest.raises(ValueError, match=rf"step must lie in 1\.\.2, got {step}"):
            LevelChoice((4, 2), (0, 1), 0.5, (0.5, 0.5)).level(step)


def test_answers_in_words() -> None:
    choice = LevelChoice((4, 2), (1, 0), 0.75, (0.9, 0.8))
    early = torch.tensor([0.3, 0.3, 0.3, 0.1]), torch.tensor([0.96, 0.04])
    late = torch.tensor([0.05, 0.91, 0.03, 0.01]), torch.tensor([0.99, 0.01])
    assert answer_text(early, NAMES, 1, choice) == "seabird (96 %)"
    assert answer_text(late, NAMES, 2, choice) == "petrel (91 %)"
    assert answer_text(late, NAMES, 2, choice, top=2) == "petrel (91 %), albatross (5 %)"
    assert answer_text(early, NAMES, 1, choice, top=9) == "seabird (96 %), other bird (4 %)"
    assert answer_text(late, NAMES, 1) == "petrel (91 %)"
    assert answer_text(late[:1], NAMES[:4], 7) == "petrel (91 %)"
    with pytest.raises(ValueError, match=r"label levels of \(4,\) classes do not fit: there are 6 names"):
        answer_text(late[:1], NAMES, 1)
    with pytest.raises(ValueError, match=r"do not fit: there are 6 names and were chosen from \(4, 2\)"):
        answer_text([late[0][:3], torch.ones(3)], NAMES, 1, choice)
    with pytest.raises(ValueError, match=r"step must lie in 1\.\.2, got 3"):
        answer_text(late, NAMES, 3, choice)


def test_compliance_by_hand(birds: Trace) -> None:
    """Superclasses {0, 1, 2} and {3}. Step 1 wrongly answers 0 for labels 1, 2, 3; step 2 answers 1 for 2 and 0 for 3."""
    found = compliance(birds, (0, 0, 0, 1))
    assert found.errors.tolist() == [3, 2, 0]
    assert found.value[:2].tolist() == [2 / 3, 1 / 2]
    torch.testing.assert_close(found.chance[:2], torch.tensor([4 / 9, 1 / 3], dtype=torch.float64), rtol=1e-15, atol=0)
    assert bool(found.value[2].isnan() and found.chance[2].isnan())
    same = compliance(birds.level(0), (5, 5, 5, 9))
    assert torch.equal(same.value[:2], found.value[:2])
    with pytest.raises(ValueError, match=r"one entry for each of 4 classes, got 2"):
        compliance(birds, (0, 1))


def test_compliance_of_cifar100() -> None:
    """If every label gets every wrong answer once, compliance equals chance: 4 of 99."""
    labels, said = zip(*[(a, b) for a in range(100) for b in range(100) if a != b], strict=True)
    trace = made([[[b] for b in said]], [[a] for a in labels], [100])
    found = compliance(trace, CIFAR100_SUPERCLASS)
    assert found.value.tolist() == [4 / 99]
    torch.testing.assert_close(found.chance, found.value, rtol=1e-14, atol=0)
    near = replace(trace, logits=torch.nn.functional.one_hot(torch.tensor([_sibling(a) for a in labels]), 100)[None].float())
    assert compliance(near, CIFAR100_SUPERCLASS).value.tolist() == [1.0]


def test_compliance_of_any_taxonomy() -> None:
    names = ["gull", "duck", "oak", "elm", "ash"]
    rows = [["gull", "bird", "animal"], ["duck", "bird", "animal"], ["oak", "beech family", "plant"]]
    rows += [["elm", "elm family", "plant"], ["ash", "elm family", "plant"]]
    levels = from_paths(rows).levels(names)
    said, labels = [1, 3, 2, 4, 0], [0, 2, 3, 3, 4]
    trace = replace(made([[[b] for b in said]], [[a] for a in labels], [5]), class_names=tuple(names))
    fine, coarse = compliance(trace, levels), compliance(trace, levels, level=2)
    assert fine.value.tolist() == [2 / 5]  # gull as duck, elm as ash
    assert coarse.value.tolist() == [4 / 5]
    assert fine.chance.tolist() == pytest.approx([(1 + 0 + 1 + 1 + 1) / 5 / 4])
    assert coarse.chance.tolist() == pytest.approx([(1 + 2 + 2 + 2 + 2) / 5 / 4])
    with pytest.raises(ValueError, match=r"level must lie in 1\.\.2, above that of the classes, got 3"):
        compliance(trace, levels, level=3)
    with pytest.raises(ValueError, match=r"'oak' where it has 'elm'"):
        compliance(replace(trace, class_names=("gull", "duck", "elm", "oak", "ash")), levels)
    with pytest.raises(ValueError, match="label levels are of 5 classes, but the trace has 4"):
        compliance(made([[[0]]], [[1]], [4]), levels)


def test_compliance_courses_remove_the_level_of_each_seed() -> None:
    def network(seed: int, better: float) -> Trace:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(6, (300,), generator=generator)
        near = torch.where(torch.rand(3, 300, generator=generator) < better + 0.02 * seed, labels ^ 1, (labels + 2) % 6)
        return made([[[int(b)] for b in step] for step in near], [[int(a)] for a in labels], [6])

    networks = {name: {seed: network(seed, better) for seed in (1, 2, 5)} for name, better in (("td", 0.6), ("ce", 0.2))}
    superclass = (0, 0, 1, 1, 2, 2)
    found = compliance_courses(networks, superclass)
    values = {name: [compliance(t, superclass).value.tolist() for t in by_seed.values()] for name, by_seed in networks.items()}
    together = torch.tensor([[*values["td"][s], *values["ce"][s]] for s in range(3)], dtype=torch.float64)
    centred = together - together.mean(1, keepdim=True)
    wanted = centred.std(0) / math.sqrt(3) * math.sqrt(6 / 5)
    assert [*found["td"].error, *found["ce"].error] == pytest.approx(wanted.tolist())
    assert found["td"].mean == pytest.approx(together.mean(0)[:3].tolist())
    assert found["td"].by_seed == values["td"]
    assert found["td"].chance == pytest.approx([0.2] * 3)
    right = replace(network(1, 0.5), labels=network(1, 0.5).logits[0].argmax(1))  # no error at step 1
    alone = compliance_courses({"td": {1: right}}, superclass)["td"]
    assert math.isnan(alone.mean[0])
    assert all(map(math.isnan, alone.error))
    with pytest.raises(ValueError, match=r"same seeds, got \[1, 2, 5\] of 'td' and \[1\] of 'ce'"):
        compliance_courses({"td": networks["td"], "ce": {1: right}}, superclass)
    with pytest.raises(ValueError, match="no network"):
        compliance_courses({}, superclass)
    with pytest.raises(ValueError, match="there is no trace of 'td' whose compliance"):
        compliance_courses({"td": {}}, superclass)
    backwards = {"td": networks["td"], "ce": dict(reversed(networks["ce"].items()))}
    assert compliance_courses(backwards, superclass) == found
    shorter = replace(right, outputs=right.logits[:2], macs=right.macs[:2], contract_macs=None)
    with pytest.raises(ValueError, match=r"need the same steps, got by seed \{1: 3, 2: 2\} of 'td'"):
        compliance_courses({"td": {1: right, 2: shorter}}, superclass)


@pytest.mark.parametrize("superclass", [torch.tensor([0.5, 0.7, 1.0]), (0.5, 0.7, 1.0), ("a", "a", "b"), (0, None, 1)])
def test_superclasses_are_whole_numbers(superclass: Any) -> None:
    """0.5 and 0.7 would be two superclasses, or one after rounding."""
    trace = made([[[1], [2], [0]]], [[0], [1], [2]], [3])
    with pytest.raises(ValueError, match="superclasses must be whole numbers, got "):
        compliance(trace, superclass)
    for unordered in ({0: 0, 1: 0, 2: 1}, {0, 1, 2}):
        with pytest.raises(ValueError, match=r"superclass needs a list in the order of the classes, got \{0"):
            compliance(trace, unordered)  # the keys were taken for the superclasses
    for whole in ((0, 0, 1), torch.tensor([0, 0, 1]), np.array([0, 0, 1])):
        assert compliance(trace, whole).value.tolist() == [1 / 3]


def _sibling(label: int) -> int:
    return next(k for k, s in enumerate(CIFAR100_SUPERCLASS) if s == CIFAR100_SUPERCLASS[label] and k != label)
