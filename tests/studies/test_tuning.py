"""A search, with a trainer that only writes what the real one would leave; its error falls with the learning rate."""

from __future__ import annotations

import functools
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

from anytime.analysis.area import log_area
from anytime.cli import main
from anytime.training.config import UsageError, parse
from anytime.training.rundir import create_run, set_state

optuna = pytest.importorskip("optuna")

from anytime.studies.executors.subprocess import TrainingStopped  # noqa: E402
from anytime.studies.tuning import search as searching  # noqa: E402
from anytime.studies.tuning.metric import Metric, validated  # noqa: E402
from anytime.studies.tuning.search import BEST, FIGURE, JOURNAL, Search  # noqa: E402
from anytime.studies.tuning.space import Choices, Range, as_flags, check_space, read_space  # noqa: E402

ROOT = Path(__file__).parents[2]
SMALL = {"blocks": [1, 2, 1], "scheme": [[1, 1, 1], [0, 1, 0]], "width": 4}
RECIPE = {
    "model": {"class_path": "anytimenet", "init_args": SMALL},
    "data": {"class_path": "digits", "init_args": {"limit": 96}},
    "epochs": 3,
}
HEAD = "epoch,step,train/loss_epoch,val/accuracy,val/accuracy_1,val/accuracy_2,val/loss\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    return Path("tiny.yaml")


@pytest.fixture
def space(recipe: Path) -> Any:
    """`space(text)` writes `space.yaml`."""

    def write(text: str) -> Path:
        Path("space.yaml").write_text(text)
        return Path("space.yaml")

    return write


@functools.cache
def parsed(recipe: str) -> str:
    return yaml.safe_dump(parse([], [recipe]))


def trained(recipe: str, rate: float) -> Any:
    """The configuration of a training."""
    config = yaml.safe_load(parsed(recipe))
    config["optimizer"]["init_args"]["lr"] = rate
    return config


class Trainer:
    """Writes three epochs of a training; `ends` says what becomes of the training of some numbers."""

    def __init__(self, **ends: Any) -> None:
        self.asked: list[list[str]] = []
        self.ends = {int(name[1:]): end for name, end in ends.items()}

    def __call__(self, arguments: Any, log: Path, interruptions: Any) -> int:
        self.asked.append([*arguments])
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("it broke\n")
        flags = [*arguments]
        if flags[0] == "--resume":
            run = Path(flags[1])
            rate = yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["init_args"]["lr"]
        else:
            run = Path(flags.pop(flags.index("--run") + 1))
            flags.remove("--run")
            assert not any("optimizer" in word for word in flags), "a typed value may be imported"
            rate = yaml.safe_load(Path(flags[3]).read_text())["optimizer"]["init_args"]["lr"]
            create_run(run, trained(flags[1], rate))
        end = self.ends.pop(int(run.name.removeprefix("trial_")), None)
        if isinstance(end, BaseException):
            raise end
        if end is not None:
            set_state(run, "failed")
            return end
        accuracy, text = 0.9 - abs(math.log10(rate) + 1) / 10, HEAD  # the best rate is 0.1
        for epoch in range(3):
            (run / "metrics").mkdir(exist_ok=True)
            text += f"{epoch},{3 * epoch + 2},,{accuracy},{accuracy - 0.2},{accuracy},{1 - accuracy}\n{epoch},2,0.3,,,,\n"
            (run / "metrics" / "metrics.csv").write_text(text)
            if interruptions():
                set_state(run, "interrupted")
                return 130
        set_state(run, "finished")
        return 0


RATES = {"optimizer.lr": Range("log", 0.001, 1.0)}


def make(recipe: Path, folder: str = "out", space: Any = RATES, metric: str = "val/loss", flags: Any = ()) -> Search:
    return Search(recipe, Path("space.yaml"), space, tuple(flags), Path(folder), metric)


def rates(folder: str = "out") -> list[float]:
    backend = optuna.storages.journal.JournalFileBackend(f"{folder}/{JOURNAL}")
    study = optuna.load_study(study_name="anytime", storage=optuna.storages.journal.JournalStorage(backend))
    return [trial.params["optimizer.lr"] for trial in study.trials]


def test_a_space_is_read(space):
    path = space(
        "optimizer.lr: {log: [3e-3, 0.3]}\nmodel.width: {int: [4, 8]}\nmodel.blocks: [[1, 2, 1], [2, 2, 2]]\nb: [a, null]"
    )
    found = read_space(path)
    assert found["optimizer.lr"] == Range("log", 0.003, 0.3)
    assert found["model.width"] == Range("int", 4, 8)
    assert found["model.blocks"] == Choices(("[1, 2, 1]", "[2, 2, 2]"))
    values = {"optimizer.lr": 0.01, "model.blocks": "[1, 2, 1]", "b": None, "c": True}
    assert as_flags(values) == ("--optimizer.lr=0.01", "--model.blocks=[1, 2, 1]", "--b=null", "--c=true")


def test_the_space_of_the_page_is_one_of_its_recipe(space):
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    path = space(page.partition("```yaml\n")[2].partition("```")[0])
    config = check_space(read_space(path), path, [], ROOT / "recipes" / "fast_cifar10.yaml")
    assert config["model"]["init_args"]["widths"] == [64, 128, 256]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "must be a mapping such as 'optimizer.lr: {log: [0.003, 0.3]}', got [1]"),
        ("", "must be a mapping"),
        ("a: 3", "a must be a list of choices, {float: [low, high]}"),
        ("a: []", "a must be a list of choices"),
        ("a: {lgo: [1, 2]}", "did you mean 'log'?"),
        ("a: {log: [1, 2], int: [1, 2]}", "a must be a list of choices"),
        ("a: {log: [0, 2]}", "a must lie above 0"),
        ("a: {float: [2, 1]}", "two ends, the lower one first, got [2, 1]"),
        ("a: {float: [1, .inf]}", "two ends"),
        ("a: {float: [1, 2, 3]}", "two ends"),
        ("a: {int: [1, 2.5]}", "whole numbers as its ends, got [1, 2.5]"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_space_of_another_form_is_one_sentence(space, text, says):
    with pytest.raises(UsageError) as raised:
        read_space(space(text))
    assert says in str(raised.value)
    assert "space.yaml" in str(raised.value)


@pytest.mark.parametrize(
    ("part", "flags", "says"),
    [
        ({"optimizer.lrr": Range("log", 0.1, 1)}, [], "there is no option 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ({"seed": Range("int", 0, 9)}, [], "the seed is no option to choose"),
        ({"optimizer.lr": Range("log", 0.1, 1)}, ["--optimizer.lr=3"], "optimizer.lr is also given as an option"),
        ({"model.width": Choices((4, "wide"))}, [], "model.width must be int, got 'wide'"),
        ({"optimizer": Choices(("SGD", "adamm"))}, [], "unknown optimizer 'adamm'; did you mean 'Adam'?"),
    ],
)
def test_every_value_is_checked_before_the_first_training(recipe, part, flags, says):
    with pytest.raises(UsageError) as raised:
        check_space(part, Path("space.yaml"), flags, recipe)
    assert says in str(raised.value)


def test_the_command_says_what_is_wrong(space, capsys):
    space("optimizer.lrr: {log: [0.1, 1]}")
    assert main(["tune", "--config", "tiny.yaml", "--space", "space.yaml"]) == 2
    assert "did you mean 'optimizer.lr'?" in capsys.readouterr().err
    assert main(["tune", "--config", "tiny.yaml", "--space", "none.yaml"]) == 2
    assert "space none.yaml cannot be read: No such file" in capsys.readouterr().err
    assert main(["tune", "--config", "tiny.yaml", "--space", "space.yaml", "--trials", "0"]) == 2
    assert not Path("runs").exists()


def test_the_best_set_becomes_a_recipe(recipe, monkeypatch):
    monkeypatch.setattr(searching, "FIRST", 2)
    trainer, lines = Trainer(t1=1, t2=2), list[str]()
    sentence = make(recipe).run(5, trainer, lines.append)
    assert len(trainer.asked) == 5  # neither the loss that is not finite nor the wrong arguments are tried again
    assert [line.split()[0] for line in lines] == [f"[{number}/5]" for number in range(1, 6)]
    assert "failed, it broke" in lines[1]
    ended = [number for number, line in enumerate(lines) if "worse than the median" in line]
    best = min(set(range(5)) - {1, 2}, key=lambda number: abs(math.log10(rates()[number]) + 1))
    assert ended
    assert best not in ended
    assert f"the best of 5 sets is trial_{best:03}, val/loss " in sentence
    text = Path("out", BEST).read_text()
    assert text.startswith("# chosen on validation: the best of 5 sets")
    config = parse([], [Path("out", BEST)])
    assert config == trained("tiny.yaml", rates()[best])
    assert Path("out", FIGURE).read_bytes().startswith(b"\x89PNG")
    again = Trainer()
    monkeypatch.setattr(searching, "draw", lambda *_: Figure())
    assert make(recipe).run(5, again, lines.append) == sentence
    assert not again.asked
    for number in sorted({*range(5)} - {1, 2, *ended}):  # also of a set that is not the best
        table = Path("out", f"trial_{number:03}", "metrics", "metrics.csv")
        before = table.read_text()
        table.write_text(before.replace(",0.", ",0.0"))
        with pytest.raises(ValueError, match=rf"log says that val/loss of trial_{number:03} is .*, but .*metrics\.csv says"):
            make(recipe).run(5, again, lines.append)
        table.write_text(before)


def test_an_interrupted_search_continues_as_if_it_had_not_been(recipe, monkeypatch):
    monkeypatch.setattr(searching, "draw", lambda *_: Figure())
    Path("out").mkdir()  # as it is if a search is killed before it has a journal
    Path("out/.lock").write_text("a search (process 1)\nlong")
    Path("out/.journal.log.anytime-00000000-1-1.part").touch()
    with pytest.raises(KeyboardInterrupt):
        make(recipe).run(2, Trainer(t1=KeyboardInterrupt()), lambda _: None)
    trainer = Trainer()
    make(recipe).run(2, trainer, lambda _: None)
    assert [arguments[0] for arguments in trainer.asked] == ["--resume"]
    interrupted = rates()
    make(recipe, "whole").run(2, Trainer(), lambda _: None)
    assert rates("whole") == interrupted
    with pytest.raises(UsageError, match=r"out holds a search with data.root .*elsewhere'\)"):
        make(recipe, flags=["--data.root=elsewhere"]).run(2, Trainer(), lambda _: None)
    with pytest.raises(
        UsageError, match=r"out holds a search with metric 'val/loss' \(wanted 'val/accuracy'\); choose another"
    ):
        make(recipe, metric="val/accuracy").run(2, Trainer(), lambda _: None)


def test_a_training_that_is_ended_from_outside_ends_the_search(recipe):
    class Terminated(Trainer):
        def __call__(self, arguments: Any, log: Path, interruptions: Any) -> int:
            super().__call__(arguments, log, interruptions)
            return 128 + signal.SIGINT

    with pytest.raises(TrainingStopped, match="trial_000 ended with exit code 130"):
        make(recipe).run(1, Terminated(), lambda _: None)


def test_files_of_others_stay(recipe):
    Path("out").mkdir()
    Path("out/thesis.txt").touch()
    with pytest.raises(UsageError, match="out holds files but no search; give another --runs"):
        make(recipe).run(1, Trainer(), lambda _: None)


def test_the_error_compares_networks_of_other_costs(recipe):
    config, wider = (parse([f"--model.width={width}"], [recipe]) for width in (4, 6))
    metric = Metric(config)
    row = {"val/accuracy_1": 0.5, "val/accuracy_2": 0.9, "val/loss": 1.0}
    costs = [metric._measured(each)[0] for each in (config, wider)]
    assert costs[1][0] > costs[0][0]
    for each, macs in zip((config, wider), costs, strict=True):
        assert metric.value(each, row) == 1 - log_area(macs, [0.5, 0.9], costs[0][0], 2 * costs[0][1], 0.1)
    assert metric.value(wider, row) > metric.value(config, row)  # the same answers for more
    with pytest.raises(
        UsageError, match=r"--metric 'val/acuracy' does not exist for this recipe; did you mean 'val/accuracy'"
    ):
        Metric(config, "val/acuracy")
    with pytest.raises(UsageError, match=r"needs validation images, but the recipe leaves none"):
        Metric(parse(["--data.validation=0"], [recipe]))


def test_a_table_that_is_being_written_is_read(tmp_path):
    assert validated(tmp_path) == {}
    (tmp_path / "metrics").mkdir()
    table = tmp_path / "metrics" / "metrics.csv"
    table.write_text(f"{HEAD}0,2,,0.5,0.4,0.5,1.25\n0,2,2.5,,,,\n1,5,,0.6,0.5,0.6,1.12345")
    assert {epoch: row["val/loss"] for epoch, row in validated(tmp_path).items()} == {0: 1.25}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("inf,2,,0.5,0.4,0.5,1.25", "cannot convert float infinity"),
        (",2,,0.5,0.4,0.5,1.25", "'epoch'"),
        ("0,2,,0.5,x,0.5,1.25", "could not convert"),
        (f"0,2,,0.5,{'a' * 200_000},0.5,1.25", "field larger"),
        ("0,2,,0.5,7,0.5,1.25", "val/accuracy_1 is 7.0, not in 0..1"),
        ("0,2,,0.5,nan,0.5,1.25", "val/accuracy_1 is nan"),
        ("0,2,,0.5,,0.5,1.25", "no val/accuracy_1"),
    ],
)
def test_a_damaged_table_is_one_sentence(tmp_path, row, says):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "metrics.csv").write_text(f"{HEAD}{row}\n")
    metric = object.__new__(Metric)
    metric.name = "val/accuracy_1"
    with pytest.raises(ValueError, match="is damaged") as raised:
        metric.last({}, tmp_path)
    assert says in str(raised.value)
    assert "metrics.csv" in str(raised.value)


@pytest.mark.slow
def test_a_search_from_end_to_end(space, capsys):
    path = str(space("optimizer.lr: [0.01, 0.1]\nmodel.width: {int: [4, 6]}"))
    arguments = ["tune", "--config", "tiny.yaml", "--space", path, "--trials", "2", "--runs", "out", "--progress=false"]
    assert main(arguments) == 0
    assert "chosen on validation: the best of 2 sets is trial_00" in capsys.readouterr().out
    assert main(["train", "--config", f"out/{BEST}", "--run", "again"]) == 0
