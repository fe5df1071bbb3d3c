"""Traces of foreign code, of other tasks, of older versions, and as tables."""

import json
import sys
import zlib
from dataclasses import replace

import numpy
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from anytime.analysis import curves, summary
from anytime.combine import fit_temperatures
from anytime.model import AnytimeModel
from anytime.reporting import plots
from anytime.stopping import best_threshold
from anytime.stopping.guarantee import group_numbers
from anytime.trace import Trace, record

MACS = [10, 30, 70]


def logits(steps=3, samples=5, classes=4):
    return numpy.random.default_rng(0).normal(size=(steps, samples, classes))


@given(st.sampled_from(["float16", "float32", "float64"]), st.sampled_from(["uint8", "int32", "int64"]), st.booleans())
def test_logits_of_foreign_code(kind, whole, in_torch):
    values, labels = logits().astype(kind), (numpy.arange(5) % 4).astype(whole)
    given_values = torch.from_numpy(values) if in_torch else values
    trace = Trace.from_logits(given_values, torch.from_numpy(labels) if in_torch else labels, macs=MACS)
    assert torch.equal(trace.outputs, torch.from_numpy(values).float())
    assert trace.logits is trace.outputs
    assert (trace.labels.tolist(), trace.labels.dtype) == ([0, 1, 2, 3, 0], torch.int64)
    assert (trace.macs.tolist(), trace.class_names) == (MACS, ("0", "1", "2", "3"))
    assert torch.equal(curves.accuracy(trace), torch.from_numpy(values.argmax(2) == labels).double().mean(1))


def test_a_list_of_steps_with_everything_else(tmp_path):
    rng = numpy.random.default_rng(1)
    trace = Trace.from_logits(
        list(torch.from_numpy(logits()).requires_grad_()),
        [0, 3, 1, 2, -1],
        macs=[1e1, 3e1, 7e1],
        contract_macs=numpy.array([5, 20, 60], dtype=numpy.int32),
        seconds=[0.1, 0.2, 0.3],
        class_names=["a", "b", "c", "d"],
        features=[rng.normal(size=(5, width)) for width in (2, 3, 8)],
        class_weights=[rng.normal(size=(4, width)) for width in (2, 3, 8)],
        meta={"model": "mine"},
    )
    assert not trace.outputs.requires_grad
    assert (trace.macs.dtype, trace.seconds.dtype, trace.contract_macs.tolist()) == (torch.int64, torch.float64, [5, 20, 60])
    assert [part.shape for part in trace.features] == [(5, 2), (5, 3), (5, 8)]
    trace.save(tmp_path / "trace")
    again = Trace.load(tmp_path / "trace")
    assert all(torch.equal(a, b) for a, b in zip(again.class_weights, trace.class_weights, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": logits()[0]}, r"logits must be floating-point \[T, N, K\], got torch.float64 \[5, 4\]"),
        ({"logits": logits().round().astype(int)}, r"logits must be floating-point \[T, N, K\], got torch.int64 \[3, 5, 4\]"),
        ({"logits": torch.from_numpy(logits()).softmax(2)}, "these are probabilities, which sum to 1, not logits"),
        ({"logits": logits().swapaxes(0, 1), "labels": [0, 1, 2, 3, 0]}, "of 3 samples, but there are 5 labels, so swap"),
        ({"logits": [logits()[0], logits(samples=6)[1]]}, r"same shape \[N, K\], got \[\[5, 4\], \[6, 4\]\]"),
        ({"logits": logits() * numpy.nan}, "logits contain NaN"),
        ({"labels": [0, 1]}, r"logits \[3, 5, 4\] are of 5 samples, but there are 2 labels"),
        ({"labels": numpy.eye(5)}, r"labels must be whole numbers \[N\], got torch.float64 \[5, 5\]"),
        ({"labels": ["cat"] * 5}, "labels must be an array of numbers, got list"),
        ({"macs": [10, 20, 20]}, "macs are cumulative and must grow"),
        ({"macs": [0.5, 1, 2]}, r"macs must be whole numbers of multiply-adds, got \[0.5, 1.0, 2.0\]"),
        ({"macs": [10]}, r"macs must be torch.int64 \[3\]"),
        ({"class_names": ["a"]}, "4 classes but 1 class_names"),
    ],
)
def test_sentences_for_what_is_wrong_with_foreign_code(changes, message):
    with pytest.raises(ValueError, match=message):
        Trace.from_logits(**{"logits": logits(), "labels": [0, 1, 2, 3, 0], "macs": MACS, **changes})


def test_foreign_labels_outside_the_classes_are_absent():
    with pytest.warns(UserWarning, match=r"1 of 5 labels lie outside 0\.\.3 and count as absent"):
        trace = Trace.from_logits(logits(), [1, 2, 3, 4, -1], macs=MACS)
    assert trace.labels.tolist() == [1, 2, 3, -1, -1]


def test_old_files_load_bit_by_bit(tmp_path):
    """The bytes that version 1 wrote, with stacked features and class weights of one and of every step."""
    values = torch.from_numpy(logits()).float()
    for weights in (torch.rand(4, 6), torch.rand(3, 4, 6)):
        tensors = {
            "logits": values,
            "labels": torch.tensor([0, 1, 2, 3, 0]),
            "macs": torch.tensor(MACS),
            "features": torch.rand(3, 5, 6),
            "class_weights": weights,
        }
        header = json.dumps({"class_names": list("abcd"), "meta": {"model": "old"}})
        checksum = zlib.crc32(header.encode())
        for name in sorted(tensors):
            checksum = zlib.crc32(tensors[name].numpy().tobytes(), checksum)
        facts = {"format": "anytime-trace", "version": "1", "trace": header, "crc32": f"{checksum:08x}"}
        safetensors.torch.save_file(tensors, tmp_path / "old", metadata=facts)
        trace = Trace.load(tmp_path / "old")
        assert torch.equal(trace.logits, values)
        assert torch.equal(torch.stack(list(trace.features)), tensors["features"])
        assert torch.equal(torch.stack(list(trace.class_weights)), weights.expand(3, 4, 6))
        trace.save(tmp_path / "new")
        assert torch.equal(Trace.load(tmp_path / "new").features[2], trace.features[2])


def test_a_trace_of_plain_logits_is_written_as_before(tmp_path):
    trace = Trace.from_logits(logits(), [0, 1, 2, 3, -1], macs=MACS, meta={"model": "tiny"})
    trace.save(tmp_path / "trace")
    with safetensors.safe_open(tmp_path / "trace", framework="pt") as file:
        assert sorted(file.keys()) == ["labels", "logits", "macs"]
        assert file.metadata()["version"] == "1"
        assert json.loads(file.metadata()["trace"]) == {"class_names": list("0123"), "meta": {"model": "tiny"}}


def test_more_activations_than_a_file_holds_are_an_error(tmp_path):
    trace = Trace.from_logits(logits(), [0, 1, 2, 3, 0], macs=MACS)
    trace = replace(trace, activations={f"layer{i}": torch.zeros(5) for i in range(100)})
    with pytest.raises(ValueError, match="a file holds at most 100 tensors, this trace has 103"):
        trace.save(tmp_path / "trace")


class Dense(AnytimeModel):
    """Two steps, each one map more."""

    num_steps = 2

    def __init__(self, task="dense"):
        super().__init__(2, in_channels=1)
        self.info.task = task
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(1, 2, 1) for _ in range(2))

    def initial_state(self, x):
        return x, torch.zeros(len(x), 2, *x.shape[2:]), 0

    def step(self, state):
        x, total, t = state
        total = total + self.convs[t](x)
        return total if self.info.task == "dense" else total.mean((2, 3)), (x, total, t + 1)


@pytest.mark.parametrize(("task", "shape"), [("dense", (5, 2, 3, 3)), ("regression", (5, 2))])
def test_traces_of_other_tasks(tmp_path, task, shape):
    model, images, targets = Dense(task).eval(), torch.rand(5, 1, 3, 3), torch.rand(shape)
    trace = record(model, [(images[:3], targets[:3]), (images[3:], targets[3:])], progress=False, seconds=False)
    with torch.inference_mode():
        assert torch.equal(trace.outputs, model(images))
    assert torch.equal(trace.targets, targets)
    assert trace.labels.tolist() == [-1] * 5
    trace.save(tmp_path / "trace")
    again = Trace.load(tmp_path / "trace")
    assert torch.equal(again.outputs, trace.outputs)
    assert again.task == task
    assert torch.equal(again.select(torch.tensor([4, 0])).targets, targets[[4, 0]])
    refused = (
        curves.accuracy,
        curves.confidence,
        curves.threshold_curve,
        summary.summary,
        plots.steps,
        fit_temperatures,
        lambda trace: best_threshold(trace, 10.0),
        lambda trace: trace.logits,
    )
    for metric in refused:
        with pytest.raises(ValueError, match=f"this trace is of task '{task}': it has outputs and targets, but no logits"):
            metric(trace)


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        (
            "dense",
            torch.zeros(3, 2, 2),
            r"must be \[3, 2, 3, 3\], like an answer, or whole numbers \[3, 3, 3\], a class ",
        ),
        ("dense", torch.zeros(3, 3, 3), r"a class for each pixel, got torch.float32 \[3, 3, 3\]"),
        ("dense", torch.zeros(2, 3, 3, dtype=torch.int64), r"a class for each pixel, got torch.int64 \[2, 3, 3\]"),
        ("dense", (torch.zeros(3, 2), None), "a class for each pixel, got tuple"),
        ("regression", torch.zeros(3), r"batch 0: targets must be \[3, 2\], like an answer, got torch.float32 \[3\]"),
        ("regression", torch.zeros(4, 2), r"batch 0: targets must be \[3, 2\], like an answer, got torch.float32 \[4, 2\]"),
        ("regression", torch.zeros(3, 2, 1), r"got torch.float32 \[3, 2, 1\]"),
    ],
    ids=str,
)
def test_targets_belong_to_the_answers(task, targets, message):
    model = Dense(task).eval()
    with pytest.raises(ValueError, match=message):
        record(model, [(torch.rand(3, 1, 3, 3), targets)], progress=False)
    good = record(model, [(torch.rand(3, 1, 3, 3), torch.zeros(3, 2, *[3, 3][: 2 * (task == "dense")]))], progress=False)
    with pytest.raises(ValueError, match="targets must be"):
        replace(good, targets=targets if isinstance(targets, torch.Tensor) else torch.zeros(3, 9))


def test_targets_may_be_the_class_of_each_pixel_or_lack_a_dimension_of_one():
    pixels = torch.tensor([[0, 1], [255, 0]], dtype=torch.uint8)[None]
    assert torch.equal(record(Dense().eval(), [(torch.rand(1, 1, 2, 2), pixels)], progress=False).targets, pixels)
    single = Dense("regression").eval()
    single.num_classes, plain = 1, single.step
    single.step = lambda state: (lambda answer, after: (answer[:, :1], after))(*plain(state))
    for targets in (torch.rand(3), torch.rand(3, 1)):
        trace = record(single, [(torch.rand(3, 1, 3, 3), targets)], class_names=["a"], progress=False)
        assert torch.equal(trace.targets, targets)


def test_record_says_which_shape_a_dense_model_lacks():
    model = Dense("regression").eval()
    model.info.task = "dense"
    model.step = lambda state: (torch.zeros(3, 2), state)
    with pytest.raises(ValueError, match=r"returned torch.float32 \[2, 3, 2\] instead of \[2, 3, 2, ...\]"):
        record(model, [(torch.rand(3, 1, 2, 2), torch.zeros(3))], progress=False)


class FakePandas:
    """The part of pandas that `to_pandas` uses, with columns as lists."""

    class DataFrame(dict):
        def __init__(self, columns):
            super().__init__({name: FakePandas.Series(values.tolist()) for name, values in columns.items()})

    class Series(list):
        def astype(self, kind):
            assert kind == "boolean"
            return self

        def __lt__(self, other):
            return [value < other for value in self]

        def mask(self, hidden):
            return FakePandas.Series(None if hide else value for value, hide in zip(self, hidden, strict=True))


def test_a_table_has_one_row_per_sample_and_answer(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", FakePandas)
    values = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [[0.0, 3.0], [1.0, 0.0], [0.0, 9.0]]])
    trace = Trace.from_logits(values, [1, 1, -1], macs=[3, 8], seconds=[0.5, 0.75], meta={"groups": [4, 4, 6]})
    table = trace.to_pandas()
    assert table["sample"] == [0, 1, 2, 0, 1, 2]
    assert table["step"] == [1, 1, 1, 2, 2, 2]
    assert (table["macs"], table["seconds"]) == ([3, 3, 3, 8, 8, 8], [0.5] * 3 + [0.75] * 3)
    assert (table["group"], table["label"]) == ([4, 4, 6] * 2, [1, 1, -1] * 2)
    assert table["answer"] == [0, 1, 0, 1, 0, 1]
    assert table["correct"] == [False, True, None, True, False, None]
    assert torch.tensor(table["confidence"]).allclose(values.softmax(2).amax(2).flatten())
    assert "contract_macs" not in table


@pytest.mark.parametrize("groups", [["b", "a", "b"], numpy.array(["b", "a", "b"]), ("b", "a", "b")], ids=str)
def test_groups_may_have_names(tmp_path, monkeypatch, groups):
    monkeypatch.setitem(sys.modules, "pandas", FakePandas)
    trace = Trace.from_logits(torch.randn(2, 3, 4), [0, 1, 2], macs=[3, 8], meta={"groups": groups})
    assert trace.to_pandas()["group"] == ["b", "a", "b"] * 2
    assert trace.select(torch.tensor([2, 1])).meta["groups"] == ["b", "a"]
    assert trace.select(torch.tensor([False, True, True])).meta["groups"] == ["a", "b"]
    assert group_numbers(trace).tolist() == [1, 0, 1]
    trace.save(tmp_path / "trace")
    assert Trace.load(tmp_path / "trace").meta["groups"] == ["b", "a", "b"]


@pytest.mark.parametrize("groups", [torch.tensor([7, 7, 1]), numpy.array([7, 7, 1]), [numpy.int64(7), torch.tensor(7), 1]])
def test_groups_from_any_array_can_be_saved(tmp_path, groups):
    trace = Trace.from_logits(torch.randn(2, 3, 4), [0, 1, 2], macs=[3, 8], meta={"groups": groups})
    trace.save(tmp_path / "trace")
    assert Trace.load(tmp_path / "trace").meta["groups"] == [7, 7, 1]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([1, 2], "one group for each of 3 samples, got 2"),
        ("abc", "a number or a name for each sample, got 'abc'"),
        ([1, None, 2], "a number or a name for each sample, got None"),
        ([1, [2], 3], r"a number or a name for each sample, got \[2\]"),
        ([1.0, float("nan"), 2.0], "a number or a name for each sample, got nan"),
        ({"a": 1}, "a number or a name for each sample, got {'a': 1}"),
    ],
    ids=str,
)
def test_what_are_no_groups(groups, message):
    with pytest.raises(ValueError, match=message):
        Trace.from_logits(torch.randn(2, 3, 4), [0, 1, 2], macs=[3, 8], meta={"groups": groups})


@pytest.mark.parametrize("names", ["abcd", {0: "a", 1: "b", 2: "c", 3: "d"}, b"abcd"], ids=str)
def test_names_of_classes_are_a_list(names):
    with pytest.raises(ValueError, match=r"class_names must be a list of 4 names, got .*a"):
        Trace.from_logits(torch.randn(2, 3, 4), [0, 1, 2], macs=[3, 8], class_names=names)


def test_tables_of_label_levels_and_of_regressions(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", FakePandas)
    levels = Trace.from_logits(logits(), numpy.array([[0, 1]] * 5), macs=MACS, meta={"levels": [2, 2]}).to_pandas()
    assert (levels["label_0"], levels["label_1"]) == ([0] * 15, [1] * 15)
    assert levels["correct_1"] == (logits()[..., 2:].argmax(2) == 1).flatten().tolist()
    model, targets = Dense("regression").eval(), torch.rand(4, 2)
    trace = record(model, [(torch.rand(4, 1, 3, 3), targets)], progress=False, seconds=False)
    table = trace.to_pandas()
    assert table["output_1"] == trace.outputs[..., 1].flatten().tolist()
    assert table["target_0"] == targets[:, 0].tolist() * 2
    dense = record(Dense().eval(), [(torch.rand(2, 1, 3, 3), torch.zeros(2, 3, 3).long())], progress=False, seconds=False)
    with pytest.raises(ValueError, match="the answers of a dense trace are maps"):
        dense.to_pandas()


def test_the_table_needs_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_pandas needs pandas, which is not installed: pip install pandas"):
        Trace.from_logits(logits(), [0, 1, 2, 3, 0], macs=MACS).to_pandas()


def test_a_trace_from_foreign_arrays_keeps_no_buffer_of_the_caller() -> None:
    logits, labels = torch.randn(2, 5, 3), torch.arange(5) % 3
    features, weights = numpy.random.default_rng(0).random((2, 5, 4)).astype("float32"), torch.randn(2, 3, 4)
    trace = Trace.from_logits(logits, labels, macs=[1, 2], features=features, class_weights=weights)
    before = [trace.logits.clone(), trace.labels.clone(), *map(torch.clone, (*trace.features, *trace.class_weights))]
    for buffer in (logits, labels, features, weights):
        buffer[:] = 0
    after = [trace.logits, trace.labels, *trace.features, *trace.class_weights]
    assert all(map(torch.equal, before, after))
