"""Real trainings of a study that are interrupted or killed, and resumed."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from anytime.studies import TrainingRun, run_all
from anytime.studies.executors.choice import find_executor

RECIPE = {"model": {"class_path": "anytimenet", "init_args": {"width": 4}}, "data": "digits", "epochs": 2}
LONG = (
    *("--model.blocks=[1,2,1]", "--model.scheme=[[1,1,1],[0,1,0]]", "--data.limit=96", "--data.batch_size=2"),
    *("--epochs=6", "--deterministic=true"),
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def kill_after_an_epoch(run: Path, parent: bool) -> threading.Thread:
    """Kills the process that trains in `run`, or its parent, when it has written a checkpoint."""

    def kill() -> None:
        while not (run / "checkpoints" / "last.ckpt").is_file():
            time.sleep(0.01)
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if str(run).encode() in words and b"train" in words:
                    above = (process / "stat").read_text().rpartition(")")[2].split()[1]
                    os.kill(int(above if parent else process.name), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")  # of Ray
@pytest.mark.parametrize("where", ["local:2", "ray"])
def test_a_training_that_is_killed_ends_with_the_same_weights(recipe, tmp_path, request, where):
    """Two at once, one killed after its first epoch (on Ray its worker is); the serial run has the same bytes."""
    if where == "ray":
        ray = pytest.importorskip("ray")
        request.addfinalizer(ray.shutdown)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    runs = [TrainingRun(name, recipe, LONG, seed, {name: None}) for seed, name in enumerate(("a", "b"))]
    run_all(runs, tmp_path / "serial", say=lambda _: None)
    thread = kill_after_an_epoch(tmp_path / "at_once" / "b", where == "ray")
    executor = find_executor(where)
    run_all(runs, tmp_path / "at_once", say=lambda _: None, executor=executor)
    thread.join()
    log = (tmp_path / "at_once" / "logs" / "b.log").read_text()
    assert log.count("next: anytime evaluate") == 1
    for run in runs:
        files = (tmp_path / folder / run.name / "model.safetensors" for folder in ("serial", "at_once"))
        assert len({file.read_bytes() for file in files}) == 1
    assert "training" not in json.loads((tmp_path / "at_once" / "b" / "run.json").read_text())  # it was resumed


@pytest.mark.slow
def test_a_real_training_is_interrupted_and_resumed(recipe, tmp_path):
    """Ctrl-C in mid-training: after resuming, the answers equal those of a training without it."""
    whole, cut = (TrainingRun(name, recipe, LONG, 0, {name: None}) for name in ("whole", "cut"))
    run_all([whole], tmp_path, say=lambda _: None)

    def interrupt() -> None:
        while not (tmp_path / "cut" / "checkpoints" / "last.ckpt").is_file():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_all([whole, cut], tmp_path, say=lambda _: None)
    thread.join()
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["state"] == "interrupted"
    traces = run_all([whole, cut], tmp_path, say=lambda _: None)
    assert torch.equal(traces["whole"][0].logits, traces["cut"][0].logits)
    assert traces["cut"][0].meta["trained_on"]
