import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from anytime.model import AnytimeModel, create_model
from anytime.saving import TASKS
from anytime.trace import Trace, labelled, record


def make(steps: int = 3, samples: int = 4, classes: int = 2, **changes) -> Trace:
    generator = torch.Generator().manual_seed(steps)
    fields = {
        "logits": torch.randn(steps, samples, classes, generator=generator),
        "labels": torch.arange(samples) % classes,
        "macs": 10 * torch.arange(1, steps + 1),
        "contract_macs": torch.arange(1, steps + 1),
        "seconds": torch.arange(1, steps + 1).double() / 1000,
        "class_names": tuple(f"class {k}" for k in range(classes)),
        "meta": {"model": "tiny", "seconds_low": [0.1] * steps, "nested": {"seeds": [1, 2], "none": None}},
    }
    return Trace(**(fields | changes))


def same_tensors(x, y):
    """Bit by bit, of two tensors or of two sequences of them."""
    pairs = [(x, y)] if isinstance(x, torch.Tensor) else list(zip(x, y, strict=True))
    return [one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs]


def equal(a: Trace, b: Trace) -> bool:
    for name in ("outputs", "labels", "macs", "contract_macs", "seconds", "features", "class_weights", "targets"):
        x, y = getattr(a, name), getattr(b, name)
        if (x is None) != (y is None) or (x is not None and not all(same_tensors(x, y))):
            return False
    if a.activations.keys() != b.activations.keys():
        return False
    if not all(same_tensors(a.activations.values(), [b.activations[name] for name in a.activations])):
        return False
    return a.class_names == b.class_names and dict(a.meta) == dict(b.meta)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.sampled_from(TASKS), st.data())
def test_round_trip(tmp_path_factory, steps, samples, classes, everything, task, data):
    trace = make(steps, samples, classes)
    if task != "classification":
        maps = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)) if task == "dense" else []
        shape = samples, classes, *maps
        outputs, meta = torch.randn(steps, *shape), {**trace.meta, "task": task}
        trace = replace(trace, outputs=outputs, labels=torch.full((samples,), -1), targets=torch.rand(shape), meta=meta)
    if everything:
        widths = data.draw(st.lists(st.integers(0, 6), min_size=steps, max_size=steps))
        trace = replace(
            trace,
            features=[torch.randn(samples, width) for width in widths],
            class_weights=[torch.randn(classes, width) for width in widths],
            activations={"conv1": torch.randn(samples, 2, 2), "stages.0": torch.randn(samples, 3).half()},
        )
    else:
        trace = replace(trace, contract_macs=None, seconds=None)
    path = tmp_path_factory.mktemp("trace") / "new" / "folder" / "trace.safetensors"
    trace.save(path)
    assert equal(Trace.load(path), trace)
    assert os.listdir(path.parent) == [path.name]


def test_views_are_saved_by_value(tmp_path):
    trace = make(classes=4)
    view = replace(trace, logits=trace.logits[..., ::2], labels=trace.labels % 2, class_names=("a", "b"))
    view.save(tmp_path / "view")
    assert equal(Trace.load(tmp_path / "view"), view)


def test_errors_about_damaged_files_name_them(tmp_path):
    path = tmp_path / "my.trace"
    make().save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    renamed = whole.replace(b"tiny", b"tidy")
    for damaged in (whole[:-3], whole[:20], b"", b"not a trace at all", bytes(flipped), renamed):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"my\.trace"):
            Trace.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Trace.load(tmp_path / "nowhere")


def test_other_formats_and_versions_raise(tmp_path):
    path = tmp_path / "my.trace"
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"my\.trace is a safetensors file but not a trace"):
        Trace.load(path)
    safetensors.torch.save_file({"logits": torch.ones(2)}, path, metadata={"format": "anytime-trace", "version": "99"})
    with pytest.raises(ValueError, match=r"my\.trace has trace format version 99; this version of anytime reads 1 and 2"):
        Trace.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "trace"
    old = make()
    old.save(path)

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anytime.support.tensor_files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make(steps=5).save(path)
    assert equal(Trace.load(path), old)
    assert os.listdir(tmp_path) == ["trace"]


def test_meta_must_be_json(tmp_path):
    with pytest.raises(ValueError, match=r"must be JSON: .*Tensor"):
        make(meta={"loss": torch.ones(1)}).save(tmp_path / "trace")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(3, 4)}, r"float32 \[T, N, K\] and not empty, got torch.float32 \[3, 4\]"),
        ({"logits": torch.zeros(3, 4, 2).double()}, "got torch.float64"),
        ({"logits": torch.zeros(3, 0, 2)}, r"not empty, got torch.float32 \[3, 0, 2\]"),
        ({"logits": torch.full((3, 4, 2), torch.nan)}, "NaN"),
        ({"labels": torch.zeros(3).long()}, r"labels must be torch.int64 \[4\], got torch.int64 \[3\]"),
        ({"labels": torch.zeros(4)}, r"got torch.float32 \[4\]"),
        ({"labels": torch.tensor([0, 1, 2, -1])}, r"in 0\.\.1 for 2 classes, or be -1 if absent, got values from -1 to 2"),
        ({"labels": torch.zeros(4, 2).long()}, r"labels must be torch.int64 \[4, 1\], got torch.int64 \[4, 2\]"),
        ({"class_names": ("a",)}, "2 classes but 1 class_names"),
        ({"macs": torch.tensor([1, 2])}, r"macs must be torch.int64 \[3\] and positive, got .* \[2\]: \[1, 2\]"),
        ({"macs": torch.tensor([1, 3, 3])}, r"must grow at every step, got \[1, 3, 3\]"),
        ({"contract_macs": torch.tensor([0, 1, 2])}, "contract_macs must be"),
        ({"seconds": torch.tensor([0.1, torch.nan, 0.2]).double()}, "seconds must be"),
        ({"meta": {"seconds_low": [0.1]}}, r"meta\['seconds_low'\] must hold 3 values, got \[0.1\]"),
        ({"features": torch.zeros(3, 5, 6)}, r"features must be 3 tensors \[4, F_t\], one for each step, got .* \[3, 5, 6\]"),
        ({"features": [torch.zeros(4, 6)] * 2}, r"features must be 3 tensors \[4, F_t\], .* got \[\[4, 6\], \[4, 6\]\]"),
        ({"class_weights": torch.zeros(3, 6)}, r"class_weights must be 3 tensors \[2, F_t\], one for each step"),
        ({"features": torch.zeros(3, 4, 6), "class_weights": torch.zeros(2, 5)}, r"\[6, 6, 6\], got \[5, 5, 5\]"),
        ({"activations": {"conv": torch.zeros(3, 4)}}, r"activations\['conv'\] must be \[4, ...\], one row for each sample"),
        ({"targets": torch.zeros(3)}, r"targets must be \[4, ...\], one row for each sample, got torch.float32 \[3\]"),
        ({"meta": {"task": "detection"}}, "must be one of classification, regression, dense, got 'detection'"),
        (
            {"meta": {"task": "dense"}},
            r"outputs must be float32 \[T, N, K, ...\] and not empty, got torch.float32 \[3, 4, 2\]",
        ),
        ({"meta": {"task": "regression", "levels": [1, 1]}}, "label levels belong to classification"),
        ({"meta": {"levels": [1, 1]}}, r"labels must be torch.int64 \[4, 2\], got torch.int64 \[4\]"),
    ],
)
def test_contradictions_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_level_selects_one_label_level():
    labels = torch.stack([torch.arange(4) % 3, torch.arange(4) % 2], dim=1)
    weights = torch.arange(10.0).reshape(5, 2)
    trace = make(classes=5, labels=labels, class_weights=weights, meta={"levels": [3, 2], "model": "two"})
    assert (trace.levels, trace.num_classes) == ((3, 2), 5)
    coarse = trace.level(1)
    assert torch.equal(coarse.logits, trace.logits[..., 3:])
    assert torch.equal(coarse.labels, labels[:, 1])
    assert all(torch.equal(step, weights[3:]) for step in coarse.class_weights)
    assert coarse.class_names == ("class 3", "class 4")
    assert dict(coarse.meta) == {"model": "two", "level": 1}
    with pytest.raises(ValueError, match="no label level 2: this trace has 2"):
        trace.level(2)
    with pytest.raises(ValueError, match="no label level 0: this trace has 0"):
        make().level(0)


class Tiny(AnytimeModel):
    """Two steps, each a linear layer on the normalised pixels."""

    num_steps = 2

    def __init__(self, num_classes=3):
        super().__init__(num_classes, in_channels=1)
        self.heads = nn.ModuleList(nn.Linear(4, self.num_classes) for _ in range(self.num_steps))
        self.norm = nn.BatchNorm1d(4)

    def initial_state(self, x):
        return self.norm(x.flatten(1)), 0

    def step(self, state):
        x, t = state
        return self.heads[t](x), (x, t + 1)


def batches(labels, size=4):
    images = torch.rand(len(labels), 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return list(zip(images.split(size), torch.as_tensor(labels).split(size), strict=True))


def test_record():
    model = Tiny()
    model.norm.eval()  # frozen on purpose: record must keep it frozen
    model.heads.train()
    loader = batches([0, 1, 2, 0, 1, 2, 1])
    trace = record(model, loader, progress=False, meta={"dataset": "noise", "model": "mine"})
    assert (trace.num_steps, trace.num_samples, trace.num_classes) == (2, 7, 3)
    assert trace.labels.tolist() == [0, 1, 2, 0, 1, 2, 1]
    assert trace.macs.tolist() == [12, 24]
    assert trace.contract_macs.tolist() == [12, 24]
    assert trace.class_names == ("0", "1", "2")
    assert (trace.meta["model"], trace.meta["dataset"], trace.meta["input_size"]) == ("mine", "noise", [1, 2, 2])
    assert trace.meta["parameters"] == sum(p.numel() for p in model.parameters())
    assert trace.meta["seconds_batch"] == 1
    assert len(trace.meta["seconds_low"]) == len(trace.meta["seconds_high"]) == len(trace.seconds) == 2
    assert "thread" in trace.meta["hardware"]
    json.dumps(dict(trace.meta))
    assert (model.training, model.heads.training, model.norm.training) == (True, True, False)
    assert not trace.logits.requires_grad
    model.eval()
    with torch.inference_mode():
        assert torch.equal(trace.logits, torch.cat([model(images) for images, _ in loader], dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_record_runs_a_model_in_its_own_precision(dtype):
    torch.manual_seed(0)
    model = create_model("anytimenet", num_classes=3, blocks=(2, 2, 2), scheme=(1, 1), width=4).to(dtype).eval()
    images = torch.rand(5, 3, 8, 8)
    trace = record(model, [(images, torch.zeros(5, dtype=torch.int64))], progress=False, seconds_batch=2)
    with torch.inference_mode():
        assert torch.equal(trace.logits, model(images.to(dtype)).float())
    assert next(model.parameters()).dtype == dtype


def test_record_takes_names_and_levels_from_the_model():
    model = Tiny((3, 2)).eval()
    model.info.class_names = tuple("abcde")
    labels = torch.tensor([[0, 1], [2, 0], [1, 1]], dtype=torch.int32)
    trace = record(model, batches(labels), progress=False, seconds=False, device="cpu")
    assert (trace.levels, trace.class_names, trace.seconds) == ((3, 2), tuple("abcde"), None)
    assert trace.level(1).labels.tolist() == [1, 0, 1]
    assert not model.training
    with pytest.raises(ValueError, match=r"batch 0: labels must be torch.int64 \[3, 2\], got torch.int64 \[3\]"):
        record(model, batches([0, 1, 1]), progress=False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 0.5], "batch 0: labels must be torch.int64"),
        ([[0, 1], [1, 0]], r"batch 0: labels must be torch.int64 \[2, 1\], got torch.int64 \[2, 2\]"),
    ],
)
def test_record_rejects_labels_of_another_form(labels, message):
    model = Tiny().train()
    with pytest.raises(ValueError, match=message):
        record(model, batches(labels), progress=False)
    assert model.training
    assert model.norm.training


def test_record_takes_labels_outside_the_classes_for_absent():
    with pytest.warns(UserWarning, match=r"2 of 5 labels lie outside 0\.\.2 and count as absent"):
        trace = record(Tiny(), batches([0, 3, -100, -1, 2]), progress=False, seconds=False)
    assert trace.labels.tolist() == [0, -1, -1, -1, 2]
    assert trace.labels.dtype == torch.int64


def test_samples_without_a_label_are_left_out_and_counted():
    trace = make(labels=torch.tensor([1, -1, 0, -1]), features=torch.rand(3, 4, 2), meta={"groups": [7, 8, 9, 9]})
    with pytest.warns(UserWarning, match="2 of 4 samples have no label among the 2 classes and are left out"):
        known = labelled(trace)
    assert known.labels.tolist() == [1, 0]
    assert torch.equal(known.logits, trace.logits[:, [0, 2]])
    assert all(torch.equal(part, whole[[0, 2]]) for part, whole in zip(known.features, trace.features, strict=True))
    assert (known.meta["groups"], known.meta["unlabelled"]) == ([7, 9], 2)
    assert labelled(known) is known
    with pytest.raises(ValueError, match="none of the 4 samples of this trace has a label among its 2 classes"):
        labelled(replace(trace, labels=torch.full((4,), -1)))


def test_record_rejects_empty_loaders_and_wrong_shapes(monkeypatch):
    with pytest.raises(ValueError, match="the loader is empty"):
        record(Tiny(), [], progress=False)
    monkeypatch.setattr(Tiny, "forward", lambda self, x: torch.zeros(len(x), 3))
    with pytest.raises(ValueError, match=r"returned torch.float32 \[2, 3\] instead of \[2, 2, 3\]"):
        record(Tiny(), batches([0, 1]), progress=False)


def test_record_shows_its_progress(capsys):
    record(Tiny(), batches([0, 1, 2, 0, 1]), seconds=False)
    assert "recording" in capsys.readouterr().err


def test_import_is_light():
    program = (
        "import sys, anytime.trace, anytime.analysis.summary;"
        "print({'matplotlib', 'lightning', 'torchvision'} & set(sys.modules));"
        "import anytime.reporting.report, anytime.reporting.plots;"
        "print({'matplotlib.pyplot', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nset()\n"
