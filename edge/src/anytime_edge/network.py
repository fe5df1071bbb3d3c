"""An exported folder as a network: its steps in ONNX Runtime, and the images that it takes."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import onnxruntime

from anytime_edge.manifest import Manifest, Origin, Shapes, check_graph, read_file, read_manifest
from anytime_edge.view import channels_last, middle

# how far interpolation may take a pixel beyond [0, 1]; bytes of a file; computations at a time
OVERSHOOT, MOST_BYTES, WORKERS = 0.05, 2**31 - 1, 16
Values = dict[Origin, np.ndarray]
# a forked process keeps its parent's graphs, whose end would wait for the parent's threads for ever
_graphs, _kept = weakref.WeakSet[onnxruntime.InferenceSession](), list[onnxruntime.InferenceSession]()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _kept.extend(_graphs))


class Cancelled(RuntimeError):
    """A step was cancelled."""


def read_graph(threads: int, path: Path, sha256: str, inputs: Shapes, outputs: Shapes) -> onnxruntime.InferenceSession:
    """The graph of a step, which any number of threads may run.

    Args:
        threads: Threads to compute with.
        path: The file.
        sha256: What its digest must be.
        inputs: Names and shapes.
        outputs: Names and shapes.

    Raises:
        ValueError: The file is missing, a link, damaged, or not what the manifest says.
    """
    data = read_file(path, MOST_BYTES)
    if (digest := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(f"{path} is damaged: SHA-256 is {digest[:12]}..., the manifest says {sha256[:12]}...")
    check_graph(data, str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    for name, value in (("load_model_format", "ONNX"), ("set_denormal_as_zero", "1"), ("force_spinning_stop", "1")):
        options.add_session_config_entry(f"session.{name}", value)
    try:
        graph = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of the engine's own kinds
        raise ValueError(f"{path} cannot be loaded by ONNX Runtime: {' '.join(str(error).split())[:300]}") from error
    for values, nodes in ((inputs, graph.get_inputs()), (outputs, graph.get_outputs())):
        if dict(values) != (found := {node.name: tuple(node.shape) for node in nodes}):
            raise ValueError(f"{path} has the inputs or outputs {found}, which are not those of the manifest")
    _graphs.add(graph)
    return graph


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads that compute in a process: a forked one has no threads of its parent."""
    pool, all_there = ThreadPoolExecutor(WORKERS, thread_name_prefix="anytime-edge"), Barrier(WORKERS)
    wait([pool.submit(all_there.wait) for _ in range(WORKERS)])
    return pool


def in_pool(make: Callable[[], Any]) -> tuple[Any, ThreadPoolExecutor]:
    """The result of `make()`, and the threads that compute, started once.

    ONNX Runtime treats denormal numbers as zero in the first thread that loads a graph, and threads that it starts inherit
    this. So that thread is one of ours, and so are its children: the caller's numbers stay as they are.
    """
    with ThreadPoolExecutor(1) as first:
        return first.submit(make).result(), first.submit(_pool, os.getpid()).result()


class Network:
    """What a folder holds, loaded by `load`.

    Attributes:
        manifest: What it holds.
        threads: Threads that a step computes with.
        pool: The threads in which steps run.
        process: The process that loaded it, which alone can run it.
    """

    def __init__(self, manifest: Manifest, graphs: list[Any], threads: int, pool: Any) -> None:
        self.manifest, self._graphs, self.threads, self.pool, self.process = manifest, graphs, threads, pool, os.getpid()

    def check(self) -> None:
        """Raises RuntimeError in a forked process."""
        if self.process != os.getpid():
            raise RuntimeError("this network belongs to the process that forked this one: load it here")

    def step(self, step: int, values: Values, call: Any = None) -> tuple[np.ndarray, Values]:
        """The logits `[1, K]` of step 1..T and the values after it, from those before; `{(0, "images"): x}` at first.

        Raises Cancelled if `call` was cancelled.
        """
        entry, last = self.manifest.steps[step - 1], self.manifest.last
        given = {name: values[source] for (name, _), source in zip(entry.inputs, entry.sources, strict=True)}
        names = [name for name, _ in entry.outputs]
        try:
            outputs = self._graphs[step - 1].run(names, given, call)
        except Exception as error:  # of the engine's own kinds
            if call is not None and call.terminate and "terminate flag" in str(error):
                raise Cancelled("a step was cancelled") from error
            raise
        values = values | {(step, name): output for name, output in zip(names, outputs, strict=True)}
        return outputs[0], {source: value for source, value in values.items() if last.get(source, 0) > step}

    def call(self) -> Any:
        """What identifies the steps of one run: `terminate = True` ends them within one operator, from any thread."""
        return onnxruntime.RunOptions()

    def prepare(self, frame: Any, bgr: bool = False) -> np.ndarray:
        """A frame as float32 `[1, C, H, W]` in [0, 1]: uint8 of any size, or float images of the network's own size.

        Raises:
            ValueError: It has another shape, holds NaN, or goes beyond [0, 1].
            TypeError: It is neither uint8 nor floating-point.
        """
        frame, (channels, height, width), known = np.asarray(frame), self.manifest.input_size, self.manifest.metadata
        if frame.dtype == np.uint8:
            given = channels_last(frame, channels, bgr), (height, width), known.get("margin", 1), known.get("stretched", False)
            return np.ascontiguousarray(middle(*given).transpose(2, 0, 1)[None], np.float32) / np.float32(255)
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
    manifest = read_manifest(Path(directory))
    # steps that compute the same share one
    graph = cache(lambda file, *known: read_graph(threads, Path(directory, file), *known))
    graphs, pool = in_pool(lambda: [graph(step.file, step.sha256, step.inputs, step.outputs) for step in manifest.steps])
    return Network(manifest, graphs, threads, pool)
