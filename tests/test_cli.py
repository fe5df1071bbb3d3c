"""Every command as a user types it: what it prints, what it leaves, and how it refuses."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import anytime
from anytime.cli import COMMANDS, main
from anytime.levels import LevelChoice

TINY = [
    *("--model", "anytimenet", "--model.blocks", "[1,2,1]", "--model.scheme", "[[1,1,1],[0,1,0]]", "--model.width", "4"),
    *("--data", "digits", "--data.limit", "128", "--epochs", "1", "--progress", "false"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that was trained under bf16 autocast and evaluated."""
    run = tmp_path_factory.mktemp("cli") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.parent)
        assert main(["train", *TINY, "--precision", "bf16-mixed", "--run", str(run)]) == 0
        assert main(["evaluate", str(run)]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> str:
    """A copy of it, in the current folder."""
    shutil.copytree(trained, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    return "tiny"


@pytest.fixture
def images(run) -> list[str]:
    """A grey, a wide colour and a palette image with transparency, none of the model's size."""
    Image.linear_gradient("L").resize((20, 30)).save("grey.png")
    Image.new("RGB", (200, 30), (200, 10, 90)).save("wide.jpg")
    Image.new("RGBA", (8, 8), (200, 10, 90, 0)).quantize().save("palette.gif")
    return ["grey.png", "wide.jpg", "palette.gif"]


def refused(capsys, arguments: list[str], code: int) -> str:
    """The one line on stderr of a command that fails with `code`."""
    capsys.readouterr()
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"anytime {arguments[0]}: error: ")
    return err


def test_help(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in COMMANDS)
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: anytime {name}")
    assert main(["--version"]) == 0
    assert re.fullmatch(r"anytime \d+\.\d+.*\n", capsys.readouterr().out)


def test_help_of_train_and_of_one_class(capsys):
    assert main(["train", "--model.help", "anytimenet"]) == 0
    assert "--model.width" in capsys.readouterr().out
    assert "did you mean 'Adam'" in refused(capsys, ["train", "--optimizer.help", "adamm"], 2)


@pytest.mark.parametrize(("name", "hint"), [("trian", "did you mean 'train'"), ("bogus", "valid: demo, train")])
def test_unknown_command(capsys, name, hint):
    assert main([name]) == 2
    assert capsys.readouterr().err.startswith(f"anytime: unknown command {name!r}; {hint}")


def test_evaluate(run, capsys):
    shutil.rmtree("tiny/figures")
    assert main(["evaluate", run]) == 0
    out = capsys.readouterr().out
    assert re.search(r"step +MACs .* accuracy +confidence", out)
    assert "average error AE" in out
    assert "timeliness" in out
    assert "error at share of MACs: 0.25: " in out
    numbers = json.loads(Path("tiny/metrics-test.json").read_text())
    assert [step["step"] for step in numbers["steps"]] == [1, 2]
    figures = {path.stem for path in Path("tiny/figures").glob("*.png")}
    assert figures == {"steps", "speed_accuracy", "calibration", "per_class"}
    report = Path("tiny/report.html").read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", report)
    assert not re.search(r"url\((?!data:)|@import", report)


def test_evaluate_elsewhere_and_the_validation_images(run, capsys):
    assert main(["evaluate", run, "--part", "validation", "--out", "else/where"]) == 0
    assert Path("else/where/trace-validation.safetensors").is_file()
    assert not Path("tiny/trace-validation.safetensors").exists()


def test_compare(run, capsys):
    shutil.copytree(run, "other")
    assert main(["compare", run, "other", "--out", "figures/both.pdf"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^tiny ", out, re.MULTILINE)
    assert re.search(r"^other ", out, re.MULTILINE)
    assert Path("figures/both.pdf").stat().st_size > 1000
    Path("other/trace-test.safetensors").unlink()
    assert "run `anytime evaluate other`" in refused(capsys, ["compare", run, "other"], 1)


def test_predict(run, images, capsys):
    assert main(["predict", run, *images, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [f"{image} (no deadline)" for image in images]
    steps = [line for line in lines if line.startswith(" ")]
    pattern = r"  step [12]/2 +[\d.]+ k MACs +[\d.]+ ms  \d \(\d+ %\), \d \(\d+ %\), \d \(\d+ %\)"
    assert len(steps) == 6
    assert all(re.fullmatch(pattern, step) for step in steps)


def test_predict_under_deadlines(run, images, capsys):
    assert main(["predict", run, images[0], "--deadline", "0.001us"]) == 0
    out = capsys.readouterr().out
    assert "no step fits: the first takes about" in out
    assert "step 1/2" not in out
    assert main(["predict", run, images[0], "--deadline", "100s"]) == 0
    assert "step 2/2" in capsys.readouterr().out


def test_damaged_image_is_found_before_any_answer_is_printed(run, images, capsys):
    Path("bad.png").write_bytes(Path("grey.png").read_bytes()[:40])
    assert "bad.png is damaged" in refused(capsys, ["predict", run, *images, "bad.png"], 1)
    assert "missing.png" in refused(capsys, ["predict", run, "missing.png", *images], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--deadline", "5xs"], "a deadline must be a time above zero like 5ms, 0.2s or 800us, got '5xs'"),
        (["--deadline", "0"], "got '0'"),
        (["--deadline=-5ms"], "got '-5ms'"),
        (["--deadline", "nan"], "got 'nan'"),
        (["--top", "0"], "--top must be at least 1, got 0"),
        (["--top", "x"], "invalid int value: 'x'"),
        (["--device", "abacus"], "device 'abacus' is not available here"),
        (["--deadlin", "5ms"], "unknown argument --deadlin; did you mean '--deadline'"),
    ],
)
def test_predict_refuses(run, images, capsys, options, message):
    assert message in refused(capsys, ["predict", run, images[0], *options], 2)


@pytest.mark.parametrize("command", [["evaluate"], ["compare"], ["predict"]])
def test_unknown_run(run, capsys, command):
    Path("runs").mkdir()
    shutil.copytree(run, "runs/mine")
    image = ["x.png"] if command == ["predict"] else []
    message = refused(capsys, [*command, "runs/mime", *image], 2)
    assert "no run directory and no pretrained model 'runs/mime'; did you mean 'runs/mine'?" in message


def test_run_that_is_not_finished(run, capsys):
    Path("tiny/config.json").unlink()
    assert "go on with `anytime train --resume tiny`" in refused(capsys, ["evaluate", run], 1)
    Path("empty").mkdir()
    assert "empty holds no trained model" in refused(capsys, ["predict", "empty", "x.png"], 1)


def test_damaged_run(run, capsys):
    weights = Path("tiny/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refused(capsys, ["evaluate", run], 1)
    assert "model.safetensors is damaged" in message
    config = json.loads(Path("tiny/config.json").read_text())
    Path("tiny/config.json").write_text(json.dumps(config | {"format": 99}))
    assert "has format 99" in refused(capsys, ["evaluate", run], 1)


def test_trace_that_is_damaged(run, capsys):
    trace = Path("tiny/trace-test.safetensors")
    trace.write_bytes(trace.read_bytes()[:-100])
    assert "trace-test.safetensors" in refused(capsys, ["compare", run], 1)


def test_wrong_options(run, capsys):
    assert "invalid choice: 'train'" in refused(capsys, ["evaluate", run, "--part", "train"], 2)
    assert "arguments are required: RUN" in refused(capsys, ["evaluate"], 2)
    assert "device 'abacus'" in refused(capsys, ["evaluate", run, "--device", "abacus"], 2)
    assert "did you mean 'anytimenet'" in refused(capsys, ["models", "anytimenett"], 2)
    assert "'nothing.here' cannot be imported" in refused(capsys, ["models", "nothing.here"], 2)
    assert "ending with one of " in refused(capsys, ["compare", run, "--out", "x.foo"], 2)
    assert "no class matches 'cat'" in refused(capsys, ["train", *TINY, "--data.classes", "cat"], 2)
    assert "never stop; got 2" in refused(capsys, ["predict", run, "x.png", "--stop", "confidence=2"], 2)
    assert "--epochs must be at least 1, got 0" in refused(capsys, ["demo", "--epochs", "0"], 2)
    assert "epochs must be int, got 'x'" in refused(capsys, ["train", *TINY, "--epochs", "x"], 2)
    assert "did you mean 'width'" in refused(capsys, ["train", *TINY, "--model.widht", "3"], 2)
    assert "--config: expected one argument" in refused(capsys, ["train", *TINY, "--config"], 2)


def test_missing_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, ["train", "--model", "anytimenet", "--data", "cifar10", "--data.root", "nowhere"], 1)
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

    monkeypatch.setitem(COMMANDS, "models", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "\nanytime models: interrupted\n"
    monkeypatch.setitem(COMMANDS, "models", lambda _: {}["bug"])
    with pytest.raises(KeyError):
        main(["models"])


def test_traceback_on_request(run, monkeypatch):
    monkeypatch.setenv("ANYTIME_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match=r"x\.png"):
        main(["predict", run, "x.png"])


@pytest.fixture
def threads():
    """`--threads` counts for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_profile_is_what_a_predictor_plans_by(run, capsys):
    assert main(["profile", run, "--batch", "1,3", "--repeats", "5", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "batch 1, " in out
    assert "batch 3, " in out
    assert out.count("p999 ms") == 2
    model = anytime.load(run)
    measured = anytime.Profile.load(Path(run) / "profile.json")
    assert anytime.Predictor(model, measured, combine="product")(torch.rand(3, 1, 8, 8)).step == model.num_steps
    assert "--batch must be numbers like 1,8,32, got '1,x'" in refused(capsys, ["profile", run, "--batch", "1,x"], 2)
    assert "--repeats and --threads must be at least 1" in refused(capsys, ["profile", run, "--repeats", "0"], 2)


def test_predict_with_rule_and_combiner(run, images, capsys):
    assert main(["predict", run, images[0], "--stop", "confidence=0.0", "--combine", "product"]) == 0
    out = capsys.readouterr().out
    assert "step 1/2" in out
    assert "step 2/2" not in out
    assert main(["predict", run, images[0], "--combine", "mixture"]) == 0
    for options, message in {
        ("--stop", "confidenc=0.5"): "did you mean 'confidence'",
        ("--stop", "confidence=high"): "--stop confidence=VALUE needs a number, got 'high'",
        ("--stop", "confidence"): "'confidence' was never fitted to this model (no rules are saved with this model)",
        ("--combine", "produkt"): "did you mean 'product'",
        ("--combine", "temperature"): "temperatures are fitted on a validation trace",
    }.items():
        assert message in refused(capsys, ["predict", run, images[0], *options], 2)


def test_fit_and_predict_by_name(run, images, capsys):
    assert main(["fit", run, "--stop", "confidence", "--budget", "80%", "--combine", "temperature"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"answers +images +n +accuracy +lost by stopping +mean MACs +% of all +mean ms", out)
    assert re.search(r"with the rule +test \(held out\) +\d+ ", out)
    assert "test images that stop at step: 1: " in out
    assert "anytime predict tiny IMAGE --stop confidence" in out
    assert Path("tiny/trace-validation.safetensors").is_file()
    fitted = anytime.stopping.kept(anytime.load(run))["confidence"]
    assert fitted.combine.kind == "temperature"
    assert main(["predict", run, images[0], "--stop", "confidence"]) == 0
    assert "fitted to the answers of Temperature" in refused(
        capsys, ["predict", run, images[0], "--stop", "confidence", "--combine", "product"], 2
    )
    assert main(["fit", run, "--stop", "confidence", "--max-loss", "0.0001", "--sure", "0.9", "--name", "safe"]) == 0
    assert "no threshold keeps that loss for sure with " in capsys.readouterr().out
    assert main(["fit", run, "--combine", "temperature", "--out", "elsewhere"]) == 0
    assert list(anytime.stopping.kept(anytime.load(run))) == ["confidence", "safe"]
    assert list(anytime.stopping.kept(anytime.load("elsewhere"))) == ["confidence", "safe", "temperature"]
    assert main(["predict", "elsewhere", images[0], "--combine", "temperature"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say which rule to fit: --stop confidence, budgeted, value, learned"),
        (["--stop", "confidence"], "--stop confidence needs --budget or --max-loss, one of them"),
        (["--stop", "confidence", "--budget", "50%", "--max-loss", "0.1"], "one of them"),
        (["--stop", "value", "--budget", "50%"], "--stop value needs --price"),
        (["--stop", "confidence", "--max-loss", "2"], "--max-loss must lie between 0 and 1, got 2"),
        (["--stop", "confidence", "--budget", "50%", "--sure", "0.9"], "give --max-loss, too"),
        (["--stop", "learned", "--price", "-1"], "--price must be at least 0, got -1"),
        (["--stop", "patience"], "invalid choice: 'patience'"),
        (["--levels", "0.9"], "--levels is for models with several label levels, tiny has one of 10 classes"),
        (["--levels", "1.1"], "--levels must be an accuracy above 0 and at most 1, got 1.1"),
        (["--levels", "0.9", "--combine", "product"], "leave out --stop and its options, --combine and --name"),
    ],
)
def test_fit_refuses(run, capsys, options, message):
    assert message in refused(capsys, ["fit", run, *options], 2)


@pytest.fixture
def frames(run) -> str:
    """Folders of images named like classes: three of a 0, one of a 7."""
    for name in ("0/a.png", "0/b.png", "0/c.png", "7/a.png"):
        Path("stream", name).parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((8, 8)).save(Path("stream", name))
    Path("stream/.hidden").mkdir()
    return "stream"


def test_camera(run, frames, capsys, monkeypatch):
    from anytime.camera import list_frames

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
        (["stream", "--camera-like", "--deadline", "5ms"], 2, "give --fps in place of --deadline"),
        (["empty", "--camera-like"], 1, "there are no images in empty"),
        (["other", "--camera-like"], 1, "the folder other/cat is no class of the model"),
    ],
)
@pytest.mark.usefixtures("frames", "images")
def test_camera_refuses(run, capsys, arguments, code, message):
    Path("empty").mkdir()
    Path("other/cat").mkdir(parents=True)
    assert message in refused(capsys, ["predict", run, *arguments], code)


@pytest.fixture
def leveled(run) -> str:
    """A model of two label levels, and the traces of one whose first answer knows the coarse level only, its second both."""
    model = anytime.create_model("anytimenet", (4, 2), in_channels=1, blocks=(1, 2, 1), scheme=((1, 1, 1), (0, 1, 0)), width=4)
    model.metadata |= {"class_names": ["robin", "wren", "carp", "eel", "bird", "fish"], "input_size": [1, 8, 8]}
    model.save("leveled")
    fine = torch.arange(40) % 4
    labels = torch.stack([fine, fine // 2], 1)
    known = torch.cat([torch.eye(4)[fine], torch.eye(2)[fine // 2]], 1)
    logits = torch.stack([torch.cat([known[:, :4].roll(1, 1), known[:, 4:]], 1), known])
    macs = torch.tensor([100, 200])
    names = tuple(model.metadata["class_names"])
    for part in ("validation", "test"):
        trace = anytime.Trace(logits, labels, macs, None, None, names, meta={"levels": [4, 2], "part": part})
        trace.save(f"leveled/trace-{part}.safetensors")
    return "leveled"


def test_fit_levels(leveled, images, capsys):
    assert main(["fit", leveled, "--levels", "0.95"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"1 +2 +100.00% +100.00%\n +2 +4 +100.00% +100.00%\nsaved in leveled", out)
    assert LevelChoice.kept(anytime.load(leveled)) == LevelChoice((4, 2), (1, 0), 0.95, (1.0, 1.0))
    assert main(["predict", leveled, images[0]]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert re.search(r" (bird|fish) \(\d+ %\)$", first)
    assert re.search(r" (robin|wren|carp|eel) \(\d+ %\)$", second)


def test_predict_answers_at_the_label_level_that_was_chosen(leveled, images, capsys):
    model = anytime.load(leveled)
    LevelChoice((4, 2), (1, 0), 0.9, (0.95, 0.9)).keep(model)
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
    assert "compile=True) plans by it" in out
    assert compiled == ["step_1_of_2", "step_2_of_2"]
    measured = anytime.Profile.load("tiny/profile.json")
    with pytest.raises(ValueError, match="not of eager steps"):
        anytime.Predictor(anytime.load(run), measured)
    assert anytime.Predictor(anytime.load(run), measured, compile=True)(torch.rand(1, 1, 8, 8)).step == 2
