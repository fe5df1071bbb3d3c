import contextlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from anytime.model import create_model
from anytime.pretrained import load
from anytime.reporting.evaluation import write_results
from anytime.saving import save_trained
from anytime.support.files import part_of
from anytime.support.folders import OWN
from anytime.trace import Trace
from anytime.training.config import UsageError, parse
from anytime.training.rundir import check_new, create_run, finish_replacement, new_run, read_run, set_state


@pytest.fixture(scope="module")
def config():
    return parse(["--model", "anytimenet", "--data", "digits", "--model.width", "8"])


def test_round_trip(config, tmp_path):
    assert create_run(tmp_path / "a/b", config) == tmp_path / "a/b"
    again, state = read_run(tmp_path / "a/b")
    assert again == config
    assert state["state"] == "started"
    assert {"format", "anytime", "torch", "hardware", "date"} <= state.keys()
    set_state(tmp_path / "a/b", "finished")
    assert read_run(tmp_path / "a/b")[1]["state"] == "finished"


def test_import_paths_of_older_versions(config, tmp_path):
    create_run(tmp_path, config)
    old = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert old == config
    modules = {"model": "models.anytimenet", "data": "data.digits", "objective": "objectives", "regime": "training.regimes"}
    for section, module in modules.items():
        old[section]["class_path"] = f"anytime.{module}.{old[section]['class_path']}"
    old["optimizer"]["class_path"] = "torch.optim.sgd.SGD"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert read_run(tmp_path)[0] == config


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}


def test_checking_touches_nothing(config, tmp_path):
    check_new(tmp_path / "run", overwrite=False)
    assert not (tmp_path / "run").exists()
    create_run(tmp_path / "run", config)
    before = files(tmp_path)
    check_new(tmp_path / "run", overwrite=True)
    with pytest.raises(UsageError, match=r"exists; give another --run, --resume .* or --overwrite"):
        check_new(tmp_path / "run", overwrite=False)
    assert files(tmp_path) == before


def test_an_empty_directory_is_used(config, tmp_path):
    with new_run(tmp_path, config, overwrite=False) as folder:
        assert folder == tmp_path
        assert set(files(tmp_path)) == {".lock", "run.json", "config.yaml"}
    assert set(files(tmp_path)) == {"run.json", "config.yaml"}


MINE = (
    *("notes.txt", "figures/mine.svg", "figures/mine.png", "figures/validation.png", "checkpoints/best.ckpt"),
    *("trace-old-backup.safetensors", "trace-test-mine.safetensors", "metrics-mine.json", "report-mine.html"),
    *("report-validation.html", "metrics-validation.json", "trace-validation.safetensors", "figures/validation/steps.png"),
)
OURS = {  # with what shows whose they are
    "model.safetensors": "earlier",
    "config.json": '{"format": 1, "model": "earlier", "arguments": {}, "sha256": ""}',
    "metrics-test.json": '{"steps": [], "average_error": 0.5}',
    "profile.json": '{"format": 1, "model": "earlier", "macs": [], "batches": {}}',
    "report.html": "<!DOCTYPE html><h2>How it was measured</h2>",
    "figures/steps.png": "tEXtSoftware\0anytime",
    "checkpoints/last.ckpt": "earlier",
    "metrics/metrics.csv": "earlier",
    "tensorboard/events.out.tfevents.1": "earlier",
}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return Trace.from_logits(torch.randn(2, 6, 3), torch.arange(6) % 3, macs=[1, 2], class_names=("a", "b", "c"))


def test_every_result_of_an_evaluation_is_known_as_ours(trace, tmp_path):
    for part in ("test", "validation"):
        write_results(trace, tmp_path, part)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(written) == 14
    assert written <= set(OWN)


@pytest.fixture
def earlier(config, tmp_path, trace) -> Path:
    """A finished run with everything that commands write into it, and files of the user."""
    create_run(tmp_path, config)
    set_state(tmp_path, "finished")
    for name, text in (OURS | dict.fromkeys(MINE, "earlier")).items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    trace.save(tmp_path / "trace-test.safetensors")
    trace.save(tmp_path / "trace-test-backup.safetensors")
    replace(trace, meta={"trained_on": "CPU"}).save(tmp_path / "trace-test-student_2.safetensors")
    return tmp_path


def test_an_earlier_run_stays_whole_until_its_replacement_has_finished(config, earlier):
    before = files(earlier)
    with new_run(earlier, config | {"epochs": 77}, overwrite=True) as folder:
        assert folder == earlier / "replacement"
        (folder / "model.safetensors").write_text("new")
        finish_replacement(earlier)
        after = files(earlier)
        assert {name: after[name] for name in before} == before
        set_state(folder, "finished")
        finish_replacement(earlier)
    left = {"run.json", "config.yaml", "model.safetensors", "trace-test-backup.safetensors", *MINE}
    assert set(files(earlier)) == left
    assert (earlier / "model.safetensors").read_text() == "new"
    assert (earlier / "notes.txt").read_text() == "earlier"
    assert read_run(earlier)[0]["epochs"] == 77
    assert not (earlier / "replacement").exists()
    assert not (earlier / "metrics").exists()


@pytest.mark.parametrize("moves", range(4))
def test_putting_the_replacement_in_its_place_can_be_repeated_after_a_kill(config, earlier, monkeypatch, moves):
    with new_run(earlier, config | {"epochs": 77}, overwrite=True) as folder:
        (folder / "model.safetensors").write_text("new")
        set_state(folder, "finished")
        left, move = [moves], os.replace

        def killed(source, target):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            move(source, target)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr("anytime.training.rundir.os.replace", killed)
            finish_replacement(earlier)
        finish_replacement(earlier)
    assert (earlier / "model.safetensors").read_text() == "new"
    assert read_run(earlier)[0]["epochs"] == 77
    assert not (earlier / "replacement").exists()
    assert not (earlier / "trace-test.safetensors").exists()


def test_a_finished_replacement_survives_another_one(config, earlier, monkeypatch):
    """After a kill while it is put in its place, a model cannot be loaded; --resume and --overwrite complete it first."""
    build = {"blocks": (1, 1), "scheme": ((1, 1),), "width": 2, "in_channels": 1}
    for name in ("config.json", "model.safetensors"):
        (earlier / name).unlink()
    create_model("anytimenet", 3, **build).save(earlier)
    move = os.replace

    def killed(source, target):
        move(source, target)
        if target == earlier / "model.safetensors":
            raise KeyboardInterrupt

    with new_run(earlier, config | {"epochs": 77}, overwrite=True) as folder:
        save_trained(create_model("anytimenet", 3, **build), folder)
        new = (folder / "model.safetensors").read_bytes()
        set_state(folder, "finished")
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr("anytime.training.rundir.os.replace", killed)
            finish_replacement(earlier)
    with pytest.raises(ValueError, match=r"half replaced by a later training; `anytime train --resume .*` completes it"):
        load(earlier)
    with contextlib.suppress(KeyboardInterrupt), new_run(earlier, config, overwrite=True):
        raise KeyboardInterrupt
    assert (earlier / "model.safetensors").read_bytes() == new
    load(earlier)


@pytest.mark.parametrize(
    "content", [{}, {"checkpoints/last.ckpt": "old", ".lock": ""}, {"metrics/.metrics.csv.anytime-0123abcd-9-1.part": ""}]
)
@pytest.mark.parametrize("way", ["resumed", "overwritten"])
def test_a_replacement_that_was_half_removed_is_removed(config, earlier, content, way):
    """A kill may leave it empty, or without its state and with some of the library's own files."""
    for name in ["replacement/x", *(f"replacement/{name}" for name in content)]:
        (earlier / name).parent.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (earlier / "replacement" / name).write_text(text)
    if way == "resumed":
        finish_replacement(earlier)
        assert not (earlier / "replacement").exists()
    else:
        assert create_run(earlier, config | {"epochs": 77}) == earlier / "replacement"
        assert set(files(earlier / "replacement")) == {"run.json", "config.yaml"}


def test_a_folder_of_the_user_is_no_replacement(config, earlier):
    """Whatever it holds besides: an interrupted training, or files of the user with names of the library."""
    for name, state in (("thesis.tex", None), ("report.html", None), ("config.json", None), ("notes/a.txt", "interrupted")):
        new = earlier / "replacement"
        (new / name).parent.mkdir(parents=True)
        (new / name).write_text("years of work")
        if state:
            set_state(new, state)
        before = files(earlier)
        finish_replacement(earlier)
        with pytest.raises(
            UsageError, match="holds files that this library did not write, so it is not replaced; move it away"
        ):
            create_run(earlier, config)
        assert files(earlier) == before
        shutil.rmtree(new)


def test_files_of_the_user_in_a_finished_replacement_stay(config, earlier):
    with new_run(earlier, config | {"epochs": 77}, overwrite=True) as folder:
        (folder / "model.safetensors").write_text("new")
        (folder / "notes.txt").write_text("years of work")
        set_state(folder, "finished")
        finish_replacement(earlier)
    assert read_run(earlier)[0]["epochs"] == 77
    assert files(earlier / "replacement") == {"notes.txt": "years of work"}


def test_a_kill_while_a_replacement_is_removed_or_made_blocks_nothing(config, earlier, killed):
    """Before each change of a file; the next training removes everything that is left over."""
    before = files(earlier)
    with contextlib.suppress(KeyboardInterrupt), new_run(earlier, config | {"epochs": 77}, overwrite=True):
        raise KeyboardInterrupt
    for number in range(1, 60):
        if not killed(number, earlier, lambda: create_run(earlier, config | {"epochs": 78})):
            break
        with new_run(earlier, config | {"epochs": 77}, overwrite=True) as folder:
            assert set(files(folder)) == {"run.json", "config.yaml"}
        assert not [path for path in earlier.rglob("*") if path.name.endswith(".part") or path.name == ".lock"]
        assert {name: files(earlier)[name] for name in before} == before
    assert 10 < number < 59


def test_a_kill_while_a_run_is_made_leaves_nothing_for_ever(config, tmp_path, killed):
    other = part_of(tmp_path / "run-2").name.replace(f"-{os.getpid()}-", "-999999999-")  # another run's leftover
    (tmp_path / other).mkdir()
    for number in range(1, 60):
        ended = not killed(number, tmp_path, lambda: create_run(tmp_path / "run", config))
        if not (tmp_path / "run").exists():
            create_run(tmp_path / "run", config)
        assert {path.name for path in tmp_path.iterdir()} == {"run", other}
        assert set(files(tmp_path / "run")) == {"run.json", "config.yaml"}
        shutil.rmtree(tmp_path / "run")
        if ended:
            break
    assert 5 < number < 59


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"format": 1, "name": "my project"}'])
def test_a_directory_that_is_not_a_run_is_never_overwritten(config, tmp_path, content):
    (tmp_path / "thesis.tex").write_text("years of work")
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    before = files(tmp_path)
    with pytest.raises(
        UsageError, match=r"is not a run directory \(run\.json is (missing|not of this library)\), so it is not"
    ):
        check_new(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="is not a directory"), new_run(tmp_path / "thesis.tex", config, overwrite=True):
        pass
    assert files(tmp_path) == before


def test_two_new_runs_of_one_name(config, tmp_path, monkeypatch):
    """Another process makes the same directory after it was found to be free."""
    monkeypatch.setattr("anytime.training.rundir.check_new", lambda *_: create_run(tmp_path / "run", config) and None)
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "run" and os.path.lexists(path))
    message = "run exists: another process has just made it"
    with pytest.raises(UsageError, match=message), new_run(tmp_path / "run", config | {"epochs": 77}, overwrite=False):
        pass


def test_run_that_is_missing_or_incomplete(config, tmp_path):
    with pytest.raises(UsageError, match="there is no run directory"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is not a complete run directory: run\.json is missing"):
        read_run(tmp_path)
    set_state(tmp_path, "started")
    with pytest.raises(FileNotFoundError, match=r"is not a complete run directory: config\.yaml is missing"):
        read_run(tmp_path)
    assert read_run(create_run(tmp_path, config))[0] == config


def test_run_that_is_damaged_or_of_another_version(config, tmp_path):
    create_run(tmp_path, config)
    state = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(ValueError, match=r"has format 99, this version of anytime .* reads format 1"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(state)[:20])
    with pytest.raises(ValueError, match="is damaged"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(state))
    (tmp_path / "config.yaml").write_text("- 1")
    with pytest.raises(ValueError, match=r"config\.yaml: a recipe must be a mapping .* got list"):
        read_run(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"modle": "anytimenet"}))
    with pytest.raises(ValueError, match=r"unknown key 'modle'; did you mean 'model'"):
        read_run(tmp_path)


def test_a_run_that_appears_before_the_lock_is_not_replaced(config, earlier, monkeypatch):
    before = files(earlier)
    monkeypatch.setattr("anytime.training.rundir.check_new", lambda *_: None)  # there was nothing yet
    with pytest.raises(UsageError, match="exists; give another --run"), new_run(earlier, config, overwrite=False):
        pass
    assert files(earlier) == before
