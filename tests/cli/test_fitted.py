"""Rules, label levels and profiles fitted to a run, and frames of a camera, from the command to the answer."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import anytime
from anytime.cli import main
from anytime.stopping.levels import LevelChoice


@pytest.mark.usefixtures("threads")
def test_profile_is_what_a_predictor_plans_by(run, capsys, refused):
    assert main(["profile", run, "--batch", "1,3", "--repeats", "5", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "batch 1, " in out
    assert "batch 3, " in out
    assert out.count("p999 ms") == 2
    model = anytime.load(run)
    measured = anytime.Profile.load(Path(run) / "profile.json")
    assert anytime.Predictor(model, measured, combine="product")(torch.rand(3, 1, 8, 8)).step == model.num_steps
    assert "--batch must be numbers like 1,8,32, got '1,x'" in refused(["profile", run, "--batch", "1,x"], 2)
    assert "--repeats and --threads must be at least 1" in refused(["profile", run, "--repeats", "0"], 2)


def test_predict_with_rule_and_combiner(run, images, capsys, refused):
    assert main(["predict", run, images[0], "--stop", "confidence=0.0", "--combine", "product"]) == 0
    out = capsys.readouterr().out
    assert "step 1/2" in out
    assert "step 2/2" not in out
    assert main(["predict", run, images[0], "--combine", "mixture"]) == 0
    for options, message in {
        ("--stop", "confidenc=0.5"): "did you mean 'confidence'",
        ("--stop", "confidence=high"): "confidence=VALUE needs a number, got 'high'",
        ("--stop", "never=1"): "a rule 'never' is not made from one number, got 'never=1'",
        ("--stop", "any=1"): "a rule 'any' is not made from one number",
        ("--stop", ""): "unknown rule ''",
        ("--stop", "confidence"): "'confidence' was never fitted to this model (no rules are saved with this model)",
        ("--combine", "produkt"): "did you mean 'product'",
        ("--combine", "temperature"): "'temperature' is fitted on a validation trace",
    }.items():
        assert message in refused(["predict", run, images[0], *options], 2)


def test_fit_and_predict_by_name(run, images, capsys, refused):
    assert main(["fit", run, "--stop", "confidence", "--budget", "80%", "--combine", "temperature"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"answers +images +n +accuracy +lost by stopping +mean MACs +% of all +mean ms", out)
    assert re.search(r"with the rule +test \(held out\) +\d+ ", out)
    assert "test images that stop at step: 1: " in out
    assert "anytime predict tiny IMAGE --stop confidence" in out
    assert Path("tiny/trace-validation.safetensors").is_file()
    fitted = anytime.stopping.saved_rules(anytime.load(run))["confidence"]
    assert fitted.combine.kind == "temperature"
    assert main(["predict", run, images[0], "--stop", "confidence"]) == 0
    assert "fitted to the answers of Temperature" in refused(
        ["predict", run, images[0], "--stop", "confidence", "--combine", "product"], 2
    )
    assert main(["fit", run, "--stop", "confidence", "--max-loss", "0.0001", "--sure", "0.9", "--name", "safe"]) == 0
    out = capsys.readouterr().out
    assert "no threshold can guarantee that loss with " in out
    assert "calibrated on the same images" not in out
    assert main(["fit", run, "--stop", "confidence", "--max-loss", "0.3", "--name", "bold", "--out", "other"]) == 0
    assert (
        "'safe' and 'bold' were calibrated on the same images: the guarantee of each holds only if" in capsys.readouterr().out
    )
    assert main(["fit", run, "--combine", "temperature", "--out", "elsewhere"]) == 0
    assert list(anytime.stopping.saved_rules(anytime.load(run))) == ["confidence", "safe"]
    assert list(anytime.stopping.saved_rules(anytime.load("elsewhere"))) == ["confidence", "safe", "temperature"]
    assert main(["predict", "elsewhere", images[0], "--combine", "temperature"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "choose a rule to fit: --stop confidence, budgeted, value, learned"),
        (["--stop", "confidence"], "--stop confidence needs one of --budget or --max-loss"),
        (["--stop", "confidence", "--budget", "50%", "--max-loss", "0.1"], "needs one of"),
        (["--stop", "value", "--budget", "50%"], "--stop value needs --price"),
        (["--stop", "confidence", "--max-loss", "2"], "--max-loss must lie between 0 and 1, got 2"),
        (["--stop", "confidence", "--budget", "50%", "--sure", "0.9"], "give --max-loss as well"),
        (["--stop", "learned", "--price", "-1"], "--price must be at least 0, got -1"),
        (["--stop", "patience"], "invalid choice: 'patience'"),
        (["--levels", "0.9"], "--levels is for models with several label levels, tiny has one of 10 classes"),
        (["--levels", "1.1"], "--levels must be an accuracy above 0 and at most 1, got 1.1"),
        (["--levels", "0.9", "--combine", "product"], "leave out --stop and its options, --combine and --name"),
    ],
)
def test_fit_refuses(run, options, message, refused):
    assert message in refused(["fit", run, *options], 2)


@pytest.fixture
def frames(run) -> str:
    """Folders of images named like classes: three of a 0, one of a 7."""
    for name in ("0/a.png", "0/b.png", "0/c.png", "7/a.png"):
        Path("stream", name).parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((8, 8)).save(Path("stream", name))
    Path("stream/.hidden").mkdir()
    return "stream"


def test_camera(run, frames, capsys, monkeypatch):
    from anytime.commands.live_table import list_frames

    files, labels = list_frames(Path(frames), [str(k) for k in range(10)])
    assert [path.parent.name for path in files] == ["0", "7", "0", "0"]
    assert labels == [0, 7, 0, 0]
    assert main(["predict", run, frames, "--camera-like", "--fps", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 frames at 2 per second: ")
    assert re.search(r"^4 frames at 2 per second: \d missed, mean step .*, accuracy \d+\.\d%$", out, re.MULTILINE)
    assert re.search(r"answered by +frames +share +accuracy +mean ms", out)
    assert "\x1b" not in out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["predict", run, f"{frames}/0", "--camera-like", "--fps", "4"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\x1b\[\d+F\x1b\[J3 frames at 4 per second", out)
    assert "accuracy" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["stream"], 2, "stream is a folder: name its images, or add --camera-like"),
        (["grey.png", "--camera-like"], 2, "--camera-like needs one folder of images, got grey.png"),
        (["grey.png", "--fps", "5"], 2, "--fps 5 is the rate of --camera-like"),
        (["stream", "--camera-like", "--fps", "0"], 2, "--fps must be a number of frames per second above zero, got 0"),
        (["stream", "--camera-like", "--deadline", "5ms"], 2, "give --fps instead of --deadline"),
        (["empty", "--camera-like"], 1, "there are no images in empty"),
        (["other", "--camera-like"], 1, "the folder other/cat is not a class of the model"),
    ],
)
@pytest.mark.usefixtures("frames", "images")
def test_camera_refuses(run, arguments, code, message, refused):
    Path("empty").mkdir()
    Path("other/cat").mkdir(parents=True)
    assert message in refused(["predict", run, *arguments], code)


@pytest.fixture
def leveled(run) -> str:
    """A model of two label levels, with traces whose first answer is right only at the coarse level, the second at both."""
    model = anytime.create_model("anytimenet", (4, 2), in_channels=1, blocks=(1, 2, 1), scheme=((1, 1, 1), (0, 1, 0)), width=4)
    model.info.class_names = ("robin", "wren", "carp", "eel", "bird", "fish")
    model.info.input_size = (1, 8, 8)
    model.save("leveled")
    fine = torch.arange(40) % 4
    labels = torch.stack([fine, fine // 2], 1)
    known = torch.cat([torch.eye(4)[fine], torch.eye(2)[fine // 2]], 1)
    logits = torch.stack([torch.cat([known[:, :4].roll(1, 1), known[:, 4:]], 1), known])
    macs = torch.tensor([100, 200])
    names = tuple(model.info.class_names)
    for part in ("validation", "test"):
        trace = anytime.Trace(logits, labels, macs, None, None, names, meta={"levels": [4, 2], "part": part})
        trace.save(f"leveled/trace-{part}.safetensors")
    return "leveled"


def test_fit_levels(leveled, images, capsys):
    assert main(["fit", leveled, "--levels", "0.95"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"1 +2 +100.00% +100.00%\n +2 +4 +100.00% +100.00%\nsaved in leveled", out)
    assert LevelChoice.saved_in(anytime.load(leveled)) == LevelChoice((4, 2), (1, 0), 0.95, (1.0, 1.0))
    assert main(["predict", leveled, images[0]]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert re.search(r" (bird|fish) \(\d+ %\)$", first)
    assert re.search(r" (robin|wren|carp|eel) \(\d+ %\)$", second)


def test_predict_answers_at_the_label_level_that_was_chosen(leveled, images, capsys):
    model = anytime.load(leveled)
    LevelChoice((4, 2), (1, 0), 0.9, (0.95, 0.9)).save_to(model)
    model.save("levels")
    assert main(["predict", "levels", images[0], "--combine", "product"]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert re.search(r" (bird|fish) \(\d+ %\)$", first)
    assert re.search(r" (robin|wren|carp|eel) \(\d+ %\)$", second)


@pytest.mark.usefixtures("threads")
def test_profile_of_compiled_steps(run, capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function.__name__) or function)
    assert main(["profile", run, "--compile", "--batch", "2", "--repeats", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("batch 2, compiled, ")
    assert "compile=True) plans with it" in out
    assert compiled == ["step_1_of_2", "step_2_of_2"]
    measured = anytime.Profile.load("tiny/profile.json")
    with pytest.raises(ValueError, match="not of eager steps"):
        anytime.Predictor(anytime.load(run), measured)
    assert anytime.Predictor(anytime.load(run), measured, compile=True)(torch.rand(1, 1, 8, 8)).step == 2
