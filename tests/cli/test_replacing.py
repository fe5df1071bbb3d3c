"""What commands may replace: only what the user asked for; and one writer at a time."""

import contextlib
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch

import anytime
from anytime.cli import main
from anytime.commands import fit
from anytime.stopping import saved_rules
from anytime.support.locks import only_writer

HALF = ["--stop", "confidence", "--budget", "80%"]


def content(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def other(run) -> str:
    """The same network with other weights, in a run directory of its own."""
    shutil.copytree(run, "other")
    model = anytime.load("other")
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    model.save("other")
    return "other"


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> Path:
    """The trained run, with the traces of both parts."""
    folder = tmp_path_factory.mktemp("evaluated") / "tiny"
    shutil.copytree(trained, folder)
    assert main(["evaluate", str(folder), "--part", "validation"]) == 0
    return folder


@pytest.fixture
def with_traces(evaluated, run) -> str:
    shutil.copytree(evaluated, run, dirs_exist_ok=True)
    return run


def test_fit_never_replaces_other_weights(with_traces, other, refused):
    before = content(other)
    for more in ([], ["--overwrite"]):
        message = refused(["fit", with_traces, *HALF, "--out", other, *more], 1)
        assert "other holds another model, which is not replaced; give another --out" in message
    assert content(other) == before
    Path("mine").mkdir()
    Path("mine/config.json").write_text('{"name": "my project"}')
    assert "mine/config.json has format None" in refused(["fit", with_traces, *HALF, "--out", "mine"], 1)
    assert Path("mine/config.json").read_text() == '{"name": "my project"}'


def test_fit_adds_to_the_rules_of_a_copy(with_traces, capsys):
    assert main(["fit", with_traces, *HALF, "--out", "copy"]) == 0
    assert main(["fit", with_traces, *HALF, "--out", "copy", "--name", "second"]) == 0
    assert list(saved_rules(anytime.load("copy"))) == ["confidence", "second"]
    assert not saved_rules(anytime.load(with_traces))
    assert Path("copy/images.safetensors").read_bytes() == Path(with_traces, "images.safetensors").read_bytes()


def test_fit_replaces_a_rule_only_when_asked(with_traces, refused):
    assert main(["fit", with_traces, *HALF]) == 0
    before = content(with_traces)
    rest = ["--stop", "confidence", "--budget", "90%"]
    for name in ([], ["--name", "confidence"]):
        message = refused(["fit", with_traces, *rest, *name], 2)
        assert "tiny holds a rule 'confidence' already; give another --name, or --overwrite to replace it" in message
    assert content(with_traces) == before
    assert main(["fit", with_traces, *rest, "--overwrite"]) == 0
    assert (
        saved_rules(anytime.load(with_traces))["confidence"].facts["budget"]
        > 0.85 * anytime.step_macs(anytime.load(with_traces), (1, 8, 8))[-1]
    )


def test_rules_of_a_pretrained_model_are_kept_together(run, monkeypatch):
    """They are saved in runs/NAME, beside the rules that are there."""
    monkeypatch.setattr("anytime.pretrained._FOLDER", Path.cwd())
    shutil.copytree(run, "runs/tiny")
    shutil.move(run, "package")
    Path("tiny").symlink_to("package")
    monkeypatch.setattr("anytime.reporting.evaluation.output_folder", lambda name: Path("runs") / name)
    for name in ("one", "two"):
        assert main(["fit", "tiny", *HALF, "--name", name]) == 0
    assert list(saved_rules(anytime.load("runs/tiny"))) == ["one", "two"]


def test_fit_rejects_a_trace_of_other_weights(with_traces, other, refused):
    """The traces were copied with the run before its weights changed."""
    shutil.copy("tiny/trace-validation.safetensors", "other/trace-validation.safetensors")
    before = content(other)
    message = refused(["fit", other, *HALF], 1)
    assert "other/trace-validation.safetensors was recorded with other weights; delete it, or record it again" in message
    assert content(other) == before
    for part in ("validation", "test"):
        assert main(["evaluate", other, "--part", part]) == 0
    assert main(["fit", other, *HALF]) == 0


def test_no_rule_of_two_simultaneous_fits_is_lost(with_traces, monkeypatch):
    fitted, together = fit.fit_rule, threading.Barrier(2)

    def slowly(*arguments):
        rule = fitted(*arguments)
        try:
            together.wait(0.3)  # passes at once if both are here
        except threading.BrokenBarrierError:
            together.reset()
        return rule

    monkeypatch.setattr(fit, "fit_rule", slowly)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda name=name: codes.append(main(["fit", with_traces, *HALF, "--name", name])))
        for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    assert set(saved_rules(anytime.load(with_traces))) == {"one", "two"}


def test_nothing_is_written_beside_a_training(run, refused):
    before = content(run)
    start = ["train", "--model", "anytimenet", "--data", "digits", "--epochs", "1", "--run", run, "--overwrite"]
    with only_writer(run, "a training", brief=False):
        for command in (["evaluate", run], ["fit", run, *HALF], start, ["train", "--resume", run]):
            assert "tiny is in use: a training (process " in refused(command, 1)
    assert content(run) == before


def test_training_does_not_begin_beside_an_evaluation(run, refused):
    with only_writer(run, "an evaluation"):
        assert "tiny is in use: an evaluation (process " in refused(["train", "--resume", run], 1)


def test_profile_replaces_only_profiles(run, refused, capsys):
    before = content(run)
    quick = ["profile", run, "--repeats", "1"]
    for out in ("config.json", "run.json", "model.safetensors", "config.yaml"):
        for more in ([], ["--overwrite"]):
            message = refused([*quick, "--out", f"{run}/{out}", *more], 2)
            assert f"tiny/{out} exists and is not a profile, so it is not replaced; give another --out" in message
    assert content(run) == before
    assert main([*quick, "--out", "a.json"]) == 0
    assert "a.json exists; give another --out, or --overwrite to replace it" in refused([*quick, "--out", "a.json"], 2)
    assert main([*quick, "--out", "a.json", "--overwrite"]) == 0
    for _ in range(2):
        assert main(quick) == 0  # its own place
    for notes in ("deadline 5 ms, ask Ann", '{"deadline": 5}'):
        Path(run, "profile.json").write_text(notes)
        for more in ([], ["--overwrite"]):
            assert "tiny/profile.json exists and is not a profile, so it is not replaced" in refused([*quick, *more], 2)
        assert Path(run, "profile.json").read_text() == notes


def test_compare_and_evaluate_replace_only_when_asked(run, refused):
    Path("mine.png").write_text("mine")
    assert "mine.png exists; give another --out, or --overwrite" in refused(["compare", run, "--out", "mine.png"], 2)
    assert Path("mine.png").read_text() == "mine"
    assert main(["compare", run, "--out", "mine.png", "--overwrite"]) == 0
    assert Path("mine.png").read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", run, "--out", "there"]) == 0
    Path("there/trace-test.safetensors").unlink()
    before = content("there")
    message = refused(["evaluate", run, "--out", "there"], 2)
    assert "there/metrics-test.json exists; give another --out, or --overwrite to replace it" in message
    assert content("there") == before
    assert main(["evaluate", run, "--out", "there", "--overwrite"]) == 0
    assert Path("there/trace-test.safetensors").is_file()


@pytest.fixture
def full_disk():
    """`full_disk(size)`: files cannot grow beyond `size` bytes inside; the error is that of a full disk but for its name."""
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited(size: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.mark.parametrize(
    ("command", "size", "file"),
    [
        (["evaluate", "tiny"], 1_000, "trace-test.safetensors"),
        (["evaluate", "tiny"], 38_000, "figures/steps.png"),
        (["evaluate", "tiny"], 80_000, "report.html"),
        (["fit", "tiny", *HALF], 500, "model.safetensors"),
        (["fit", "tiny", *HALF, "--out", "new"], 500, "images.safetensors"),
    ],
)
def test_a_full_disk_ends_in_one_sentence_and_leaves_no_half_a_file(with_traces, capsys, full_disk, command, size, file):
    before = content(with_traces)
    with full_disk(size):
        assert main(command) == 1
    message = capsys.readouterr().err.rpartition("\r")[2]  # after the progress bar
    assert re.fullmatch(rf"anytime {command[0]}: error: File too large: .*{re.escape(file)}\n", message), message
    after = content(with_traces)
    assert after.keys() == before.keys()
    assert after["tiny/model.safetensors"] == before["tiny/model.safetensors"]
    assert after[f"tiny/{file}"] == before[f"tiny/{file}"]
    assert not Path("new").exists()


def begun(*_: object, **__: object) -> None:
    os._exit(77)


@pytest.mark.parametrize("command", ["evaluate", "fit", "profile"])
def test_a_folder_without_permission_is_said_before_the_work(command, run, ordinary, monkeypatch):
    monkeypatch.setattr("anytime.reporting.evaluation.record", begun)
    monkeypatch.setattr("anytime.commands.profile._measure", begun)
    Path(run).chmod(0o555)
    options = HALF if command == "fit" else []
    expected = f"anytime {command}: error: Permission denied: {run}\n"
    assert ordinary([command, run, *options]) == (1, expected)


def test_a_folder_that_is_only_read_needs_no_permission(with_traces, ordinary):
    Path(with_traces).chmod(0o555)
    assert ordinary(["fit", with_traces, *HALF, "--out", "other"])[0] == 0
    assert ordinary(["profile", with_traces, "--repeats", "1", "--out", "profile.json"])[0] == 0
