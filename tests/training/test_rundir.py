import json

import pytest
import yaml

from anytime.training.config import UsageError, parse
from anytime.training.rundir import create_run, read_run, set_state


@pytest.fixture(scope="module")
def config():
    return parse(["--model", "anytimenet", "--data", "digits", "--model.width", "8"])


def test_round_trip(config, tmp_path):
    create_run(tmp_path / "a/b", config, overwrite=False)
    again, state = read_run(tmp_path / "a/b")
    assert again == config
    assert state["state"] == "started"
    assert {"format", "anytime", "torch", "hardware", "date"} <= state.keys()
    set_state(tmp_path / "a/b", "finished")
    assert read_run(tmp_path / "a/b")[1]["state"] == "finished"


def test_import_paths_of_older_versions(config, tmp_path):
    create_run(tmp_path, config, overwrite=False)
    old = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert old == config
    modules = {"model": "models.anytimenet", "data": "data.digits", "objective": "objectives", "regime": "training.regimes"}
    for section, module in modules.items():
        old[section]["class_path"] = f"anytime.{module}.{old[section]['class_path']}"
    old["optimizer"]["class_path"] = "torch.optim.sgd.SGD"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert read_run(tmp_path)[0] == config


def test_dry_touches_nothing(config, tmp_path):
    create_run(tmp_path / "run", config, overwrite=False, dry=True)
    assert not (tmp_path / "run").exists()
    create_run(tmp_path / "run", config, overwrite=False)
    (tmp_path / "run/kept").touch()
    create_run(tmp_path / "run", config, overwrite=True, dry=True)
    assert (tmp_path / "run/kept").exists()


def test_existing_run_is_not_overwritten_unless_asked(config, tmp_path):
    create_run(tmp_path, config, overwrite=False)
    (tmp_path / "old").touch()
    with pytest.raises(UsageError, match=r"exists; give another --run, --resume .* or --overwrite"):
        create_run(tmp_path, config, overwrite=False)
    assert (tmp_path / "old").exists()
    create_run(tmp_path, config, overwrite=True)
    assert not (tmp_path / "old").exists()


def test_a_directory_that_is_not_a_run_is_never_overwritten(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"is not a run directory \(run\.json is missing\), so it is not overwritten"):
        create_run(tmp_path, config, overwrite=True)
    with pytest.raises(UsageError, match="is not a run directory"):
        create_run(tmp_path / "thesis.tex", config, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_run_that_is_missing_or_incomplete(config, tmp_path):
    with pytest.raises(UsageError, match="there is no run directory"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is not a complete run directory: run\.json is missing"):
        read_run(tmp_path)
    set_state(tmp_path, "started")
    with pytest.raises(FileNotFoundError, match=r"is not a complete run directory: config\.yaml is missing"):
        read_run(tmp_path)
    create_run(tmp_path, config, overwrite=True)
    assert read_run(tmp_path)[0] == config


def test_run_that_is_damaged_or_of_another_version(config, tmp_path):
    create_run(tmp_path, config, overwrite=False)
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
