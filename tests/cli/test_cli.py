"""Every command as a user types it: what it prints and writes, and how it reports errors."""

import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import anytime
from anytime.cli import COMMANDS, main
from anytime.support.units import macs_text

TRAIN = ("--model", "anytimenet", "--data", "digits", "--epochs", "1")


def test_help(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in COMMANDS)
    for name in COMMANDS:
        assert callable(importlib.import_module(f"anytime.commands.{name}").run)
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: anytime {name}")
    assert main(["--version"]) == 0
    assert re.fullmatch(r"anytime \d+\.\d+.*\n", capsys.readouterr().out)


def test_help_is_fast_because_it_loads_no_large_library():
    large = ["lightning", "matplotlib", "torchvision"]
    names = sorted(COMMANDS.keys() - {"demo", "study", "train"})  # whose help is made from what they load
    code = (
        f"import sys; from anytime.cli import main; codes = [main([name, '--help']) for name in {names}];"
        f"loaded = [name for name in {large} if name in sys.modules]; sys.exit(f'{{codes}} {{loaded}}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == f"{[0] * len(names)} []\n"
    assert done.stdout.count("usage: anytime ") == len(names)


def test_help_of_train_and_of_one_class(capsys, refused):
    assert main(["train", "--model.help", "anytimenet"]) == 0
    assert "--model.width" in capsys.readouterr().out
    assert "did you mean 'Adam'" in refused(["train", "--optimizer.help", "adamm"], 2)


@pytest.mark.parametrize(("name", "hint"), [("trian", "did you mean 'train'"), ("bogus", "valid: demo, train")])
def test_unknown_command(capsys, name, hint):
    assert main([name]) == 2
    assert capsys.readouterr().err.startswith(f"anytime: unknown command {name!r}; {hint}")


def test_evaluate(run, capsys):
    shutil.rmtree("tiny/figures")
    assert main(["evaluate", run]) == 0
    out = capsys.readouterr().out
    assert re.search(r"step +MACs .* accuracy +worst class +which +confidence", out)
    assert "average error AE" in out
    assert "timeliness" in out
    assert "error at share of MACs: 0.25: " in out
    numbers = json.loads(Path("tiny/metrics-test.json").read_text())
    assert [step["step"] for step in numbers["steps"]] == [1, 2]
    worst = numbers["steps"][1]
    assert re.search(rf" {worst['worst_class_accuracy']:.2%} +{worst['worst_class']} ", out)
    figures = {path.stem for path in Path("tiny/figures").glob("*.png")}
    assert figures == {"steps", "speed_accuracy", "calibration", "per_class"}
    report = Path("tiny/report.html").read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", report)
    assert not re.search(r"url\((?!#)|@import|https?:", report)


def test_evaluate_elsewhere_and_the_validation_images(run):
    assert main(["evaluate", run, "--part", "validation", "--out", "else/where"]) == 0
    assert Path("else/where/trace-validation.safetensors").is_file()
    assert not Path("tiny/trace-validation.safetensors").exists()


def test_compare(run, capsys, refused):
    shutil.copytree(run, "other")
    assert main(["compare", run, "other", "--out", "figures/both.pdf"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^tiny ", out, re.MULTILINE)
    assert re.search(r"^other ", out, re.MULTILINE)
    assert Path("figures/both.pdf").stat().st_size > 1000
    assert main(["compare", run, "other", "--out", "both.html"]) == 0
    page, printed = Path("both.html").read_text(), capsys.readouterr().out
    cells = {cell for line in printed.splitlines() for cell in re.split(r"  +", line.strip()) if re.match(r"[+\d]", cell)}
    assert len(cells) > 10
    assert [cell for cell in cells if not re.search(rf">{re.escape(cell)}</t[dh]>", page)] == []  # what is printed is there
    for row in json.loads(Path("tiny/metrics-test.json").read_text())["steps"]:
        for name in ("tiny", "other"):
            said = f"{name}, step {row['step']}, {macs_text(row['macs'])} MACs: accuracy {row['accuracy']:.2%}"
            assert f"<title>{said}</title>" in page
    assert "both.html exists; give another --out" in refused(["compare", run, "other", "--out", "both.html"], 2)
    assert "at equal MACs, first tiny, second other:" in out
    assert re.search(r" \+0.00% +\+0.00% to \+0.00% +1$", out, re.MULTILINE)
    trace = anytime.Trace.load("other/trace-test.safetensors")
    recipe = dict(trace.meta["recipe"]) | {"seed": 1}
    dataclasses.replace(trace, meta=dict(trace.meta) | {"recipe": recipe}).save("other/trace-test.safetensors")
    assert main(["compare", run, "other", "--group"]) == 0
    assert re.search(r"^tiny .* 2 +\d+.\d\d% ± 0.00%", capsys.readouterr().out, re.MULTILINE)
    assert trace.meta["load"] >= 0
    assert "each run can be compared once, got tiny 2 times" in refused(["compare", run, run], 2)
    Path("other/trace-test.safetensors").unlink()
    assert "run `anytime evaluate other`" in refused(["compare", run, "other"], 1)


def test_predict(run, images, capsys):
    assert main(["predict", run, *images, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [f"{image} (no deadline)" for image in images]
    steps = [line for line in lines if line.startswith(" ")]
    pattern = r"  step [12]/2 +[\d.]+ k MACs +[\d.]+ ms  \d \(\d+ %\), \d \(\d+ %\), \d \(\d+ %\)"
    assert len(steps) == 6
    assert all(re.fullmatch(pattern, step) for step in steps)


def test_progress_is_shown_on_a_terminal(run, images, capsys, monkeypatch):
    assert main(["predict", run, images[0]]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["predict", run, images[0]]) == 0
    assert "profiling batches of 1" in capsys.readouterr().err


def test_predict_under_deadlines(run, images, capsys):
    assert main(["predict", run, images[0], "--deadline", "0.001us"]) == 0
    out = capsys.readouterr().out
    assert "no step fits: the first takes about" in out
    assert "step 1/2" not in out
    assert main(["predict", run, images[0], "--deadline", "100s"]) == 0
    assert "step 2/2" in capsys.readouterr().out


def test_a_deadline_means_the_same_as_in_python(run, images, capsys):
    for passed in ("0", "-0.0", "-1", "-5ms", "-1e-3", "-inf", "-.5", "0ms"):
        assert main(["predict", run, images[0], "--deadline", passed]) == 0
        out = capsys.readouterr().out
        assert f"{images[0]} (deadline passed)\n  the deadline has passed, so the answer is the prior" in out
        assert " step " not in out
    for never in ("inf", "1e10", "2e9s"):
        assert main(["predict", run, images[0], "--deadline", never]) == 0
        out = capsys.readouterr().out
        assert "(no deadline)" in out
        assert "step 2/2" in out
    assert main(["predict", run, images[0], "--deadline", "100"]) == 0  # a number of seconds
    assert "step 2/2" in capsys.readouterr().out


def test_damaged_image_is_found_before_any_answer_is_printed(run, images, refused):
    Path("bad.png").write_bytes(Path("grey.png").read_bytes()[:40])
    assert "bad.png is damaged" in refused(["predict", run, *images, "bad.png"], 1)
    assert "missing.png" in refused(["predict", run, "missing.png", *images], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--deadline", "5xs"], "or text with a unit like '5ms', '0.2s' or '800us', got '5xs'"),
        (["--deadline", "nan"], "deadline must be a number of seconds, or text with a unit like '5ms'"),
        (["--deadline", ""], "deadline must be a number of seconds, or text with a unit like '5ms'"),
        (["--deadline", "True"], "got 'True'"),
        (["--deadline", "5 minutes"], "got '5 minutes'"),
        (["--top", "0"], "--top must be at least 1, got 0"),
        (["--top", "x"], "invalid int value: 'x'"),
        (["--device", "abacus"], "device 'abacus' is not available here"),
        (["--deadlin", "5ms"], "unknown argument --deadlin; did you mean '--deadline'"),
    ],
)
def test_predict_refuses(run, images, options, message, refused):
    assert message in refused(["predict", run, images[0], *options], 2)


@pytest.mark.parametrize("command", [["evaluate"], ["compare"], ["predict"]])
def test_unknown_run(run, command, refused):
    Path("runs").mkdir()
    shutil.copytree(run, "runs/mine")
    image = ["x.png"] if command == ["predict"] else []
    message = refused([*command, "runs/mime", *image], 2)
    assert "no run directory and no pretrained model 'runs/mime'; did you mean 'runs/mine'?" in message


def test_run_that_is_not_finished(run, refused):
    Path("tiny/config.json").unlink()
    assert "continue it with `anytime train --resume tiny`" in refused(["evaluate", run], 1)
    Path("empty").mkdir()
    assert "empty holds no trained model" in refused(["predict", "empty", "x.png"], 1)


def test_damaged_run(run, refused):
    weights = Path("tiny/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refused(["evaluate", run], 1)
    assert "model.safetensors is damaged" in message
    config = json.loads(Path("tiny/config.json").read_text())
    Path("tiny/config.json").write_text(json.dumps(config | {"format": 99}))
    assert "has format 99" in refused(["evaluate", run], 1)


def test_trace_that_is_damaged(run, refused):
    trace = Path("tiny/trace-test.safetensors")
    trace.write_bytes(trace.read_bytes()[:-100])
    assert "trace-test.safetensors" in refused(["compare", run], 1)


def test_wrong_options(run, refused):
    assert "invalid choice: 'train'" in refused(["evaluate", run, "--part", "train"], 2)
    assert "arguments are required: RUN" in refused(["evaluate"], 2)
    assert "device 'abacus'" in refused(["evaluate", run, "--device", "abacus"], 2)
    assert "did you mean 'anytimenet'" in refused(["models", "anytimenett"], 2)
    assert "'nothing.here' cannot be imported" in refused(["models", "nothing.here"], 2)
    assert "ending with one of " in refused(["compare", run, "--out", "x.foo"], 2)
    assert "no class matches 'cat'" in refused(["train", *TRAIN, "--data.classes", "cat"], 2)
    assert "never stop; got 2" in refused(["predict", run, "x.png", "--stop", "confidence=2"], 2)
    assert "--epochs must be at least 1, got 0" in refused(["demo", "--epochs", "0"], 2)
    assert "epochs must be int, got 'x'" in refused(["train", *TRAIN, "--epochs", "x"], 2)
    assert "did you mean 'width'" in refused(["train", *TRAIN, "--model.widht", "3"], 2)
    assert "--config: expected one argument" in refused(["train", *TRAIN, "--config"], 2)


def test_missing_data(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    message = refused(["train", "--model", "anytimenet", "--data", "cifar10", "--data.root", "nowhere"], 1)
    assert "there is no folder nowhere" in message
    assert "--data.download true" in message
    assert not Path("runs").exists()


def test_models(capsys):
    assert main(["models"]) == 0
    assert "anytimenet_baseline" in capsys.readouterr().out
    assert main(["models", "anytimenet"]) == 0
    out = capsys.readouterr().out
    assert "755,802 parameters, 7 steps" in out
    assert "--model.width" in out
    assert "132.6 M" in out


def test_datasets(tmp_path, capsys):
    assert main(["datasets", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^Digits +1,437 +360 +10 +1x8x8 +yes", out, re.MULTILINE)
    assert re.search(r"^CIFAR10 .* no ", out, re.MULTILINE)
    assert f"looked in {tmp_path}" in out


def test_interrupt_and_unexpected_errors(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("anytime.commands.models.run", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "\nanytime models: interrupted\n"
    monkeypatch.setattr("anytime.commands.models.run", lambda _: {}["bug"])
    with pytest.raises(KeyError):
        main(["models"])


def test_traceback_on_request(run, monkeypatch):
    monkeypatch.setenv("ANYTIME_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match=r"x\.png"):
        main(["predict", run, "x.png"])


def test_the_time_course_is_drawn(run, images, capsys, monkeypatch):
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: (drawn.append(self), save(self, *args, **kwargs)))
    assert main(["predict", run, images[0], "--plot", "course.PNG"]) == 0
    assert "wrote course.PNG" in capsys.readouterr().out
    assert Path("course.PNG").read_bytes().startswith(b"\x89PNG")
    step, macs, ms = drawn[0].axes
    assert list(step.get_lines()[0].get_xdata())[:2] == [1, 2]
    for axes in (macs, ms):
        first, second, _ = axes.get_lines()[0].get_xdata()
        assert 0 < first < second
    assert sum(line.get_ydata()[1] for line in step.get_lines()) <= 1 + 1e-6


def test_what_cannot_be_drawn_is_said(run, images, refused, capsys):
    Path("old.png").touch()
    for arguments, message in {
        (images[0], images[1], "--plot", "a.png"): "--plot draws the time course of one image, got 2 images",
        (images[0], "--plot", "a.xyz"): "--plot needs the name of a figure, ending with one of",
        (images[0], "--plot", "old.png"): "old.png exists; give another --plot, or --overwrite to replace it",
    }.items():
        assert message in refused(["predict", run, *arguments], 2)
    Path("frames").mkdir()
    assert "of one image, got a folder" in refused(["predict", run, "frames", "--camera-like", "--plot", "a.png"], 2)
    assert main(["predict", run, images[0], "--deadline", "0", "--plot", "a.png"]) == 1
    assert "no step answered before the deadline" in capsys.readouterr().err
    assert not Path("a.png").exists()
    assert main(["predict", run, images[0], "--plot", "old.png", "--overwrite"]) == 0
