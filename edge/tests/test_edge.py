"""The edge run-time on an exported folder of two steps, the second of many operators, beside `anytime` on the same folder."""

from __future__ import annotations

import ast
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import anytime_edge  # noqa: E402
from anytime_edge import Answer, Predictor, frames, load, profile  # noqa: E402
from written_by_hand import SIZE, frame, written  # noqa: E402

PACKAGE = Path(anytime_edge.__file__).parent
helper = onnx.helper


def test_loading_leaves_the_callers_denormal_numbers(network: anytime_edge.Network) -> None:
    assert sys.float_info.min * 0.5 > 0
    assert network.pool.submit(lambda: sys.float_info.min * 0.5).result() in (0.0, sys.float_info.min * 0.5)


def test_answers_profiles_and_frames_are_those_of_anytime(folder: Path, network: anytime_edge.Network) -> None:
    anytime, torch = pytest.importorskip("anytime"), pytest.importorskip("torch")
    model = anytime.load(folder)
    for given in (frame(60, 80, 3), frame(3, 31, 17), frame(9, 50)):
        image = model.prepare(given)
        own = network.prepare(given)
        assert np.abs(own - image.numpy()).max() <= 1 / 255 + 1e-6  # equal, from PIL 13 on
        rules = ((None, None), ("product", None), (None, "first"), (None, "confidence=0.9"), ("mixture", "mac_budget=1e9"))
        for combine, stop in rules:
            answer = Predictor(network, combine=combine, stop=stop)(image.numpy())
            expected = anytime.Predictor(model, combine=combine, stop=stop)(image)
            assert (answer.step, answer.reason, [answer.macs]) == (expected.step, expected.reason, expected.macs.tolist())
            np.testing.assert_allclose(answer.probabilities, expected.probabilities.numpy(), rtol=0, atol=1e-5)
            np.testing.assert_allclose(answer.outputs, expected.outputs.numpy(), rtol=0, atol=1e-5)
    with torch.inference_mode():
        measured = anytime.profile(model, SIZE, repeats=2, warmup=0)
    measured.save(folder / "profile.json")
    assert Predictor(folder, folder / "profile.json", foreign=True)(frame(8, 8, 3)).step == 2
    data = profile(network, 2, 0).data
    (folder / "own.json").write_text(json.dumps(data))
    assert anytime.Predictor(model, anytime.Profile.load(folder / "own.json"), foreign=True, interrupt="step")(image).step == 2


def test_pictures_are_pils(network: anytime_edge.Network) -> None:
    image = pytest.importorskip("PIL.Image")
    from anytime_edge.view import channels_last, resized

    exact = int(pytest.importorskip("PIL").__version__.split(".")[0]) >= 13
    for height, width, size in ((60, 80, (8, 8)), (9, 50, (12, 7)), (31, 17, (40, 9)), (100, 20, (24, 40))):
        given = frame(height, width, 3)
        picture = image.fromarray(given)
        box = (1.5, 0.25, width - 1.25, height - 0.5)
        wanted = np.asarray(picture.resize(size[::-1], image.Resampling.BILINEAR, box=box)).astype(int)
        own = resized(given, (box[1], box[3]), (box[0], box[2]), size)
        assert np.abs(own - wanted).max() <= (0 if exact else 1)
        assert (channels_last(given, 1, False)[:, :, 0] == np.asarray(picture.convert("L"))).all()


def test_deadlines_priors_and_words(network: anytime_edge.Network) -> None:
    predictor = Predictor(network, prior=[0.7, 0.1, 0.1, 0.1])
    late = predictor(frame(8, 8, 3), deadline=-1)
    assert (late.step, late.missed, late.reason, predictor.words(late)) == (-1, True, "deadline", "ape (70 %)")
    full = predictor(frame(8, 8, 3), deadline="10s")
    assert (full.step, full.reason, full.macs, full.missed) == (2, "complete", 2 * 10**9, False)
    kept = predictor(frame(8, 8, 3), deadline=0, prior=full)
    assert kept.step == -1
    np.testing.assert_array_equal(kept.probabilities, full.probabilities)
    assert predictor(frame(8, 8, 3)[:, :, ::-1], bgr=True).label == full.label


def test_the_step_in_progress_is_cancelled(network: anytime_edge.Network) -> None:
    predictor, x = Predictor(network), network.prepare(frame(8, 8, 3))
    begin = time.perf_counter()
    predictor(x)
    whole = time.perf_counter() - begin
    for share in (0.3, 0.5):
        answer = predictor(x, deadline=share * whole)
        assert answer.step in (-1, 1) or answer.elapsed <= share * whole
        assert answer.reason in ("deadline", "complete")
    with predictor.session(x) as session:
        while session.best().step < 1:
            time.sleep(1e-4)
        session.interrupt()
        assert session.wait(10).step in (1, 2)
    assert session.done
    assert predictor(x).step == 2  # the engine is as before


def test_frames_keep_the_last_answer(network: anytime_edge.Network) -> None:
    now = [0.0]
    predictor = Predictor(network, clock=lambda: now[0])
    seen = [*frames(predictor, [frame(8, 8, 3)] * 3, 0.02, sleep=lambda seconds: now.__setitem__(0, now[0] + 125))]
    assert [(each.number, each.answer.step, each.missed) for each in seen] == [(0, 2, False), (1, -1, True), (2, 2, False)]
    assert seen[1].held is seen[0].answer
    with pytest.raises(ValueError, match="fps must be"):
        next(frames(predictor, [], 0))


def test_errors_of_a_step_reach_the_caller(folder: Path) -> None:
    broken = load(folder)

    def fails(*_: Any) -> Any:
        raise RuntimeError("step 1 failed")

    broken.step = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="step 1 failed"):
        Predictor(broken)(frame(8, 8, 3))


def test_a_whole_number_of_seconds_may_have_any_size(network: anytime_edge.Network) -> None:
    predictor = Predictor(network)
    assert predictor(frame(8, 8, 3), 10**30).reason == "complete"
    answer = predictor(frame(8, 8, 3), -(10**400))
    assert (answer.step, answer.missed) == (-1, True)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"deadline": float("nan")}, ValueError, "deadline must be a number of seconds"),
        ({"deadline": "5"}, ValueError, "with a unit like '5ms'"),
        ({"deadline": True}, TypeError, "deadline must be"),
        ({"deadline": 1, "until": 1.0}, ValueError, "give deadline or until, not both"),
        ({"until": True}, ValueError, "until as the clock's time: got None and True"),
        ({"until": "5ms"}, ValueError, "until as the clock's time: got None and '5ms'"),
        ({"until": np.True_}, ValueError, "until as the clock's time: got None and np.True_"),
        ({"until": [1.0]}, ValueError, r"until as the clock's time: got None and \[1\.0\]"),
        ({"until": 10**400}, ValueError, "until as the clock's time: got None and 1000"),
        ({"frame": frame(1, 8, 3)}, ValueError, r"a frame must be \(H, W, C\)"),
        ({"frame": np.zeros((8, 8, 3))}, ValueError, r"one image of \(3, 8, 8\) at a time, got \(8, 8, 3\)"),
        ({"frame": np.zeros((2, 3, 8, 8))}, ValueError, "one image of"),
        ({"frame": np.full(SIZE, np.nan)}, ValueError, r"must lie in \[0, 1\]"),
        ({"frame": np.full(SIZE, 255.0)}, ValueError, r"must lie in \[0, 1\], got values from 255 to 255"),
        ({"frame": np.zeros(SIZE, np.int64)}, TypeError, "a frame is uint8, or float images"),
    ],
)
def test_wrong_calls(network: anytime_edge.Network, given: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Predictor(network)(**({"frame": frame(8, 8, 3)} | given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stop": "second"}, r"no rule 'second' is saved with the model; there are \['first'\]"),
        ({"stop": "sure=1"}, "no rule 'sure' is saved with the model; there are"),
        ({"stop": {"kind": "confidence", "threshold": [0.5]}}, "the rule 'confidence' is damaged, or not of 2 steps"),
        ({"stop": "confidence=1.5"}, r"'confidence' is damaged, .* thresholds are shares of 1, got \[1.5, 1.5\]"),
        ({"stop": "margin=3"}, "thresholds are shares of 1"),
        ({"stop": "selection_latency=1"}, "1 steps in a row of more than 1"),
        ({"stop": "selection_latency=-1"}, "1 steps in a row of more than -1"),
        ({"stop": {"kind": "all", "rules": []}}, "it consists of no rules"),
        ({"stop": {"kind": "any", "rules": 0}}, "the rule 'any' is damaged"),
        ({"stop": {"kind": "entropy", "threshold": [0.5, math.nan]}}, "the rule 'entropy' is damaged"),
        ({"stop": {"kind": "any", "rules": [{"kind": "any", "rules": []}]}}, "it consists of no rules"),
        ({"stop": "deadline=0.1"}, "needs the seconds of a profile"),
        ({"combine": {"kind": "mixture", "weights": [1]}}, "the combiner 'mixture' is damaged, or not of 2 steps"),
        ({"combine": "second"}, "no combiner 'second'"),
        ({"stop": "first", "combine": "last"}, "leave combine out"),
        ({"interrupt": "layer"}, "interrupt is 'operator' or 'step'"),
        ({"guard": -1}, "guard must be at least 0"),
        ({"prior": [1, 1, 1, 1]}, "prior must be probabilities that sum to 1"),
        ({"prior": [0.5, 0.5]}, r"in each of the levels \(4,\), got \[0.5, 0.5\]"),
        ({"stop": 3}, "unknown rule 3; this version knows never, confidence"),
        ({"combine": ["last"]}, r"unknown combiner \['last'\]; this version knows last"),
    ],
)
def test_wrong_arguments(network: anytime_edge.Network, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(network, **given)


def test_a_rule_may_hold_what_it_does_not_read_and_numbers_of_numpy(network: anytime_edge.Network, tmp_path: Path) -> None:
    for stop in ({"kind": "never", "rules": 0}, {"kind": "mac_budget", "macs": np.int64(10**9)}):
        assert Predictor(network, stop=stop, record=tmp_path / f"{stop['kind']}.jsonl")(frame(8, 8, 3)).step > 0


@pytest.mark.parametrize("given", [{"stop": "confidence=0.0"}, {"stop": "patience=1"}, {"combine": "product"}])
def test_only_classifiers_have_probabilities(files: list[bytes], tmp_path: Path, given: dict) -> None:
    export = written(tmp_path / "export", files, put("metadata", "task", value="regression"))
    with pytest.raises(ValueError, match="of probabilities are for classifiers, and this network is none"):
        Predictor(export, **given)
    assert Predictor(export, stop={"kind": "mac_budget", "macs": 10**9})(frame(8, 8, 3)).reason == "stopped"


def put(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", value=2), "and this version reads"),
        (put("engine", value="openvino"), "and this version reads"),
        (put("steps", 0, "file", value="../step_1.onnx"), r"the file of step 1 is '\.\./step_1.onnx'"),
        (put("steps", 0, "file", value="step_3.onnx"), "step_3.onnx is missing"),
        (put("steps", 0, "sha256", value="0" * 64), "is damaged: SHA-256 is"),
        (put("steps", 1, "inputs", 0, "from", value={"step": 2, "output": "answer"}), "which is not there"),
        (put("steps", 1, "inputs", 0, "from", value={"step": [1], "output": "answer"}), "cannot be used"),
        (put("steps", 0, "outputs", value=[]), "the first output of step 1 is not its answer"),
        (put("steps", 0, "outputs", 1, "shape", value=[1, 2**31]), "more than 1,073,741,824 values"),
        (put("steps", 0, "outputs", 1, "name", value="other"), "which is not there"),
        (put("steps", 0, "macs", value=10**10), "MACs are cumulative"),
        (put("steps", 0, "macs", value=10**13), "MACs of step 1"),
        (put("steps", value=[]), "it has 0 steps"),
        (put("input", "height", value=10**9), "more than 25,165,824"),
        (put("batch", value=4), "its batch is 4"),
        (put("levels", value="four"), "the levels are"),
        (put("metadata", "class_names", value=["ape"]), "class_names has 1 names, but the model has 4 classes"),
        (put("metadata", "class_names", value=["ape"] * 5), "class_names has 5 names, but the model has 4 classes"),
        (put("metadata", "class_names", value={"0": "ape"}), "class_names has 1 names"),
    ],
)
def test_wrong_manifests(tmp_path: Path, files: list[bytes], change: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(written(tmp_path / "export", files, change))


def external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def located(model: Any) -> None:
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def branch(model: Any) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "branch", [], [])))


def constant(model: Any) -> None:
    node = helper.make_node("Constant", [], ["extra"], value=onnx.numpy_helper.from_array(np.zeros(1, np.float32)))
    node.attribute[0].t.external_data.add(key="location", value="../x")
    model.graph.node.append(node)


def sparse(model: Any) -> None:
    model.graph.sparse_initializer.add().values.name = "s"


def functions(model: Any) -> None:
    model.functions.append(helper.make_function("d", "F", [], [], [], []))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "constants in another file"),
        (located, "a constant in another file"),
        (constant, "constants in another file"),
        (branch, "a graph within an operator"),
        (sparse, "sparse constants"),
        (functions, "operators of its own"),
        (lambda model: setattr(model.graph.node[0], "domain", "evil"), "uses an operator of b'evil'"),
        (lambda model: model.graph.ClearField("node"), "has 0 operators"),
    ],
)
def test_graphs_that_reach_beyond_themselves(tmp_path: Path, files: list[bytes], change: Callable, message: str) -> None:
    model = onnx.ModelProto.FromString(files[0])
    change(model)
    with pytest.raises(ValueError, match=message):
        load(written(tmp_path / "export", [model.SerializeToString(), files[1]]))


def test_fields_that_another_reader_would_see(tmp_path: Path, files: list[bytes]) -> None:
    """A second graph, which protobuf merges into the first; a key beyond 32 bits; a file that ends too soon."""
    model = onnx.ModelProto()
    model.graph.node.add(op_type="Evil", domain="evil")
    for data, message in (
        (files[0] + model.SerializeToString(), "uses an operator of b'evil'"),
        (files[0] + b"\xba\x80\x80\x80\x10\x00", "is no ONNX file"),
        (files[0][:-10], "is no ONNX file"),
        (b"ORTM" * 20, "is no ONNX file"),
    ):
        with pytest.raises(ValueError, match=message):
            load(written(tmp_path / "export", [data, files[1]]))


def test_links_lead_nowhere(tmp_path: Path, files: list[bytes]) -> None:
    made = written(tmp_path / "export", files)
    (made / "step_1.onnx").rename(tmp_path / "elsewhere")
    (made / "step_1.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"step_1.onnx is missing, a link"):
        load(made)


def test_many_threads_share_a_predictor(network: anytime_edge.Network) -> None:
    predictor, given = Predictor(network), [frame(8, 8, 3), frame(16, 16, 3)]
    expected = [predictor(each).probabilities for each in given]
    wrong: list[Answer] = []

    def ask(which: int) -> None:
        for _ in range(2):
            answer = predictor(given[which], deadline="20s")
            wrong.extend([] if np.array_equal(answer.probabilities, expected[which]) else [answer])

    threads = [threading.Thread(target=ask, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_only_numpy_and_onnxruntime() -> None:
    names = set()
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names |= {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {str(node.module).split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "anytime_edge"}
    code = "import sys, anytime_edge; print([name for name in ('torch', 'onnx', 'anytime', 'PIL') if name in sys.modules])"
    where = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=where, capture_output=True, text=True).stdout.strip() == "[]"


def test_it_stays_small() -> None:
    """Lines of code, without docstrings, comments and blank lines."""
    lines = 0
    for file in PACKAGE.glob("*.py"):
        text = file.read_text()
        texts = [
            node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ]
        words = {line for node in texts for line in range(node.lineno, (node.end_lineno or 0) + 1)}
        code = enumerate(map(str.strip, text.splitlines()), 1)
        lines += sum(bool(line) and not line.startswith("#") and number not in words for number, line in code)
    assert lines <= 959


@pytest.mark.parametrize(
    "stop", ["mac_budget=0", "mac_budget=-5", "mac_budget=nan", "mac_budget=inf", "patience=1.7", "patience=0"]
)
def test_rules_that_anytime_refuses_are_refused(network: anytime_edge.Network, stop: str) -> None:
    with pytest.raises(ValueError, match=r"the rule .* is damaged, or not of 2 steps: \w+"):
        Predictor(network, stop=stop)
