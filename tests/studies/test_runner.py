"""Which trainings start, resume or are skipped, with a trainer that only writes what the real one would leave."""

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from anytime import create_model
from anytime.data import create_data
from anytime.saving import ModelInfo
from anytime.studies import TrainingRun, TrainingStopped, find_recipe, run_all, run_status, runner
from anytime.studies.executors.choice import find_executor
from anytime.studies.executors.subprocess import log_end
from anytime.studies.runner import on_validation, record_views, trace_path
from anytime.studies.study import find_study
from anytime.support.model_files import weights_of
from anytime.trace import Trace
from anytime.training.config import UsageError, parse
from anytime.training.rundir import create_run, set_state

TRACE = Trace(torch.zeros(2, 3, 2), torch.tensor([0, 1, 0]), torch.tensor([1, 2]), None, None, ("a", "b"))
RECIPE = {"model": {"class_path": "anytimenet", "init_args": {"width": 4}}, "data": "digits", "epochs": 2}


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture
def run(recipe):
    return lambda name="a", *flags, seed=0: TrainingRun(name, recipe, flags, seed, {name: None})


class Trainer:
    """Leaves a run directory in the given state and notes what it was asked for."""

    def __init__(self, state: str = "finished", code: int = 0) -> None:
        self.state, self.code = state, code
        self.asked: list[list[str]] = []

    def __call__(self, arguments, log: Path) -> int:
        self.asked.append(list(arguments))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("step 1\nstep 2\n")
        flags = list(arguments)
        if flags[0] == "--resume":
            path = Path(flags[1])
        else:
            assert flags[0] == "--config"
            path = Path(flags.pop(flags.index("--run") + 1))
            flags.remove("--run")
            create_run(path, parse(flags[2:], [flags[1]]))
        set_state(path, self.state)
        return self.code


class Recorder:
    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def __call__(self, path: Path, views) -> None:
        self.asked.append((path.name, list(views)))
        for name in views:
            TRACE.save(trace_path(path, name))


def test_missing_trainings_run_and_are_recorded_once(run, tmp_path):
    runs, train, recorder, printed = [run("a"), run("b", "--model.width=8", seed=3)], Trainer(), Recorder(), []
    folder = tmp_path / "runs"
    traces = run_all(runs, folder, train, recorder, printed.append)
    assert [asked[2:] for asked in train.asked] == [
        ["--seed=0", "--run", str(folder / "a")],
        ["--model.width=8", "--seed=3", "--run", str(folder / "b")],
    ]
    assert recorder.asked == [("a", ["a"]), ("b", ["b"])]
    assert {name: list(traces[name]) for name in traces} == {"a": [0], "b": [3]}
    assert len(traces) == 2
    assert torch.equal(traces["b"][3].logits, TRACE.logits)
    assert printed[0] == f"[1/2] a: start, see {folder / 'logs' / 'a.log'}"
    assert printed[1].startswith("[1/2] a: trained in ")
    assert "; 1 to train, about " in printed[1]
    assert printed[-1].endswith("; 0 to train")

    again, recorder, printed = Trainer(), Recorder(), []
    assert list(run_all(runs, folder, again, recorder, printed.append)) == ["a", "b"]
    assert again.asked == []
    assert recorder.asked == []
    assert printed == ["[1/2] a: finished before; 0 to train", "[2/2] b: finished before; 0 to train"]


def test_the_remaining_trainings_run_after_one_fails_midway(run, tmp_path):
    printed: list[str] = []

    class FirstFails(Trainer):
        def __call__(self, arguments, log):
            self.state, self.code = ("failed", 1) if log.stem == "a" else ("finished", 0)
            return super().__call__(arguments, log)

    train, recorder = FirstFails(), Recorder()
    with pytest.raises(TrainingStopped, match=r"training a ended with exit code 1, see .*a\.log"):
        run_all([run("a"), run("b")], tmp_path, train, recorder, printed.append)
    assert len(train.asked) == 2
    assert recorder.asked == [("b", ["b"])]
    assert f"[1/2] a: failed with exit code 1, see {tmp_path / 'logs' / 'a.log'}; 1 to train" in printed
    assert run_status(run("a"), tmp_path) == "resume"


@pytest.mark.parametrize(("states", "asked"), [(("started", "finished"), 2), (("finished",), 1)])
def test_a_training_whose_process_is_killed_is_resumed(run, tmp_path, states, asked):
    class Killed(Trainer):
        def __call__(self, arguments, log):
            self.state = states[len(self.asked)]
            killed = len(self.asked) == 0
            super().__call__(arguments, log)
            return -signal.SIGKILL if killed else 0

    train, recorder = Killed(), Recorder()
    run_all([run()], tmp_path, train, recorder, lambda _: None)
    assert [arguments[0] for arguments in train.asked] == ["--config", "--resume"][:asked]
    assert recorder.asked == [("a", ["a"])]


def test_a_training_that_is_killed_again_and_again_is_given_up(run, tmp_path):
    train = Trainer("started", -signal.SIGKILL)
    with pytest.raises(TrainingStopped, match="exit code -9"):
        run_all([run()], tmp_path, train, Recorder(), lambda _: None)
    assert len(train.asked) == 3


class Several:
    """Two trainings at once; the first two wait for each other. The trainer decides what becomes of each."""

    workers = 2

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.interruptions = trainer, 0
        self.meeting, self.first = threading.Barrier(2), threading.Semaphore(2)

    def train(self, arguments, log, config):
        assert config["data"]["class_path"] == "Digits"
        if self.workers > 1 and self.first.acquire(blocking=False):
            self.meeting.wait(20)
        return self.trainer(arguments, log)

    def interrupt(self):
        self.interruptions += 1


def test_trainings_run_at_once_and_are_recorded_after_all(run, tmp_path):
    class Recording(Recorder):
        def __call__(self, path, views):
            assert len(executor.trainer.asked) == 3
            super().__call__(path, views)

    executor, recorder, printed = Several(Trainer()), Recording(), []
    runs = [run(name) for name in "abc"]
    traces = run_all(runs, tmp_path, recorder=recorder, say=printed.append, executor=executor)
    assert [name for name, _ in recorder.asked] == list(traces) == ["a", "b", "c"]
    assert sorted(line.split(":")[0] for line in printed[:2]) == ["a", "b"]
    assert printed[-1].startswith("[3/3] c: trained in ")
    assert printed[-1].endswith("; 0 to train")
    run_all(runs, tmp_path, recorder=recorder, say=printed.append, executor=executor)
    assert len(executor.trainer.asked) == 3


def test_a_loss_that_is_not_finite_stops_no_other_training_and_is_not_repeated(run, tmp_path):
    class OneFails(Trainer):
        def __call__(self, arguments, log):
            self.state, self.code = ("failed", 1) if log.stem == "a" else ("finished", 0)
            return super().__call__(arguments, log)

    executor, recorder = Several(OneFails()), Recorder()
    executor.workers = 1
    with pytest.raises(TrainingStopped, match="training a ended with exit code 1"):
        run_all([run("a"), run("b")], tmp_path, recorder=recorder, say=lambda _: None, executor=executor)
    assert recorder.asked == [("b", ["b"])]
    assert len(executor.trainer.asked) == 2


def test_an_interruption_reaches_all_trainings_and_starts_no_other(run, tmp_path):
    class Waiting(Several):
        def train(self, arguments, log, config):
            os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` and schedulers do
            begin = time.monotonic()
            while not self.interruptions and time.monotonic() - begin < 20:
                time.sleep(0.01)
            return self.trainer(arguments, log)

    executor = Waiting(Trainer("interrupted", 130))
    executor.workers = 1
    with pytest.raises(KeyboardInterrupt):
        run_all([run("a"), run("b")], tmp_path, say=lambda _: None, executor=executor)
    assert len(executor.trainer.asked) == executor.interruptions == 1


def test_each_download_is_made_once_before_any_training(run, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(runner, "build", lambda config: made.append(config["data"]["init_args"]["limit"]))
    monkeypatch.setattr(runner, "train_one", lambda run, *_: (made.append(run.name), 0.0))
    flags = [(), ("--data.limit=96", "--data.download=true"), ("--data.limit=64", "--data.download=true")]
    runs = [run(name, *flags[place]) for name, place in zip("abcd", (0, 1, 1, 2), strict=True)]
    runner.train_at_once(runs, tmp_path, dict.fromkeys("abcd", "start"), Several(Trainer()), lambda _: None)
    assert made[:2] == [96, 64]
    assert sorted(made[2:]) == [*"abcd"]


@pytest.mark.parametrize("state", ["started", "interrupted", "failed"])
def test_unfinished_trainings_are_resumed(run, tmp_path, state):
    with pytest.raises(TrainingStopped, match=r"training a ended with exit code 130, see .*a\.log") as stopped:
        run_all([run("a"), run("b")], tmp_path, Trainer(state, 130), Recorder(), lambda _: None)
    assert log_end(stopped.value.log, 1) == ["step 2"]
    assert run_status(run("a"), tmp_path) == "resume"
    assert run_status(run("b"), tmp_path) == "start"
    train = Trainer()
    run_all([run("a"), run("b")], tmp_path, train, Recorder(), lambda _: None)
    assert train.asked[0] == ["--resume", str(tmp_path / "a")]
    assert train.asked[1][0] == "--config"


def test_an_interrupted_recording_is_repeated(run, tmp_path):
    def interrupted(path, views):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([run()], tmp_path, Trainer(), interrupted, lambda _: None)
    train, recorder = Trainer(), Recorder()
    run_all([run()], tmp_path, train, recorder, lambda _: None)
    assert train.asked == []
    assert recorder.asked == [("a", ["a"])]


def test_traces_of_other_weights_are_recorded_again(run, tmp_path):
    views = {"a": None, "a validation": on_validation, "a view": lambda model: model}
    runs = [dataclasses.replace(run(), views=views)]
    run_all(runs, tmp_path, Trainer(), Recorder(), lambda _: None)
    save_file({"w": torch.ones(2)}, tmp_path / "a" / "model.safetensors")
    own = weights_of(tmp_path / "a")
    for of_view, again in (({}, []), ({"run_weights": own}, []), ({"run_weights": "f"}, ["a view"])):
        for name, view in views.items():
            meta = {"weights": "f" * 64 if name == "a view" else own} | (of_view if name == "a view" else {})
            dataclasses.replace(TRACE, meta=meta).save(trace_path(tmp_path / "a", name, view))
        recorder = Recorder()
        run_all(runs, tmp_path, Trainer(), recorder, lambda _: None)
        assert recorder.asked == ([("a", again)] if again else [])
    for name, view in views.items():
        dataclasses.replace(TRACE, meta={"weights": "f" * 64}).save(trace_path(tmp_path / "a", name, view))
    run_all(runs, tmp_path, Trainer(), recorder := Recorder(), lambda _: None)
    assert recorder.asked == [("a", ["a", "a validation"])]


def test_traces_of_a_view_that_was_made_in_another_way_are_recorded_again(run, tmp_path):
    def view(model):
        return model

    view.made = "calibrated on augmented images"
    runs = [dataclasses.replace(run(), views={"a": view})]
    run_all(runs, tmp_path, Trainer(), Recorder(), lambda _: None)
    own = weights_of(tmp_path / "a")
    for made, again in ((None, True), ("calibrated on plain images", True), (view.made, False)):
        dataclasses.replace(TRACE, meta={"run_weights": own, "made": made}).save(trace_path(tmp_path / "a", "a", view))
        run_all(runs, tmp_path, Trainer(), recorder := Recorder(), lambda _: None)
        assert recorder.asked == ([("a", ["a"])] if again else [])


def test_runs_of_the_same_name_are_trained_once(run, tmp_path):
    train = Trainer()
    run_all([run(), run()], tmp_path, train, Recorder(), lambda _: None)
    assert len(train.asked) == 1


def test_another_configuration_is_an_error_before_any_training(run, tmp_path):
    run_all([run("b")], tmp_path, Trainer(), Recorder(), lambda _: None)
    train = Trainer()
    message = r"b holds a training with epochs 2 \(wanted 3\), model.width 4 \(wanted 8\); choose another --runs or remove it"
    with pytest.raises(UsageError, match=message):
        run_all([run("a"), run("b", "--epochs=3", "--model.width", "8")], tmp_path, train, Recorder(), lambda _: None)
    with pytest.raises(UsageError, match="seed 0"):
        run_status(run("b", seed=1), tmp_path)
    with pytest.raises(UsageError, match=r"has no argument model\.widht"):
        run_status(run("new", "--model.widht=2"), tmp_path)
    assert train.asked == []


def test_other_images_are_another_training(tmp_path, recipe):
    class Images(Trainer):
        def __call__(self, arguments, log):
            run = arguments[arguments.index("--run") + 1]
            create_run(Path(run), parse(["--data=ImageFolder", "--data.root=A"], [recipe]))
            set_state(Path(run), "finished")
            return 0

    runs = {root: TrainingRun("a", recipe, ("--data=ImageFolder", f"--data.root={root}"), 0, {"a": None}) for root in "AB"}
    run_all([runs["A"]], tmp_path, Images(), Recorder(), lambda _: None)
    assert run_status(runs["A"], tmp_path) == "finished"
    with pytest.raises(UsageError, match=r"holds a training with data\.root '.*/A' \(wanted '.*/B'\)"):
        run_status(runs["B"], tmp_path)


def test_data_folder_and_progress_bar_do_not_change_the_training(run, tmp_path):
    run_all([run()], tmp_path, Trainer(), Recorder(), lambda _: None)
    assert run_status(run("a", "--data.root=elsewhere", "--progress=false"), tmp_path) == "finished"


def test_arguments_added_later_count_with_their_defaults(run, tmp_path):
    run_all([run()], tmp_path, Trainer(), Recorder(), lambda _: None)
    path = tmp_path / "a" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["data"]["init_args"]["limit"], config["gradient_clip"]
    path.write_text(yaml.safe_dump(config))
    assert run_status(run(), tmp_path) == "finished"


def old_paths(name: str) -> list[str]:
    """Import paths of earlier versions of the class that an import path names today."""
    paths = (Path(__file__).parents[1] / "old_import_paths.txt").read_text(encoding="utf-8").split()
    return [path for path in paths if path.endswith(f".{name.rpartition('.')[2]}")]


@pytest.mark.parametrize(("study", "item", "count"), [("backbones", "table resnet20", 1), ("lee2018", "figure 3c", 2)])
def test_trainings_from_before_a_module_moved_are_finished(tmp_path, study, item, count):
    runs = find_study(study).items[item].runs("cifar10", "cpu", [0])
    run = next(run for run in runs if "anytime." in " ".join(run.flags))
    config = run.config()
    arguments = config["model"]["init_args"]
    moved = {key: old_paths(value) for key, value in arguments.items() if str(value).startswith("anytime.")}
    assert [len(paths) for paths in moved.values()] == [1] * count
    arguments |= {key: path for key, [path] in moved.items()}
    create_run(tmp_path / run.name, config)
    set_state(tmp_path / run.name, "finished")
    assert run_status(run, tmp_path) == "finished"
    arguments |= dict.fromkeys(moved, "anytime.no.Such")
    create_run(tmp_path / "other" / run.name, config)
    with pytest.raises(UsageError, match=r"model\.backbone 'anytime\.no\.Such' \(wanted 'anytime\."):
        run_status(run, tmp_path / "other")


def test_a_folder_that_is_not_a_run_directory_is_left_alone(run, tmp_path):
    (tmp_path / "a").mkdir()
    assert run_status(run(), tmp_path) == "start"  # nothing in it yet
    (tmp_path / "a" / "thesis.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"run\.json is missing"):
        run_status(run(), tmp_path)


def test_each_network_of_a_run_has_its_own_trace(tmp_path):
    assert trace_path(tmp_path, "CascadedTD").name == "trace-test-cascadedtd.safetensors"  # not that of `anytime evaluate`
    assert trace_path(tmp_path, "SerialTD(0)-MultiHead").name == "trace-test-serialtd_0_multihead.safetensors"


def test_a_view_may_be_recorded_on_validation_images(tmp_path):
    path = tmp_path / "run"
    config = parse(["--model=anytimenet", "--model.width=4", "--data=digits", "--data.classes=['1','7']"], [])
    create_run(path, config)
    model = create_model("anytimenet", 2, in_channels=1, width=4)
    model.info = ModelInfo(class_names=("1", "7"), recipe=config)
    set_state(path, "finished")
    model.save(path)

    def view(model):
        return model

    view.made = "in a way"
    record_views(path, {"A": None, "A, on validation": on_validation, "A, made": view})
    assert Trace.load(trace_path(path, "A, made", view)).meta["made"] == "in a way"
    data = create_data("digits", classes=["1", "7"], validation=config["data"]["init_args"]["validation"])
    data.setup()
    loaders = {"test": data.test_dataloader(), "validation": data.val_dataloader()}
    for (part, loader), view, name in zip(loaders.items(), (None, on_validation), ("A", "A, on validation"), strict=True):
        trace = Trace.load(trace_path(path, name, view))
        assert torch.equal(trace.labels, torch.cat([labels for _, labels in loader]))
        assert trace.meta["part"] == part
        assert trace.meta["run_weights"] == weights_of(path)


def test_executors_by_name():
    assert find_executor("local:3").workers == 3
    for wrong in ("local", "local:0", "local:x", "cluster:2"):
        with pytest.raises(UsageError, match=f"got '{wrong}'"):
            find_executor(wrong)


def test_find_recipe():
    assert find_recipe("anytimenet_cifar10.yaml").is_file()
    with pytest.raises(FileNotFoundError, match=r"no recipe nothing\.yaml"):
        find_recipe("nothing.yaml")
