"""An exported folder as a model: the same steps over explicit state, computed by its engine."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel, State
from anytime.registry import register_loader
from anytime.runtime.engines import aoti, executorch, onnx, openvino
from anytime.runtime.engines.aoti import AotiGraph
from anytime.runtime.engines.base import Graph, StepMeasurement
from anytime.runtime.engines.executorch import ExecutorchGraph
from anytime.runtime.engines.graph_check import Allowance
from anytime.runtime.engines.manifest import MANIFEST, NEXT, Manifest, Origin, StepFile, needed_after, read_manifest
from anytime.runtime.engines.onnx import OnnxGraph
from anytime.runtime.engines.openvino import OpenvinoGraph
from anytime.runtime.engines.pytorch import EagerSteps
from anytime.saving import ModelInfo, check_names, named_by
from anytime.support.files import atomic_write
from anytime.support.limits import MOST_MACS, BeyondLimit, check_image
from anytime.support.owned import NotOurs, check_contents, check_room_for_export
from anytime.support.tensors import described
from anytime.support.trust import UntrustedName, is_remembered, remember


class EngineKind(NamedTuple):
    """An engine of exports.

    Attributes:
        load: Loads the graph of a step.
        version: Says name and version; raises ImportError if it is not installed.
        precisions: What it computes in.
        executes: What its files hold, if loading them may execute it; "" if they are checked before.
    """

    load: Callable[..., Graph]
    version: Callable[[], str]
    precisions: tuple[str, ...]
    executes: str = ""


ENGINES = {
    "onnx": EngineKind(OnnxGraph, onnx.engine_version, ("float32", "int8")),
    "openvino": EngineKind(OpenvinoGraph, openvino.engine_version, ("float32", "bfloat16", "int8")),
    "aoti": EngineKind(AotiGraph, aoti.engine_version, ("float32",), "compiled libraries"),
    "executorch": EngineKind(ExecutorchGraph, executorch.engine_version, ("float32",), "programs that cannot be checked"),
}


class ExportedModel(AnytimeModel):
    """A model whose steps are graphs of an engine; `anytime.load` makes it from an exported folder.

    Its answers are those of the model that was exported, up to the tolerance in the manifest. Images have one size, and lie on
    the CPU in float32. A batch of another size than the graphs' is computed image by image. The state holds the outputs of the
    graphs that a later step takes. `mean` and `std` are those in the graph of the first step: changing them changes nothing.

    Attributes:
        manifest: What the folder holds.
        directory: The folder.
        deployment: Engine and version, precision, threads.
        parameter_count: The number of parameters of the model that was exported.
    """

    own_normalization = True

    def __init__(self, manifest: Manifest, directory: Path, graphs: Sequence[Graph], deployment: Mapping[str, Any]) -> None:
        levels = manifest.levels
        super().__init__(levels[0] if len(levels) == 1 else levels, in_channels=manifest.input_size[0])
        self.manifest, self.num_steps, self.parameter_count = manifest, len(manifest.steps), manifest.parameters
        self.deployment, self.directory, self._graphs = dict(deployment), directory, tuple(graphs)
        self._kept = [{str(tuple(source)): source for source in sources} for sources in needed_after(manifest.steps)]
        self.set_normalization(manifest.mean, manifest.std)
        self.reference = nn.Parameter(torch.empty(0), requires_grad=False)  # says the device and the precision
        self.digest: Tensor
        digest = hashlib.sha256(_text_of(manifest).encode()).digest()
        self.register_buffer("digest", torch.tensor([*digest], dtype=torch.uint8))  # stands for the weights in the graphs
        self.config = {"model": manifest.model, "arguments": {"export": manifest.engine, "digest": digest.hex()}}
        self.info = replace(ModelInfo.from_dict(manifest.info), input_size=manifest.input_size)

    def check_input(self, x: Tensor, smallest: int = 1) -> None:
        """Raises as `AnytimeModel.check_input` does, and if images are not of the export's size, type and device."""
        super().check_input(x, smallest)
        if tuple(x.shape[1:]) != self.manifest.input_size:
            size = "x".join(map(str, self.manifest.input_size))
            raise ValueError(f"the export takes images of {size}, got {described(x)}; model.prepare(frame) resizes them")
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise TypeError(f"the export computes in float32 on the CPU, got images of {x.dtype} on {x.device}")

    def initial_state(self, x: Tensor) -> State:
        self.check_input(x)
        return {"step": 0, str(tuple(Origin(0))): x}

    def step(self, state: State) -> tuple[Tensor, State]:
        return self.run(state)

    def run(self, state: State, call: Any = None) -> tuple[Tensor, State]:
        """A step in a call of the engine (see `new_call`), which another thread can cancel."""
        index: int = state["step"]
        entry, kept = self.manifest.steps[index], self._kept[index]
        outputs = self._batched(index, [state[str(tuple(source))] for source in entry.sources], call)
        made = {str((index + 1, value.name)): output for value, output in zip(entry.outputs, outputs, strict=True)}
        after = {key: made[key] if key in made else state[key] for key in kept}
        return outputs[0], {"step": index + 1, **after}

    def _batched(self, index: int, inputs: list[Tensor], call: Any) -> list[Tensor]:
        """The outputs of a graph; image by image where it computes another batch size."""
        graph, size = self._graphs[index], self.manifest.batch
        batch = len(inputs[0])
        if size is None or batch == size:
            return graph.run(inputs, call)
        parts = [
            graph.run([tensor[i : i + 1].expand(size, *tensor.shape[1:]) for tensor in inputs], call) for i in range(batch)
        ]
        return [torch.cat([output[:1] for output in outputs]) for outputs in zip(*parts, strict=True)]

    def new_call(self) -> Any:
        """What identifies calls of `run`, for `cancel`."""
        return self._graphs[0].call()

    @property
    def cancels(self) -> bool:
        """Whether `cancel` ends a step before it is done."""
        return self._graphs[0].cancels

    def cancel(self, call: Any) -> None:
        """Ends `run` in this call, which raises `Cancelled`, within one operator; a later one at its start."""
        self._graphs[0].cancel(call)

    def measure(self, x: Tensor, repeats: int) -> list[StepMeasurement]:
        """The operators of each step on images `[B, C, H, W]`, or on one of them if that is what a graph computes."""
        size = self.manifest.batch
        state, measured = self.initial_state(x if size is None else x[:1].expand(size, -1, -1, -1)), []
        for graph, step in zip(self._graphs, self.manifest.steps, strict=True):
            measured.append(graph.measure([state[str(tuple(source))] for source in step.sources], repeats))
            _, state = self.step(state)
        return measured

    def counted_macs(self, input_size: Sequence[int]) -> list[int]:
        """Cumulative MACs of one image after each step, counted at the export."""
        if tuple(input_size) != self.manifest.input_size:
            given, own = ("x".join(map(str, size)) for size in (input_size, self.manifest.input_size))
            raise ValueError(f"the export takes images of {own}, so its cost for {given} is not known")
        return [step.macs for step in self.manifest.steps]

    def _files(self) -> list[StepFile]:
        """The graphs in the folder."""
        return [step for step in (*self.manifest.steps, self.manifest.whole) if step is not None]

    def check_saveable(self) -> None:
        """Raises ValueError if it names other than all of its classes; an export is saved as its files."""
        check_names(self.info, self.num_classes)

    def check_room(self, folder: Path) -> None:
        """Raises NotOurs if a folder holds a model, another export, or files with the names of the graphs."""
        check_room_for_export(folder)
        if (folder / MANIFEST).exists() and read_manifest(folder, ENGINES).steps != self.manifest.steps:
            raise NotOurs(f"{folder} holds another export, which is not replaced; give another folder")
        check_contents(folder, {step.file: {step.sha256} for step in self._files()})

    def _save_pretrained(self, save_directory: Path) -> None:
        """Copies the graphs to another folder; writes the manifest with what `info` says now, such as new rules."""
        self.check_room(save_directory)
        save_directory.mkdir(parents=True, exist_ok=True)
        for file in sorted({step.file for step in self._files()}):
            if not (save_directory / file).exists():
                with atomic_write(save_directory / file) as part:
                    shutil.copyfile(self.directory / file, part)
        write_manifest(save_directory, replace(self.manifest, info=self.info.to_dict()))


class ExportedSteps(EagerSteps):
    """The engine of an export, which may cancel a step."""

    model: ExportedModel

    def __init__(self, model: ExportedModel, lazy: bool = False) -> None:
        super().__init__(model, lazy)
        self.cancels = model.cancels

    def step(self, step: int, state: State, size: int, call: Any = None) -> tuple[Any, State]:
        return self.model.run(state, call)

    def call(self) -> Any:
        return self.model.new_call()

    def cancel(self, call: Any) -> None:
        if call is not None:
            self.model.cancel(call)

    def measure(self, x: Tensor, repeats: int) -> list[StepMeasurement]:
        return self.model.measure(x, repeats) if self.cancels else []


def engine_of(model: AnytimeModel, lazy: bool = False) -> EagerSteps:
    """What computes the steps of a model as they are: torch, or the engine of its export."""
    return ExportedSteps(model, lazy) if isinstance(model, ExportedModel) else EagerSteps(model, lazy)


def _text_of(manifest: Manifest) -> str:
    """The files of the steps and their connections, as text."""
    return json.dumps([step.to_dict() for step in manifest.steps])


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, atomically."""
    with atomic_write(directory / MANIFEST) as part:
        part.write_text(json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def consent_text(manifest: Manifest) -> str:
    """The part of a manifest that can name import paths, as text: what a user consents to."""
    return named_by({"model": manifest.model, "metadata": manifest.info})


def remember_code(directory: Path, manifest: Manifest) -> None:
    """Remembers that the user has written what loading an export executes, if its engine executes anything."""
    if ENGINES[manifest.engine].executes:
        remember(directory / manifest.steps[0].file, _text_of(manifest))


def _check_size(manifest: Manifest, resize_ratio: float) -> None:
    """Raises BeyondLimit if one call needs more work than a network of unknown origin may ask for."""
    batch, macs = manifest.batch or 1, manifest.steps[-1].macs
    check_image(manifest.input_size if batch == 1 else (batch, *manifest.input_size), resize_ratio)
    if macs * batch > MOST_MACS:
        raise BeyondLimit(f"the network multiplies {macs * batch:,} times for one call", MOST_MACS)


def _check_state(manifest: Manifest, directory: Path, most: int) -> None:
    """Raises ValueError if what lies between two steps holds more than `most` values."""
    batch = manifest.batch or 1
    sizes = {Origin(0): batch * math.prod(manifest.input_size)}
    for t, (step, kept) in enumerate(zip(manifest.steps, needed_after(manifest.steps), strict=True), 1):
        made = {Origin(t, value.name): batch * math.prod(map(int, value.shape[1:])) for value in step.outputs}
        sizes |= made
        if (held := sum(sizes[source] for source in {*kept, *made})) > most:
            raise ValueError(f"{directory} holds {held:,} values after step {t}, more than {most:,} for images of this size")


@register_loader(MANIFEST)
def load_export(directory: str | os.PathLike[str], trust: bool = False, own: Manifest | None = None) -> ExportedModel:
    """An exported folder as a model, computed by its engine with as many threads as torch has now.

    Args:
        directory: What `anytime export` wrote.
        trust: Whether import paths that its recipe names, such as a data set's, may be imported, see `anytime.load`, and
            whether what its files hold may be executed, if its engine does that.
        own: What this process wrote there, which may be executed; not what has taken its place since.

    Raises:
        ImportError: The engine is not installed.
        FileNotFoundError: A file is missing.
        UntrustedName: Its engine executes what the files hold, and nobody has consented to it.
        ValueError: The manifest or a graph is damaged, or of another version.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, ENGINES)
    info = ModelInfo.from_dict(manifest.info)
    info.trusted = trust or is_remembered(directory / MANIFEST, consent_text(manifest))
    if not info.trusted:
        _check_size(manifest, info.resize_ratio)
    load, version, precisions, executes = ENGINES[manifest.engine]
    text = _text_of(manifest)
    known = own is not None and _text_of(own) == text
    if executes and not (trust or known or is_remembered(directory / manifest.steps[0].file, text)):
        raise UntrustedName(
            f"{directory} holds {executes} of the engine {manifest.engine!r}: loading them may run any code; if you "
            "trust this folder, use trust=True, or --trust on the command line"
        )
    if manifest.precision not in precisions:
        raise ValueError(f"{directory} is of {manifest.precision}, the engine {manifest.engine!r} has {', '.join(precisions)}")
    batch, threads = manifest.batch or 1, torch.get_num_threads()
    allowance = Allowance(batch * manifest.steps[-1].macs, batch * math.prod(manifest.input_size))
    _check_state(manifest, directory, allowance.live)
    deployment = {"engine": version(), "threads": threads, "dtype": manifest.precision}
    loaded: dict[Any, Graph] = {}  # steps that compute the same share a graph
    keys = [(step.file, step.sha256, step.inputs, step.outputs) for step in manifest.steps]
    try:
        for key, step in zip(keys, manifest.steps, strict=True):
            if key not in loaded:
                loaded[key] = load(directory, step, threads, allowance, keys.count(key), manifest.precision)
    except (OSError, ValueError) as error:
        if not (directory / NEXT / MANIFEST).is_file():
            raise
        begun = f"{directory} is being replaced, or was when `anytime export --overwrite` was stopped"
        raise ValueError(f"{begun}: the same command again completes it ({error})") from error
    model = ExportedModel(manifest, directory, [loaded[key] for key in keys], deployment)
    model.info = replace(info, input_size=manifest.input_size)
    return model.eval()
