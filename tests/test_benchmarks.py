"""Parts of the benchmarks: the timed functions give the right answers, and ratios are computed correctly."""

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import anytime
from anytime import create_model
from anytime.cost import step_macs

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = """
model: {class_path: fast, init_args: {widths: [4, 4], head_widths: [4]}}
data: {class_path: Digits, init_args: {limit: 96, batch_size: 32}}
epochs: 1
progress: false
"""


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("harness", None)


def test_ratio_of_paired_turns(load_benchmark) -> None:
    harness = load_benchmark("harness")
    seconds = {"a": [2.0, 4.0, 9.0], "b": [1.0, 1.0, 3.0]}
    assert harness.ratio(seconds, "a", "b")["median"] == 3.0


def test_functions_are_timed_in_turn(load_benchmark) -> None:
    harness = load_benchmark("harness")
    order: list[str] = []
    functions = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = harness.time_in_turns(functions, repeats=2, warmup=1)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_results_name_the_commit(load_benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = load_benchmark("harness")
    file = tmp_path / "harness.py"
    monkeypatch.setattr(harness, "__file__", str(file))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert harness.commit() is None
    file.write_text("1")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert harness.commit() == head
    assert harness.environment("cpu")["commit"] == harness.COMMIT
    file.write_text("2")
    assert harness.commit() == f"{head}-dirty"


def test_anytimenet_candidates_answer_alike(load_benchmark) -> None:
    benchmark = load_benchmark("anytimenet")
    model = create_model("anytimenet", width=4).double().eval()
    baseline = create_model("anytimenet_baseline", width=4).double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with torch.inference_mode():
        timed = {name: function() for name, function in benchmark.candidates(model, baseline, x, compiled=False).items()}
    torch.testing.assert_close(torch.stack(timed["stream"]), torch.stack(timed["scratch"]), rtol=0, atol=1e-10)
    torch.testing.assert_close(timed["baseline"], baseline(x)[0])


def test_cascaded_simulation_is_the_same_network(load_benchmark) -> None:
    benchmark = load_benchmark("cascaded")
    model = create_model("cascaded_resnet18", width=4, clock="published").double().train()
    simulation = benchmark.Simulation(model).train()
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(simulation(x), model(x), rtol=0, atol=1e-10)
    exact, plain = (benchmark.saved_bytes(lambda n=network: n(x)) for network in (model, simulation))
    assert exact < 0.6 * plain


def test_heads_one_by_one_answer_alike(load_benchmark) -> None:
    benchmark = load_benchmark("ann")
    model = create_model("ann", units=1, width=4).double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(benchmark.OneByOne(model)(x), model(x), rtol=0, atol=1e-10)


def test_overhead_is_measured_with_steps_that_do_nothing(load_benchmark) -> None:
    overhead = load_benchmark("overhead")
    measured = overhead.per_step(classes=3, repeats=2)
    assert list(measured) == ["last answer", "deadline", "product", "rule", "session, polled"]
    assert overhead.Nothing(3)(torch.rand(1, 3, 8, 8)).shape == (overhead.STEPS, 1, 3)
    assert set(overhead.session_start(2)) == {"returned", "first_step"}
    assert list(overhead.prepare(1)) == ["rgb", "bgr", "pil_resize"]


def test_seeds_are_trained_once_and_summed_up(load_benchmark, tmp_path, monkeypatch, capsys) -> None:
    benchmark = load_benchmark("seeds")
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    words = ["seeds.py", "tiny.yaml", "--seeds", "0", "1", "--out", "tiny.json", "--figure", "tiny.png"]
    monkeypatch.setattr(sys, "argv", words)
    benchmark.main()
    out, found = capsys.readouterr().out, json.loads(Path("tiny.json").read_text())
    assert out.count("trained in") == 2
    assert Path("tiny.png").is_file()
    one, two = (row["accuracy"] for row in found["seeds"])
    for answer, a, b in zip(found["answers"], one, two, strict=True):
        assert answer["accuracy"] == pytest.approx((a + b) / 2)
        assert answer["half_width"] == pytest.approx(12.706 * abs(a - b) / 2, rel=1e-3, abs=1e-9)  # t of one degree of freedom
    monkeypatch.setattr(benchmark, "start_training", lambda *_: pytest.fail("both runs are there"))
    rows = "them,exits,0.0001,50\nthem,exits,90,50.5\nthem,budgeted,90,60\n"
    Path("them.csv").write_text("# Source: nobody.\ncurve,kind,million_macs,accuracy\n" + rows)
    words += ["--published", "them.csv"]
    benchmark.main()
    again = json.loads(Path("tiny.json").read_text())
    assert again["seeds"] == found["seeds"]
    last = found["answers"][-1]["accuracy"]
    early, late = again["published"]
    assert early == {"curve": "them", "macs": 100, "accuracy": 0.5, "here": None, "ahead": None}
    assert late == {"curve": "them", "macs": 90e6, "accuracy": 0.505, "here": last, "ahead": last - 0.505}
    out = capsys.readouterr().out
    assert "50.00 % published, no answer by then" in out
    assert f"90 M MACs: 50.50 % published, here {100 * (last - 0.505):+.2f} points" in out


def test_static_networks_are_trained_by_the_recipe_beside_its_network(load_benchmark, tmp_path, monkeypatch, capsys) -> None:
    benchmark = load_benchmark("seeds")
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    plain = ["--model.widths [4] --model.head_widths []", "--model.head_widths [] --model.scale 0.5"]
    words = ["seeds.py", "tiny.yaml", "--seeds", "0", "1", "--static", plain[0], "--static", plain[1], "--static-seeds", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", "tiny.json", "--figure", "tiny.png"])
    benchmark.main()
    small, large = json.loads(Path("tiny.json").read_text())["static"]
    assert [small["options"], large["options"]] == plain
    alone = create_model("fast", in_channels=1, widths=(4,), head_widths=())
    assert small["macs"] == step_macs(alone, (1, 8, 8))[0] < large["macs"]
    assert [row["seed"] for row in small["seeds"]] == [2]
    assert large["accuracy"] == large["seeds"][0]["accuracy"][0]
    assert large["half_width"] is None
    assert f": {plain[1]}\n" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words[:5], "--static", "--model.widths [4,8]"])
    with pytest.raises(SystemExit, match=r"one answer, '--model\.widths \[4,8\]' gives 2"):
        benchmark.main()
    monkeypatch.setattr(sys, "argv", [*words[:5], "0"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--seeds names a seed twice: 0 1 0" in capsys.readouterr().err
    monkeypatch.setattr(benchmark, "start_training", lambda *_: pytest.fail("the runs are there"))
    Path("tiny.yaml").write_text(TINY.replace("epochs: 1", "epochs: 2"))
    monkeypatch.setattr(sys, "argv", words[:5])
    with pytest.raises(SystemExit, match=r"tiny_seed0 was trained with another epochs than tiny\.yaml"):
        benchmark.main()


def test_a_packaged_model_is_in_float16_with_its_card(load_benchmark, tmp_path: Path) -> None:
    module = load_benchmark("package")
    run, folder, results = tmp_path / "run", tmp_path / "weights" / "small", tmp_path / "results"
    model = create_model("fast", in_channels=1, widths=(4, 4), head_widths=(2,))
    model.info.data, model.info.input_size = "Digits", (1, 8, 8)
    model.info.class_names = tuple("0123456789")
    model.info.recipe = {"data": {"class_path": "Digits", "init_args": {}}, "seed": 3}
    model.save(run)
    module.package(run, folder, results, "a laptop", "Looked at once.")
    packaged = anytime.load(folder)
    for name, weights in model.state_dict().items():
        assert packaged.state_dict()[name].dtype == weights.dtype
        assert torch.equal(packaged.state_dict()[name], weights.half().to(weights.dtype))
    assert (folder / "model.safetensors").stat().st_size < 2 * sum(w.numel() for w in model.state_dict().values()) + 8000
    card = (folder / "README.md").read_text()
    assert "# small" in card
    assert "seed 3" in card
    assert "Trained on a laptop." in card
    assert "Looked at once." in card
    assert json.loads((results / "metrics-test.json").read_text())["command"] == "anytime evaluate small"
    with pytest.raises(SystemExit, match="exists already"):
        module.package(run, folder, results, "", "")


def test_films_show_their_labels(load_benchmark) -> None:
    watch = load_benchmark("watch")
    images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 4, 4) / 6
    film, shown = watch.films(images, torch.arange(6), 3, 2, "translation", (0.5,))
    assert film.shape == (6, 2, 1, 4, 4)
    assert shown.tolist() == [[0, 1]] * 2 + [[2, 3]] * 2 + [[4, 5]] * 2
    torch.testing.assert_close(film.amax((2, 3, 4)) * 6, shown.float())  # a shift of an image of one colour is that image


def test_noise_and_frames_are_timed(load_benchmark) -> None:
    noise = load_benchmark("noise")
    options = Namespace(width=2, device="cpu", repeats=2)
    shares = noise.noises(options)
    assert list(shares) == ["focus", "occlusion", "perlin", "resolution", "translation", "rotation"]
    assert all(share["median"] > 0 for share in (*shares.values(), noise.stream(options)))
    assert abs(noise.watch(2, frames=20)["median"]) < 1e-2


def test_engines_compares_in_turn(load_benchmark) -> None:
    benchmark = load_benchmark("engines")
    model = create_model("anytimenet", blocks=(1, 2, 1), scheme=((1, 1, 1), (0, 1, 0)), width=4).eval()
    plain = benchmark.Plain(
        Namespace(num_classes=10, in_channels=3, backbone=model.forward, mean=torch.zeros(3), std=torch.ones(3))
    )
    row = benchmark.speed("AnytimeNet", model, model, 8, repeats=2)
    assert row["bar"] == 2.5
    assert row["eager_to_engine"]["median"] > 0
    row = benchmark.against_plain("AnytimeNet", model, model, 8, 2, {"earlyon_2": lambda: None})
    assert row["earlyon_to_ours"]["median"] < 1
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(benchmark.stream(plain, x)(), model(x))
    torch.testing.assert_close(benchmark.stream(model, x, 1)(), model(x)[0])


@pytest.mark.parametrize(("arguments", "more"), [({"exits": 3}, 0), ({"exits": 2, "base": 1, "step": 1}, 2)])
def test_msdnet_with_every_map_answers_alike(load_benchmark, arguments, more) -> None:
    benchmark = load_benchmark("msdnet")
    model = create_model("msdnet", **arguments).double().eval()
    every = benchmark.EveryMap(model).double().eval()
    assert len(every.more) == more  # maps on which no answer depends
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(every(x), model(x), rtol=0, atol=1e-12)
