"""`anytime study --dry-run` says which trainings serve which table or figure, and how long each takes."""

import pytest

from anytime.commands import study as command
from anytime.studies.estimate import training_seconds
from anytime.training.config import parse


def test_dry_run_says_what_each_training_serves_and_how_long_it_takes(tmp_path, monkeypatch, capsys):
    asked: list[dict] = []
    monkeypatch.setattr(command, "training_seconds", lambda config: asked.append(config) or 600.0 * len(asked))
    monkeypatch.setattr(command, "run_status", lambda run, folder: "start")
    wanted = ["--figure", "3", "4", "--seeds", "0", "1"]
    assert command.run(["iuzzolino2021", *wanted, "--runs", str(tmp_path), "--dry-run"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert any("  # figure 3, figure 4; about " in line for line in lines)
    assert len(asked) < len(lines)  # another seed takes the same time
    assert len({line.partition("  # ")[2] for line in lines if " --seed=0 " in line}) >= len(asked)
    hours = 2 * sum(range(1, len(asked) + 1)) / 6
    assert last.startswith(f"# {len(lines)} to train, about {hours:.1f} h one after the other, on one core")
    monkeypatch.setattr(command, "training_seconds", lambda config: None)
    assert command.run(["iuzzolino2021", "--figure", "3", "--seeds", "0", "--runs", str(tmp_path), "--dry-run"]) == 0
    assert "time unknown until the data can be read" in capsys.readouterr().out


def test_an_item_of_one_data_set_is_made_of_it(tmp_path, monkeypatch, capsys):
    """`--figure 5` took CIFAR-10, which has no superclasses, and wrote a result without numbers."""
    monkeypatch.chdir(tmp_path)

    def plan(*words: str) -> str:
        assert command.run([*words, "--seeds", "0", "--scale", "cpu", "--dry-run"]) == 0
        return capsys.readouterr().out

    assert plan("kim2020", "--table", "1") == "# nothing to train\n"
    monkeypatch.setattr(command, "_show_plan", lambda runs, serves, folder: print(*serves))
    for study in ("iuzzolino2021", "lee2018"):
        assert all(name.startswith("cifar100_") for name in plan(study, "--figure", "5").split())
        with pytest.raises(SystemExit) as ended:
            plan(study, "--figure", "5", "--data", "cifar10")
        assert ended.value.code == 2
        assert f"figure 5 of {study} is of --data cifar100, got cifar10" in capsys.readouterr().err
        assert "figure 5 is left out: it is of --data cifar100\n" in plan(study, "--data", "cifar10")
    with pytest.raises(SystemExit):
        plan("iuzzolino2021", "--table", "1", "--data", "cifar100")
    assert "table 1 of iuzzolino2021 is of --data cifar10, got cifar100" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_training_takes_its_epochs_times_its_images_times_a_step():
    flags = (
        "--model anytimenet --model.width 4 --model.blocks [1,2,1] --model.scheme [[1,1,1],[0,1,0]] --data digits --epochs 3"
    )
    config = parse([*flags.split(), "--data.limit=64", "--data.batch_size=48"])
    for ticks, wanted in (
        ([0.0, 5.0, 10.0, 10.5, 20.0, 30.0, 40.0, 40.75], 3 * 64 / 48 * 0.75),  # 16 images, then a batch
        ([0.0, 5.0, 10.0, 12.5], 3 * 64 / 16 * 2.5),  # 16 images take long
    ):
        left = iter(ticks)
        assert training_seconds(config, clock=lambda left=left: next(left)) == wanted
    absent = parse([*flags.replace("digits", "cifar10").split(), "--data.root=/nowhere"])
    assert training_seconds(absent) is None


def test_a_loss_that_depends_on_the_length_of_the_training_is_timed_as_well():
    flags = "--model anytimenet --model.width 4 --model.blocks [1,2,1] --model.scheme [[1,1,1],[0,1,0]] --data digits"
    config = parse([*flags.split(), "--data.limit=32", "--data.batch_size=32", "--objective=SDNRamp", "--epochs=2"])
    ticks = iter([0.0, 1.0, 2.0, 3.0] * 2)
    assert training_seconds(config, clock=lambda: next(ticks)) == 2.0
