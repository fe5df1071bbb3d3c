"""An exported folder as a network: its steps, and the images that it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from anytime_edge.graph import Graph, in_pool
from anytime_edge.manifest import Manifest, Origin, read_manifest
from anytime_edge.view import channels_last, middle

OVERSHOOT = 0.05  # how far interpolation may take a pixel beyond [0, 1]
Values = dict[Origin, np.ndarray]


class Network:
    """What a folder holds, loaded by `load`.

    Attributes:
        manifest: What it holds.
        threads: Threads that a step computes with.
        pool: The threads in which steps run.
    """

    def __init__(self, manifest: Manifest, graphs: list[Any], threads: int, pool: Any) -> None:
        self.manifest, self._graphs, self.threads, self.pool = manifest, graphs, threads, pool

    def step(self, step: int, values: Values, call: Any = None) -> tuple[np.ndarray, Values]:
        """The logits `[1, K]` of step 1..T and the values after it, from those before; `{(0, "images"): x}` at first."""
        entry = self.manifest.steps[step - 1]
        outputs = self._graphs[step - 1].run([values[source] for source in entry.sources], call)
        made = {(step, name): output for name, output in zip(entry.outputs, outputs, strict=True)}
        return outputs[0], {source: made[source] if source[0] == step else values[source] for source in entry.kept}

    def call(self) -> Any:
        """What identifies the steps of one run, so that another thread can cancel them."""
        return self._graphs[0].call()

    def cancel(self, call: Any) -> None:
        """Ends the step that runs in a call, within one operator, and every later one."""
        call.terminate = True

    def prepare(self, frame: Any, bgr: bool = False) -> np.ndarray:
        """A frame as float32 `[1, C, H, W]` in [0, 1]: uint8 of any size, or float images of the network's own size.

        Raises:
            ValueError: It has another shape, holds NaN, or goes beyond [0, 1].
            TypeError: It is neither uint8 nor floating-point.
        """
        frame, (channels, *size), known = np.asarray(frame), self.manifest.input_size, self.manifest.metadata
        if frame.dtype == np.uint8:
            picture = channels_last(frame, channels, bgr)
            view = middle(picture, (size[0], size[1]), known.get("margin", 1), known.get("stretched", False))
            return np.ascontiguousarray(view.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
        if frame.dtype.kind != "f":
            raise TypeError(f"a frame is uint8, or float images in [0, 1], got {frame.dtype}")
        if frame.shape not in (self.manifest.input_size, (1, *self.manifest.input_size)):
            raise ValueError(f"the network takes one image of {self.manifest.input_size} at a time, got {frame.shape}")
        image = np.array(frame, np.float32, order="C").reshape(1, *self.manifest.input_size)
        if not (image.min() >= -OVERSHOOT - 1e-6 and image.max() <= 1 + OVERSHOOT + 1e-6):
            raise ValueError(f"images must lie in [0, 1], got values from {image.min():g} to {image.max():g}")
        return image.clip(0, 1, out=image)


def load(directory: str | os.PathLike[str], threads: int = 1) -> Network:
    """The network in a folder that `anytime export --engine onnx` wrote.

    Raises:
        ValueError: The manifest or a graph is missing, damaged, or not what `anytime export` writes.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads!r}")
    directory = Path(directory)
    manifest = read_manifest(directory)

    def graphs() -> list[Graph]:
        made: dict[Any, Graph] = {}  # steps that compute the same share a graph
        keys = [(step.file, step.sha256, *step.inputs.items(), *step.outputs.items()) for step in manifest.steps]
        for key, step in zip(keys, manifest.steps, strict=True):
            if key not in made:
                made[key] = Graph(directory / step.file, step.sha256, step.inputs, step.outputs, threads)
        return [made[key] for key in keys]

    loaded, pool = in_pool(graphs)
    return Network(manifest, loaded, threads, pool)
