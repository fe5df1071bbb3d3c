"""The folder, the journal and the space of a search may come from a stranger; a kill may cut the journal anywhere."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from anytime.cli import main
from anytime.support.documents import TooLarge, read_limited
from anytime.support.owned import NotOurs, check_own
from anytime.support.trust import UntrustedName, names_from
from anytime.training.config import UsageError

optuna = pytest.importorskip("optuna")

from anytime.studies.tuning import journal  # noqa: E402
from anytime.studies.tuning.journal import open_study  # noqa: E402
from anytime.studies.tuning.search import Search  # noqa: E402
from anytime.studies.tuning.space import Choices, Range, as_recipe, check_space, distributions, read_space  # noqa: E402

RECIPE = {
    "model": {"class_path": "anytimenet", "init_args": {"blocks": [1, 1], "scheme": [[1, 1]], "width": 2}},
    "data": {"class_path": "digits", "init_args": {"limit": 60, "validation": 20}},
}
SPACE = {"optimizer.lr": Range("log", 0.01, 0.1), "objective.loss": Choices((None, "b"))}
METRIC: Any = SimpleNamespace(larger_is_better=False, is_possible=lambda value: 0 <= value <= 1)
WANTED = {"seed": 0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stranger.py").write_text("from pathlib import Path\nPath('executed').touch()\ndef loss(logits, y): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))


def opened(path: Path = Path("journal.log"), wanted: Any = WANTED) -> Any:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return open_study(path, METRIC, optuna.pruners.NopPruner(), SPACE, wanted)
    finally:
        optuna.logging.set_verbosity(before)


def entry(kind: int, **more: Any) -> str:
    return json.dumps({"op_code": kind, "worker_id": "a", **more}, separators=(",", ":"))


def value(name: str, internal: float, distribution: Any = None) -> str:
    text = optuna.distributions.distribution_to_json(distribution or distributions(SPACE)[name])
    return entry(5, trial_id=0, param_name=name, param_value_internal=internal, distribution=text)


STUDY = entry(0, study_name="anytime", directions=[1])
SEARCH = entry(2, study_id=0, user_attr={"search": WANTED})
SET = entry(4, study_id=0, datetime_start="2026-11-30T09:00:42.557558+00:00")
WAITING = entry(4, study_id=0, datetime_start=None, state=4, system_attrs={"fixed_params": {"objective.loss": "evil.x"}})
CONSTRAINED = entry(4, study_id=0, datetime_start="2026-11-30T09:00:42+00:00", system_attrs={"constraints": [1.0]})
VALUES = [value("optimizer.lr", 0.05), value("objective.loss", 1)]
EVIL = optuna.distributions.CategoricalDistribution(["stranger.loss"])
NONE = "is none of this search"
THERE = "is damaged: a search writes no such entry there"
ASKED = "does not say what is searched"
NOTE = entry(3, study_id=0, system_attr={"dashboard:note_ver": 1})
OURS = "is not the journal of a search"


def done(*values: Any, state: int = 1) -> str:
    return entry(6, trial_id=0, state=state, values=values, datetime_complete="2026-11-30T09:03:46.515682+00:00")


def reported(step: Any, metric: Any) -> str:
    return entry(7, trial_id=0, step=step, intermediate_value=metric)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([STUDY, SEARCH, SET, *VALUES, value("objective.weights", 0, EVIL)], rf"line 6 of .* {THERE}"),
        ([STUDY, SEARCH, SET, VALUES[0], value("objective.loss", 0, EVIL), done(0.5)], NONE),
        ([STUDY, SEARCH, SET, value("optimizer.lr", 0.5), VALUES[1], done(0.5)], NONE),
        ([STUDY, SEARCH, SET, value("optimizer.lr", float("nan")), VALUES[1], done(0.5)], NONE),
        ([STUDY, SEARCH, SET, VALUES[0], done(0.5)], rf"line 5 of .* {THERE}"),
        ([STUDY, SEARCH, SET, VALUES[0], SET], rf"line 5 of .* {THERE}"),
        ([STUDY, SEARCH, SET, *VALUES, SET, VALUES[0]], rf"line 7 of .* {THERE}"),
        ([STUDY, SEARCH, WAITING, *VALUES, done(0.5, state=4)], NONE),
        ([STUDY, SEARCH, CONSTRAINED, *VALUES, done(0.5)], NONE),
        ([STUDY, SEARCH, SET, *VALUES, entry(9, trial_id=0, system_attr={"constraints": ["a"]}), done(0.5)], THERE),
        ([STUDY, SEARCH, SET, *VALUES, done("a")], NONE),
        ([STUDY, SEARCH, SET, *VALUES, done(10**400)], NONE),
        ([STUDY, SEARCH, SET, *VALUES, reported("a", 0.5)], NONE),
        ([STUDY, SEARCH, SET, *VALUES, reported(0, "a")], NONE),
        ([STUDY, SEARCH, SET, *VALUES, reported(0, None)], NONE),
        ([STUDY, SEARCH, SET, *VALUES, reported(0, 10**400)], NONE),
        ([STUDY, SEARCH, SET, *VALUES, reported([0], 0.5)], r"is damaged: Optuna cannot read it \(TypeError: unhashable"),
        (
            [STUDY, SEARCH, SET, VALUES[0], value("objective.loss", 9), done(0.5)],
            r"damaged: Optuna cannot read it \(IndexError",
        ),
        ([STUDY, SEARCH, SET, *VALUES, entry(6)], "is damaged: a search writes no such entry there"),
        ([STUDY], ASKED),
        ([STUDY, SET], ASKED),
        ([STUDY, entry(2, study_id=0, user_attr={"mine": "a week of work"}), SET], ASKED),
        ([STUDY, SET, done(0.9), SET], ASKED),
        ([STUDY, entry(2, study_id=0, user_attr=[1])], ASKED),
        ([STUDY, entry(2, study_id=0, user_attr="a")], ASKED),
        ([STUDY, entry(2, study_id=0, user_attr=5)], ASKED),
        ([STUDY, entry(2, study_id=0, user_attr={"search": [1]})], ASKED),
        ([STUDY, entry(2, study_id=0, user_attr={"search": {"seed": 1}})], r"holds a search with seed 1 \(wanted 0\)"),
        ([entry(0, study_name="anytime", directions=[1, 1]), SEARCH], "does not minimize one number"),
        ([entry(0, study_name="anytime", directions=[2]), SEARCH], "does not minimize one number"),
        ([STUDY, SEARCH, SET, *VALUES, done(float("nan"))], r"the metric of its set 0 is \[nan"),
        ([STUDY, SEARCH, SET, *VALUES, done(7.0)], r"the metric of its set 0 is \[7\.0"),
        ([STUDY, SEARCH, SET, *VALUES, done()], r"the metric of its set 0 is \[\]"),
        ([STUDY, SEARCH, SET, *VALUES, done(0.5, state=77)], "77 is not a valid TrialState"),
        ([entry(0, study_name="my own", directions=[1]), SET, VALUES[0]], "is the journal of another program"),
        ([STUDY, entry(2, study_id=0, user_attr={"search": {"seed": 1}}), SET, VALUES[0]], "holds a search with seed 1"),
        ([STUDY, SEARCH[:-9], SET], r"line 2 of .*journal\.log is damaged"),
        ([STUDY, SEARCH, "[1]"], rf"line 3 of .*journal\.log {THERE}"),
        ([STUDY, SEARCH, STUDY], THERE),
        ([STUDY, "[" * 100_000], "nested too deeply|more than"),
        ([STUDY, SEARCH, entry(99)], THERE),
        ([STUDY, SEARCH, '{"op_code":4,"study_id":' + "1" * 5000 + "}"], "line 3 of .* is damaged"),
        (["Monday: saw a heron"], OURS),
        (["\0\1"], OURS),
        (["[" * 100_000], OURS),
    ],
)
def test_a_foreign_or_damaged_journal_is_one_sentence(lines: list[str], says: str) -> None:
    path = Path("journal.log")
    for text in ("\n".join(lines) + "\n", "\n".join(lines) + '\n{"op_code":4'):
        path.write_text(text)
        with pytest.raises(ValueError, match=says) as raised:
            opened()
        assert "journal.log" in str(raised.value) or isinstance(raised.value, UsageError)
        assert path.read_text() == text or (lines[1:2] == [SEARCH] and text.startswith(path.read_text()))
    assert not Path("executed").exists()


def test_a_set_with_entries_without_end_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "WORK", 1000)  # of some hours
    sets = [
        each
        for number in range(100)
        for each in (SET, *(each.replace('"trial_id":0', f'"trial_id":{number}') for each in VALUES))
    ]
    Path("journal.log").write_text("\n".join([STUDY, SEARCH, *sets]) + "\n")
    assert len(opened().trials) == 100
    Path("journal.log").write_text(
        "\n".join([STUDY, SEARCH, SET, *VALUES, *(reported(epoch, 0.5) for epoch in range(60))]) + "\n"
    )
    with pytest.raises(TooLarge, match=r"journal\.log has more entries in its sets than any search; use --trust"):
        opened()
    with names_from("recipe.yaml or space.yaml", trust=True):
        assert len(opened().trials[0].intermediate_values) == 60
    note = '{"op_code":3,"worker_id":"w","system_attr":{"note":"x"}}'
    Path("journal.log").write_text("\n".join([STUDY, SEARCH, *[note] * 60, SET, *VALUES]) + "\n")
    with pytest.raises(TooLarge):
        opened()


def test_entries_of_an_earlier_set_are_none_of_a_search() -> None:
    """Each would make Optuna copy all that the earlier set holds."""
    second = [SET, *(each.replace('"trial_id":0', '"trial_id":1') for each in VALUES)]
    Path("journal.log").write_text("\n".join([STUDY, SEARCH, SET, *VALUES, *second, reported(1, 0.5)]) + "\n")
    with pytest.raises(ValueError, match=f"line {len(VALUES) + len(second) + 4} of .*journal.log is damaged"):
        opened()


def test_a_journal_that_is_cut_anywhere_continues() -> None:
    path = Path("journal.log")
    path.write_text("\n".join([STUDY, SEARCH, NOTE, SET, *VALUES, reported(0, 0.6), done(0.5)]) + "\n")
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    assert opened().best_value == 0.5
    for kept in range(ends[1], len(whole), 23):  # the first two lines get their name as one
        path.write_bytes(whole[:kept])
        study = opened()
        assert [len(trial.params) for trial in study.trials] == ([2] if kept >= ends[5] else []), "a set is whole or away"
        assert path.read_bytes().endswith(b"\n")
        opened()


def test_a_journal_is_never_a_link_a_pipe_or_endless() -> None:
    Path("precious.txt").write_text("")
    Path("journal.log").symlink_to("precious.txt")
    with pytest.raises(ValueError, match=r"journal\.log is a link, and nothing is written through links"):
        opened()
    Path("journal.log").unlink()
    os.mkfifo("journal.log")
    with pytest.raises(ValueError, match=r"journal\.log is a pipe"):
        opened()
    Path("journal.log").unlink()
    with Path("journal.log").open("wb") as file:
        file.truncate(6 << 30)
    with pytest.raises(ValueError, match=r"journal\.log has 6,442,450,944 bytes, more than"):
        opened()
    Path("journal.log").unlink()
    Path("journal.log.lock").mkdir()  # Optuna would wait for it
    assert opened().trials == []
    Path("journal.log").write_text("Monday: saw a heron")
    with pytest.raises(NotOurs):
        opened()


def test_the_recipe_of_a_set_is_written_through_no_link() -> None:
    Path("elsewhere").mkdir()
    Path("out").mkdir()
    Path("out/logs").symlink_to("../elsewhere")
    search = Search(Path("recipe.yaml"), Path("space.yaml"), SPACE, (), Path("out"), "val/loss")
    with pytest.raises(ValueError, match=r"out/logs is a link, and nothing is written through links"):
        search._training(0, {"optimizer.lr": 0.1}, {"optimizer": {"class_path": "SGD"}, "seed": 0})
    assert not any(Path("elsewhere").iterdir())
    Path("out/logs").unlink()
    Path("out/trial_000").symlink_to("../elsewhere")
    with pytest.raises(ValueError, match=r"out/trial_000 is a link, and nothing is written through links"):
        search._training(0, {"optimizer.lr": 0.1}, {"optimizer": {"class_path": "SGD"}, "seed": 0})
    Path("out/trial_000").unlink()
    Path("out/logs").mkdir()
    Path("out/logs/trial_000.yaml").write_text("my notes\n")
    with pytest.raises(NotOurs, match=r"trial_000\.yaml was not written by this library"):
        search._training(0, {"optimizer.lr": 0.1}, {"optimizer": {"class_path": "SGD"}, "seed": 0})


@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "notes.txt"])
def test_nobody_waits_for_the_recipe_of_a_set(target: str) -> None:
    Path("out/logs").mkdir(parents=True)
    Path("out/notes.txt").write_text("my notes\n")
    if target == "pipe":
        os.mkfifo("out/logs/trial_000.yaml")
    else:
        Path("out/logs/trial_000.yaml").symlink_to(Path("..", target))
    search = Search(Path("recipe.yaml"), Path("space.yaml"), SPACE, (), Path("out"), "val/loss")
    with pytest.raises(NotOurs, match=r"logs/trial_000\.yaml was not written by this library, so it is not replaced"):
        search._training(0, {"optimizer.lr": 0.1}, {"optimizer": {"class_path": "SGD"}, "seed": 0})
    assert Path("out/notes.txt").read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("best.yaml", "# chosen on validation: "),
        ("trial_000.yaml", "my notes"),
        ("live.html", ""),
        ("report.html", "<!DOCTYPE html>"),
    ],
)
def test_a_file_of_gigabytes_is_not_read_to_see_whose_it_is(name: str, begins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(name).open("wb") as file:
        file.write(begins.encode() + b"\1")
        file.truncate(6 << 30)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"all of {path} is read"))
    with pytest.raises(NotOurs):
        check_own(Path(name))


def test_files_of_zeros_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("best.yaml").write_bytes(bytes((1 << 21) + 1))
    check_own(Path("best.yaml"))
    Path("best.yaml").write_bytes(bytes(1 << 21) + b"a")
    with pytest.raises(NotOurs):
        check_own(Path("best.yaml"))


def test_what_is_read_with_a_limit_is_no_pipe() -> None:
    os.mkfifo("pipe")
    with pytest.raises(ValueError, match=r"pipe is a pipe, a socket or a device"):
        read_limited(Path("pipe"), 100)


def test_a_recipe_of_ones_own_is_not_the_best_of_a_search() -> None:
    Path("best.yaml").write_text("model: ann\ndata: digits\nobjective: AANN\noptimizer: SGD\n")
    with pytest.raises(NotOurs, match=r"best\.yaml was not written by this library"):
        check_own(Path("best.yaml"))


@pytest.mark.parametrize(
    ("key", "foreign", "error"),
    [
        ("objective.loss", "stranger.loss", UntrustedName),
        ("objective", "stranger.Objective", UntrustedName),
        ("model", "stranger.Net", UntrustedName),
        ("optimizer.lr", '{"class_path": "stranger.loss"}', UsageError),
        ("objective.loss", '{"class_path": "stranger.loss"}', UsageError),
        ("optimizer.weight_decay", '{"class_path": "stranger.loss"}', UsageError),
    ],
)
def test_the_values_of_a_space_come_from_a_file(key: str, foreign: str, error: type[Exception]) -> None:
    own = {"objective.loss": None, "objective": "Weighted", "model": "anytimenet"}.get(key, 0.1)
    space = {key: Choices((own, foreign))}
    with names_from("recipe.yaml or space.yaml"), pytest.raises(error, match=r"space\.yaml"):
        check_space(space, Path("space.yaml"), [], Path("recipe.yaml"))
    assert not Path("executed").exists()


def test_a_choice_may_not_be_nested_without_end() -> None:
    Path("space.yaml").write_text('model.blocks: ["' + r"\x5b" * 20_000 + '"]')
    with pytest.raises(UsageError, match=r"space\.yaml is not valid YAML: it is nested too deeply"):
        check_space(read_space(Path("space.yaml")), Path("space.yaml"), [], Path("recipe.yaml"))


def test_a_space_may_name_what_is_trusted() -> None:
    space = {"objective.loss": Choices((None, "stranger.loss"))}
    with names_from("recipe.yaml or space.yaml", trust=True):
        config = check_space(space, Path("space.yaml"), [], Path("recipe.yaml"))
    assert config["objective"]["init_args"]["loss"] is None
    assert Path("executed").exists()


def test_the_training_of_a_set_imports_nothing_without_consent(capsys: Any) -> None:
    config = {"objective": {"class_path": "Weighted"}}
    Path("set.yaml").write_text(yaml.safe_dump(as_recipe({"objective.loss": "stranger.loss"}, config)))
    assert main(["train", "--config", "recipe.yaml", "--config", "set.yaml", "--run", "run"]) == 2
    assert "set.yaml names the loss 'stranger.loss'" in capsys.readouterr().err
    assert not Path("executed").exists()


def test_a_set_is_the_same_as_a_recipe_as_it_would_be_typed() -> None:
    values = {"optimizer": "Adam", "optimizer.lr": 1e-5, "model.blocks": "[1, 2]", "epochs": 3, "model.scheme": "[[1, 1]]"}
    assert as_recipe(values, {"model": {"class_path": "anytimenet"}}) == {
        "optimizer": {"class_path": "Adam", "init_args": {"lr": 1e-5}},
        "model": {"class_path": "anytimenet", "init_args": {"blocks": [1, 2], "scheme": [[1, 1]]}},
        "epochs": 3,
    }
