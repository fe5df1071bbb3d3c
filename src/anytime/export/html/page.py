"""The live page of a model: its export, the engine, images and script as one HTML file."""

from __future__ import annotations

import gzip
import html
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime.export.folder import export_model
from anytime.export.html.dense import dense
from anytime.export.html.examples import Accuracies, Examples
from anytime.export.html.web_engine import VERSION, WebEngine
from anytime.export.html.weights import Packed, largest_difference, pack
from anytime.model import AnytimeModel, require_classifier
from anytime.reporting.style import allowed, read
from anytime.runtime.engines.exported import ExportedModel
from anytime.stopping.saved import Fitted, rule_from_text, saved_rules
from anytime.support.files import atomic_write
from anytime.version import __version__

SCRIPTS = ("unpack.js", "picture.js", "deadline.js", "rules.js", "network.js", "charts.js", "main.js")
RULES = ("never", "confidence", "margin", "entropy", "patience", "selection_latency", "confidence_bands", "any", "all")
BY_HAND = "patience=2"  # each page has a rule to switch on: two equal labels in a row need neither fitting nor calibration
MOST_STEPS = 32
MOST_BYTES = 10**9  # of all graphs with their weights, which a browser holds in memory
LARGE = 25_000_000  # bytes of a page that is worth a warning
TOLERANCE = 1e-3  # of a probability, for weights that float16 rounds
SMALL_SHARE = 0.05  # of the weights that are exact in float16: what is not stays float32
_RANDOM = 4
_KINDS = {
    "engine": ("engine", "glue", "program"),
    "weights": ("halves", "singles"),
    "graphs": ("graphs",),
    "images": ("examples-data",),
}  # of the parts


@dataclass(frozen=True)
class LivePage:
    """What was written.

    Attributes:
        size: Bytes of the page.
        parts: Bytes of the page that each kind of part takes.
        difference: The largest difference of a probability from the model's, as ONNX Runtime computes it here.
        left_out: Names of saved rules that the page cannot follow.
    """

    size: int
    parts: dict[str, int]
    difference: float
    left_out: list[str]


def write_page(
    model: AnytimeModel,
    path: Path,
    engine: WebEngine,
    name: str,
    examples: Examples | None = None,
    accuracies: Accuracies | None = None,
    progress: bool = False,
    replace: bool = True,
) -> LivePage:
    """Writes a page on which the model answers.

    Args:
        model: A classifier that can be exported; of several label levels the page shows the first.
        path: The file.
        engine: See `web_engine`.
        name: What the page calls the model.
        examples: Test images to choose from.
        accuracies: The accuracy of each step.
        progress: Whether to show a progress bar on stderr.
        replace: Whether a file that is there at the end is replaced.

    Raises:
        ImportError: ONNX is not installed; the message names the extra.
        ValueError: The model is no classifier of grey or colour images, it cannot be exported, or it has too many steps or
            weights for a browser; without `replace`, a file is there at the end.
    """
    require_classifier(model, "a live page")
    if model.num_steps > MOST_STEPS:
        weights = sum(parameter.numel() for parameter in model.parameters()) * 4e-6
        raise ValueError(
            f"a live page holds at most {MOST_STEPS} steps, as a browser keeps a graph for each: the model has "
            f"{model.num_steps}, of up to {weights:,.1f} MB each; export it with `anytime export` instead"
        )
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "export")
        export = export_model(model, own, progress=progress)
        if export.in_channels not in (1, 3):
            raise ValueError(f"a live page shows grey or colour images, the model takes {export.in_channels} channels")
        total = sum((own / step.file).stat().st_size for step in export.manifest.steps)
        if total > MOST_BYTES:
            raise ValueError(
                f"the graphs of {model.num_steps} steps hold {total / 1e6:,.0f} MB, and a browser keeps them all in memory: "
                f"a live page takes at most {MOST_BYTES / 1e6:,.0f} MB"
            )
        packed, difference = _checked(model, export, own, examples)
    rules, left_out = _rules(model)
    facts = {
        "classes": _class_names(model),
        "input": list(export.manifest.input_size),
        "ratio": model.info.resize_ratio,
        "stretched": model.info.stretched,
        "steps": _steps(export, [*packed.files]),
        "graphs": [len(data) for data in packed.files.values()],
        "weights": packed.directory(),
        "labels": examples.labels if examples else [],
        "accuracy": accuracies.steps if accuracies else None,
        "rules": rules,
    }
    parts = {
        "engine": _part("engine", engine.script),
        "glue": _part(
            "glue", engine.glue.replace(b"import.meta.url", b"'file:///'")
        ),  # that of a blob is no base of addresses
        "program": _element("program", engine.program, f'data-code="lzma" data-unpacked="{engine.size}"'),
        "graphs": _part("graphs", b"".join(packed.files.values())),
        "halves": _part("halves", packed.halves()),
        "singles": _part("singles", packed.singles()),
        "examples-data": _part("examples-data", examples.images.numpy().tobytes()) if examples else "",
    }
    answers = f"{model.num_steps} answers: the first comes early, later ones are right more often"
    lead = f"A network with {answers}. From the first on, it has one whenever time is up. Move the deadline, and see which."
    values = {
        "name": html.escape(name),
        "lead": lead if model.num_steps > 1 else "A network with one answer: a deadline either reaches it or does not.",
        "examples": "The first test image of each class" if examples else "",
        "accuracy": "" if accuracies else "hidden",
        "source": html.escape(accuracies.source) if accuracies else "",
        "version": __version__,
        "engine": VERSION,
        "facts": json.dumps(facts).replace("<", "\\u003c"),
        "parts": "\n".join(part for part in parts.values() if part),
    }
    data = _filled(values).encode()
    with atomic_write(path, replace) as part:
        part.write_bytes(data)
    lengths = {part: len(text.encode()) for part, text in parts.items()}
    sizes = {kind: sum(lengths[part] for part in kinds) for kind, kinds in _KINDS.items()}
    return LivePage(len(data), sizes, difference, left_out)


def _checked(model: AnytimeModel, export: ExportedModel, folder: Path, examples: Examples | None) -> tuple[Packed, float]:
    """The weights in float16 if the answers stay equal, else in float32 where they have to be."""
    size = export.manifest.input_size
    images = torch.rand(_RANDOM, *size, generator=torch.Generator().manual_seed(3))
    if examples is not None:
        images = torch.cat([images, examples.images.float().div(255)])
    expected = _probabilities(model, images)
    packed = pack(export, folder, model.state_dict())
    if len(packed.singles()) > SMALL_SHARE * len(packed.halves()):
        rounded = packed.rounded()
        difference = largest_difference(rounded, export, expected, images, folder.with_name("rounded"))
        if difference <= TOLERANCE:
            return rounded, difference
    return packed, largest_difference(packed, export, expected, images, folder.with_name("weights"))


def _probabilities(model: AnytimeModel, images: Tensor) -> Tensor:
    """Those of the first label level, `[T, N, K]`, computed image by image on the model's device."""
    reference = next(model.parameters())
    with torch.inference_mode():
        logits = torch.cat([torch.stack([*model.stream(x)]).float().cpu() for x in images.to(reference).split(1)], 1)
    return logits[..., : model.levels[0]].softmax(2)


def _class_names(model: AnytimeModel) -> list[str]:
    """Those of the first label level, or numbers."""
    names = list(model.info.class_names[: model.levels[0]])
    return names if len(names) == model.levels[0] else [str(k) for k in range(model.levels[0])]


def _steps(export: ExportedModel, graphs: Sequence[str]) -> list[dict[str, Any]]:
    """The graph of each step, and where its inputs come from: `[name, step, output]`."""
    return [
        {
            "graph": graphs.index(step.file),
            "inputs": [
                [value.name, source.step, source.output] for value, source in zip(step.inputs, step.sources, strict=True)
            ],
        }
        for step in export.manifest.steps
    ]


def _rules(model: AnytimeModel) -> tuple[list[dict[str, Any]], list[str]]:
    """No rule, one by hand, those saved with the model; and the names of those that look at more than probabilities."""
    saved = saved_rules(model)
    known = {name: fitted for name, fitted in saved.items() if _is_known(fitted.stop.to_dict())}
    rules = {"": Fitted(), BY_HAND: Fitted(rule_from_text(BY_HAND)), **known}
    values = [{"name": name, "stop": each.stop.to_dict(), "combine": each.combine.to_dict()} for name, each in rules.items()]
    return values, [name for name in saved if name not in known]


def _is_known(rule: Mapping[str, Any]) -> bool:
    return rule["kind"] in RULES and all(_is_known(part) for part in rule.get("rules", ()))


def _part(name: str, data: bytes) -> str:
    return _element(name, gzip.compress(data, 9, mtime=0), 'data-code="gzip"')


def _element(name: str, data: bytes, attributes: str) -> str:
    return f'<script type="application/octet-stream" id="{name}" data-size="{len(data)}" {attributes}>{dense(data)}</script>'


def _filled(values: Mapping[str, str]) -> str:
    """The template with its values, style and script; the policy allows this script and what it unpacks, and no address."""
    folder = files("anytime.export.html") / "page"

    def text(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    style = f"{read('colours.css', 'base.css')}\n{text('page.css')}"
    script = '"use strict";\n' + "\n".join(map(text, SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {allowed(script)} 'wasm-unsafe-eval' blob:; "
        f"style-src {allowed(style)}; img-src data: blob:; media-src blob:; base-uri 'none'; form-action 'none'"
    )
    known = {**values, "policy": policy, "style": style, "script": script}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: known[match[1]], text("page.html"))
