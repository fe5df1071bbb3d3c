"""Exported folders of unknown origin: whatever is wrong is one sentence, and nothing outside the folder is read or run."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import anytime
from anytime.cli import main
from anytime.export.folder import _replace

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
TensorProto, helper = onnx.TensorProto, onnx.helper
SIZE = (1, 4, 4)


def graph(node: Any = None, domain: str = "", functions: Any = (), external: str | None = None, loop: bool = False) -> bytes:
    """An ONNX file: 3 logits from images, by a matrix product."""
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [16, 3], [0.1] * 48)
    if external is not None:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
    branch = helper.make_graph([], "branch", [], [])
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], ["answer"], domain=domain, **({"body": branch} if loop else {})),
    ]
    made = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, *SIZE])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, 3])],
        [weight],
    )
    opsets = [helper.make_opsetid(name, version) for name, version in {"": 18, domain: 18 if not domain else 1}.items()]
    return helper.make_model(made, opset_imports=opsets, functions=list(functions), ir_version=9).SerializeToString()


def written(folder: Path, data: bytes | None = None, change: Callable[[Any], Any] = lambda manifest: None) -> Path:
    """A folder whose one step is the graph, with a manifest that was changed."""
    data = graph() if data is None else data
    manifest: dict[str, Any] = {
        "kind": "anytime export",
        "format": 1,
        "engine": "onnx",
        "precision": "float32",
        "batch": 1,
        "model": "mine",
        "parameters": 48,
        "levels": [3],
        "input": {"channels": 1, "height": 4, "width": 4, "layout": "NCHW", "range": [0, 1], "mean": [0.0], "std": [1.0]},
        "check": {"tolerance": 1e-4, "images": {}},
        "steps": [
            {
                "file": "step_1.onnx",
                "sha256": hashlib.sha256(data).hexdigest(),
                "macs": 48,
                "difference": 0.0,
                "inputs": [{"name": "images", "shape": [1, *SIZE], "dtype": "float32", "from": "images"}],
                "outputs": [{"name": "answer", "shape": [1, 3], "dtype": "float32"}],
            }
        ],
        "metadata": {},
    }
    change(manifest)
    folder.mkdir(exist_ok=True)
    (folder / "step_1.onnx").write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_folder_made_by_hand_loads(tmp_path: Path) -> None:
    x = torch.rand(2, *SIZE)
    torch.testing.assert_close(anytime.load(written(tmp_path))(x)[0], 0.1 * x.sum((1, 2, 3))[:, None].expand(2, 3))


def put(*path: Any, value: Any) -> Callable[[Any], None]:
    """Sets an entry of a manifest."""

    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


STEP = ("steps", 0)


def large(manifest: Any) -> None:
    """Images of four billion values."""
    put("input", "height", value=10**9)(manifest)
    put(*STEP, "inputs", 0, "shape", value=[1, 1, 10**9, 4])(manifest)


WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "another library": (put("kind", value="web app"), "holds neither a trained model nor an export"),
    "version": (put("format", value=2), "has format 2, this version of anytime reads format 1"),
    "engine": (
        put("engine", value="os.system"),
        "is for the engine 'os.system', this version knows aoti, executorch, onnx, openvino",
    ),
    "engine as list": (put("engine", value=["onnx"]), "is for the engine"),
    "precision": (put("precision", value="int1"), "precision is 'int1'"),
    "batch": (put("batch", value=0), "batch is 0, neither a number nor 'dynamic'"),
    "checksum": (put(*STEP, "sha256", value="0" * 64), r"is damaged: SHA-256 is \w+\.\.\., the manifest says 000000000000"),
    "missing": (put(*STEP, "file", value="step_2.onnx"), "the export lacks the file .*step_2.onnx"),
    "outside": (put(*STEP, "file", value="../step_1.onnx"), r"is '\.\./step_1.onnx', not a name such as step_1.onnx"),
    "thesis": (put(*STEP, "file", value="thesis.pdf"), "is 'thesis.pdf', not a name such as step_1.onnx"),
    "absolute": (put(*STEP, "file", value="/etc/passwd"), "is '/etc/passwd', not a name"),
    "parent": (put(*STEP, "file", value=".."), r"is '\.\.', not a name"),
    "no steps": (put("steps", value=[]), "it has 0 steps"),
    "no levels": (put("levels", value=[]), r"levels is \[\], not numbers of classes"),
    "no file": (lambda manifest: manifest["steps"][0].pop("file"), "'file' is missing"),
    "not a step": (put("steps", value=[3]), "is damaged"),
    "macs": (put(*STEP, "macs", value=-1), "macs are cumulative and cannot fall"),
    "std": (put("input", "std", value=[0]), "std is .*, not 1 numbers above 0"),
    "no such output": (put(*STEP, "inputs", 0, "from", value={"step": 1, "output": "answer"}), "which has no such tensor"),
    "shape": (put(*STEP, "inputs", 0, "shape", value=[1, 9, 4, 4]), "which has no such tensor"),
    "classes": (put("levels", value=[4]), "not its answer, for 4 classes"),
    "dtype": (put(*STEP, "outputs", 0, "dtype", value="float64"), "are not those of the manifest"),
    "name": (put(*STEP, "inputs", 0, "name", value="pictures"), "are not those of the manifest"),
    "state": (
        lambda manifest: manifest["steps"][0]["outputs"].append({"name": "state_0", "shape": [1, 10**9], "dtype": "float32"}),
        "holds 1,000,000,003 values after step 1, more than 10,016,000 for images of this size",
    ),
    "size": (large, "asks for images of 4,000,000,000 values"),
    "names": (put("metadata", value={"class_names": ["a"]}), "class_names has 1 names, but the model has"),
    "metadata": (put("metadata", value={"task": "mining"}), "metadata.task is 'mining'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_manifest_is_one_sentence(case: str, tmp_path: Path) -> None:
    change, message = WRONG[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        anytime.load(written(tmp_path / "export", change=change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 200, "null"])
def test_a_manifest_that_is_no_json_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        anytime.load(tmp_path)


RELU, OPSET = helper.make_node("Relu", ["x"], ["y"]), helper.make_opsetid("", 18)
CUSTOM = helper.make_function("mine", "Evil", ["x"], ["y"], [RELU], [OPSET])
GRAPHS = {
    "another file": (graph(external="../secret.bin"), "keeps 'weight' in another file"),
    "an absolute file": (graph(external="/etc/passwd"), "keeps 'weight' in another file"),
    "an operator of a library": (graph(domain="mine"), "uses the operator 'mine.MatMul', which is none of ONNX's own"),
    "an operator of its own": (graph(functions=[CUSTOM]), "defines operators of its own, such as 'Evil'"),
    "a graph within": (graph(loop=True), "uses the operator 'MatMul', which holds a graph of its own"),
    "no graph": (b"\xff\x00 no protobuf", "it is no ONNX file"),
    "nothing": (b"", r"is of the versions \[\] of ONNX's operators, not of one from 18 on"),
    "half": (graph()[:-40], "is damaged|cannot be loaded"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_that_reaches_beyond_itself_is_not_loaded(case: str, tmp_path: Path) -> None:
    data, message = GRAPHS[case]
    (tmp_path / "secret.bin").write_bytes(bytes(192))
    with pytest.raises(ValueError, match=message) as caught:
        anytime.load(written(tmp_path / "export", data))
    assert "\n" not in str(caught.value)


def computed(*nodes: Any, **constants: Any) -> bytes:
    """An ONNX file whose answer adds the sum of the value "end" of these operators to three values of the images."""
    numbers = {"shape": [1, 16], "a": [0], "b": [3], "axes": [1], **constants}
    made = helper.make_graph(
        [
            *nodes,
            helper.make_node("ReduceSum", ["end"], ["sum"], keepdims=0),
            helper.make_node("Reshape", ["images", "shape"], ["flat"]),
            helper.make_node("Slice", ["flat", "a", "b", "axes"], ["first"]),
            helper.make_node("Add", ["first", "sum"], ["answer"]),
        ],
        "step",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, *SIZE])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, 3])],
        [
            value if isinstance(value, TensorProto) else helper.make_tensor(name, TensorProto.INT64, [len(value)], value)
            for name, value in numbers.items()
        ],
    )
    return helper.make_model(made, opset_imports=[OPSET], ir_version=9).SerializeToString()


def squares(start: str, count: int) -> list[Any]:
    """A chain of matrix products."""
    names = [start, *(f"m{i}" for i in range(1, count)), "end"]
    return [helper.make_node("MatMul", [a, a], [b]) for a, b in pairwise(names)]


def sparse() -> bytes:
    """A constant of 10^9 values in a few bytes."""
    model = onnx.ModelProto.FromString(computed(helper.make_node("Identity", ["wide"], ["end"])))
    value = helper.make_tensor("wide", TensorProto.FLOAT, [1], [1.0])
    place = helper.make_tensor("", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(value, place, [10**9]))
    return bytes(model.SerializeToString())


def claimed() -> bytes:
    """A value whose size the file only claims."""
    model = onnx.ModelProto.FromString(computed(helper.make_node("NonZero", ["images"], ["end"])))
    model.graph.value_info.append(helper.make_tensor_value_info("end", TensorProto.INT64, [4, 1]))
    return bytes(model.SerializeToString())


node, FILL = helper.make_node, helper.make_node("ConstantOfShape", ["sizes"], ["wide"])
AS_LARGE = [node("ReduceMax", ["images"], ["largest"], keepdims=0), node("Expand", ["largest", "sizes"], ["wide"])]
EMPTY = TensorProto(name="wide", data_type=TensorProto.FLOAT, dims=[2**40])
BOMBS = {
    "4 GB": (computed(FILL, node("Neg", ["wide"], ["end"]), sizes=[2**30]), "makes 1,073,741,824 values .* 'ConstantOfShape'"),
    "range": (
        computed(
            node("Range", ["from", "to", "by"], ["end"]),
            **{"from": helper.make_tensor("from", 7, [], [0])},
            to=helper.make_tensor("to", 7, [], [10**15]),
            by=helper.make_tensor("by", 7, [], [1]),
        ),
        "has a size beyond 2,147,483,648 in the operator 'Range'",
    ),
    "tiles": (
        computed(node("Tile", ["a", "sizes"], ["end"]), sizes=[10**9]),
        "makes 1,000,000,000 values by the operator 'Tile'",
    ),
    "random": (
        computed(node("RandomNormal", [], ["end"], shape=[10**6, 10**6])),
        "the operator 'RandomNormal', whose work or memory",
    ),
    "products of constants": (
        computed(FILL, *squares("wide", 200), sizes=[3000, 3000]),
        "takes 5,4[0-9,]+ operations, most in 'MatMul', for constants, more than its weights explain",
    ),
    "products of images": (
        computed(*AS_LARGE, *squares("wide", 400), sizes=[1000, 1000]),
        "takes 40[0-9,]+ operations, most in 'MatMul', for one call, more than the MACs in the manifest explain",
    ),
    "many values at a time": (
        computed(
            *AS_LARGE,
            *[node("Neg", ["wide"], [f"n{i}"]) for i in range(9)],
            node("Sum", [f"n{i}" for i in range(9)], ["end"]),
            sizes=[2000, 1000],
        ),
        "holds 66,000,0[0-9,]+ values at a time, more than 10,016,000",
    ),
    "nodes": (
        computed(*[node("Identity", ["a"], [f"i{i}"]) for i in range(5_001)]),
        "has 5,005 operators, more than 5,000",
    ),
    "sparse": (sparse(), "has the sparse constant 'wide'"),
    "no values": (computed(node("Neg", ["wide"], ["end"]), wide=EMPTY), r"lacks values of the constant 'wide' of \[1099511"),
    "unknown size": (claimed(), "uses the operator 'NonZero', whose work or memory is not known beforehand"),
    "unknown work": (
        computed(node("STFT", ["images", "a"], ["end"])),
        "uses the operator 'STFT', whose work or memory is not known",
    ),
    "text": (
        computed(node("Cast", ["a"], ["end"], to=TensorProto.STRING)),
        "has the value 'end', which holds no numbers of a kind that exports have",
    ),
    "not in order": (
        computed(node("Neg", ["later"], ["end"]), node("Neg", ["a"], ["later"])),
        "operator 'Neg' with 'later', whose size is not known",
    ),
    "another format": (b"\x78\x10\x79\x00ORTM\x00\x00\x00" + graph(), "is a file in ONNX Runtime's own format"),
}


def test_a_range_whose_end_is_computed_is_no_bomb(tmp_path: Path) -> None:
    """The exporter writes slices that are assigned to in this way."""
    scalars = {name: helper.make_tensor(name, TensorProto.INT64, [], [i]) for i, name in enumerate(("from", "by", "place"))}
    data = computed(
        node("Shape", ["images"], ["sizes"]),
        node("Gather", ["sizes", "place"], ["to"], axis=0),
        node("Range", ["from", "to", "by"], ["places"]),
        node("Cast", ["places"], ["end"], to=TensorProto.FLOAT),
        **scalars,
    )
    answer = anytime.load(written(tmp_path, data))(torch.zeros(1, *SIZE))
    assert answer.tolist() == [[[6.0, 6.0, 6.0]]]


@pytest.mark.parametrize("case", BOMBS)
def test_work_that_nothing_explains_is_not_begun(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, message = BOMBS[case]
    folder = written(tmp_path / "export", data)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *args, **kwargs: pytest.fail("the engine was given the graph"))
    with pytest.raises(ValueError, match=message) as caught:
        anytime.load(folder)
    assert "\n" not in str(caught.value)
    assert "step_1.onnx" in str(caught.value)


def test_the_engine_gets_what_was_checked_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    seen, session = [], onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, *args, **rest: seen.append((data, args[0])) or session(data, *args, **rest),
    )
    model = onnx.ModelProto.FromString(graph())
    model.producer_name, model.doc_string = "of ORTM", "text"
    data = model.SerializeToString() + b"\xf2\x07\x04\x08\x00\x00\x00"  # a field that ONNX does not know
    model = anytime.load(written(tmp_path, data))
    ((given, options),) = seen
    assert options.get_session_config_entry("session.load_model_format") == "ONNX"
    assert not any(text in given for text in (b"ORTM", b"text", b"\xf2\x07\x04"))
    assert model(torch.zeros(1, *SIZE)).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(*STEP, "macs", value=10**15), "multiplies 1,000,000,000,000,000 times for one call, more than 1,000,000,000,000"),
        (put("batch", value=10**9), "asks for images of 16,000,000,000 values"),
    ],
)
def test_large_numbers_of_a_manifest_need_consent(change: Any, message: str, tmp_path: Path) -> None:
    def every(manifest: Any) -> None:
        change(manifest)
        for value in (*manifest["steps"][0]["inputs"], *manifest["steps"][0]["outputs"]):
            value["shape"][0] = manifest["batch"]

    with pytest.raises(ValueError, match=message):
        anytime.load(written(tmp_path, change=every))


def test_overwriting_removes_no_file_that_only_has_the_name_of_a_graph(tmp_path: Path) -> None:
    for name, kept in (("step_8.onnx", True), ("step_9.onnx", False)):
        folder = written(tmp_path / "export", change=put(*STEP, "file", value=name))
        (folder / "step_1.onnx").unlink()
        (folder / name).write_bytes(b"mine" if kept else graph())
        _replace(folder, written(tmp_path / "part"))
        assert (folder / name).exists() == kept
        assert anytime.load(folder)(torch.zeros(1, *SIZE)).shape == (1, 1, 3)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    folder = written(tmp_path / "export")
    (folder / "step_1.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "step_1.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ValueError, match="a link that leads out of its folder"):
        anytime.load(folder)


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_without_the_engine_the_extra_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"the engine 'onnx' needs {package}: pip install 'anytime-nets\[engines\]'"):
        anytime.load(folder)
    model = anytime.create_model("anytimenet", width=4)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install"):
        anytime.export_model(model, tmp_path / "out", input_size=(3, 8, 8))


def test_the_recipe_of_a_stranger_is_not_trusted(tmp_path: Path) -> None:
    folder = written(tmp_path, change=put("metadata", value={"recipe": {"data": {"class_path": "os.system"}}}))
    assert not anytime.load(folder).info.trusted
    assert anytime.load(folder, trust=True).info.trusted


def test_commands_say_it_in_one_line(tmp_path: Path, capsys: Any) -> None:
    folder = written(tmp_path / "export", change=put("format", value=7))
    assert main(["profile", str(folder), "--repeats", "1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
