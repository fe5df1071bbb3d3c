"""ExecuTorch: a step as a program for small devices, run here by its Python bindings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from anytime.runtime.engines.base import WholeGraph
from anytime.runtime.engines.graph_check import Allowance
from anytime.runtime.engines.manifest import GraphValue, StepFile
from anytime.runtime.engines.step_file import check_values, read_file
from anytime.support.text import one_line

INSTALL = "pip install 'anytime-nets[executorch]'"


def engine_version() -> str:
    """Name and version of the engine; raises ImportError, in one sentence, if it is not installed."""
    try:
        return f"ExecuTorch {version('executorch')}"
    except PackageNotFoundError as error:
        raise ImportError(f"the engine 'executorch' needs executorch: {INSTALL}") from error


def require_engine() -> None:
    """Raises ImportError, in one sentence, unless ExecuTorch is installed."""
    engine_version()


class ExecutorchGraph(WholeGraph):
    """The program of one step, on the CPU; any number of threads may run it, one at a time. It cannot be cancelled.

    The threads of ExecuTorch are the process's: whoever loads a graph sets them for all.

    Args:
        directory: The exported folder.
        step: The step, as the manifest has it.
        threads: To compute with.
        allowance: As for the other engines; nothing limits what a program does.
        uses: Steps that compute it.
        precision: What it computes in: the program says so itself.

    Raises:
        FileNotFoundError: The file is missing.
        ImportError: ExecuTorch is not installed.
        ValueError: The file is damaged, needs an operator that is not there, or has other inputs or outputs.
    """

    def __init__(
        self, directory: Path, step: StepFile, threads: int, allowance: Allowance, uses: int = 1, precision: str = "float32"
    ) -> None:
        engine_version()
        self._path, self._step, self._threads = directory / step.file, step, threads
        data = read_file(self._path, step)
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime, Verification

        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        try:
            program = Runtime.get().load_program(data, verification=Verification.InternalConsistency)
            method = program.load_method("forward")
        except Exception as error:  # of several layers of the engine
            raise ValueError(f"{self._path} cannot be loaded by ExecuTorch: {one_line(error)}") from error
        if method is None:
            raise ValueError(f"{self._path} holds no method 'forward'")
        self._program, self._method, self._lock = program, method, threading.Lock()
        found = method.metadata
        inputs = [found.input_tensor_meta(k) for k in range(found.num_inputs())]
        outputs = [found.output_tensor_meta(k) for k in range(found.num_outputs())]
        check_values(self._path, step, _values(step.inputs, inputs), _values(step.outputs, outputs))

    def run(self, inputs: Sequence[Tensor], call: Any = None) -> list[Tensor]:
        """The outputs, from the inputs in their order in the manifest."""
        with self._lock:  # the next run writes where this one's outputs lie
            return [output.clone() for output in self._method.execute([tensor.detach().contiguous() for tensor in inputs])]

    def __reduce__(self) -> tuple[Any, ...]:
        return ExecutorchGraph, (self._path.parent, self._step, self._threads, Allowance(0, 0))


_TYPES = {6: "float32", 7: "float64", 3: "int32", 4: "int64", 11: "bool"}  # numbers of torch's types


def _values(named: Sequence[GraphValue], found: Sequence[Any]) -> list[GraphValue]:
    """What a program takes or makes; it has no names, so the manifest's stand there."""
    names = [value.name for value in named] + [f"unnamed_{k}" for k in range(len(named), len(found))]
    return [
        GraphValue(name, tuple(map(int, meta.sizes())), _TYPES.get(meta.dtype(), str(meta.dtype())))
        for name, meta in zip(names, found, strict=False)
    ]
