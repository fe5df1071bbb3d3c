"""ONNX Runtime: the graph of a step as an ONNX file, which runs without torch and can be cancelled between operators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from anytime.runtime.engines.base import Cancelled, StepMeasurement
from anytime.runtime.engines.graph_check import Allowance
from anytime.runtime.engines.manifest import GraphValue, StepFile
from anytime.runtime.engines.step_file import INSTALL, check_values, checked_file, own_denormals
from anytime.runtime.forks import keep, renew_after_fork
from anytime.support.text import one_line

_WARMUP = 3
_KINDS = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def engine_version() -> str:
    """Name and version of the engine; raises ImportError, in one sentence, if it is not installed."""
    return f"onnxruntime {_onnxruntime().__version__}"


def _onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401, reads what a graph holds before it is loaded
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"the engine 'onnx' needs {error.name or 'onnxruntime'}: {INSTALL}") from error
    return onnxruntime


class OnnxGraph:
    """The graph of one step in ONNX Runtime, on the CPU; any number of threads may run it.

    Nothing but the file is read, and only what was checked of it (see `graph_check`). In a forked process it computes with one
    thread.

    Args:
        directory: The exported folder.
        step: The step, as the manifest has it.
        threads: Threads to compute with.
        allowance: What the graphs of the export may take together; this one takes its share.
        uses: Steps that compute this graph.
        precision: What it computes in: the graph says so itself.

    Raises:
        ImportError: ONNX Runtime is not installed.
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged, not what the manifest says, or needs more work or memory than that explains.
    """

    cancels = True

    def __init__(
        self, directory: Path, step: StepFile, threads: int, allowance: Allowance, uses: int = 1, precision: str = "float32"
    ) -> None:
        self._path, self._step, self._threads = directory / step.file, step, threads
        self._explained = allowance.macs, allowance.values
        self._names = [value.name for value in step.inputs]
        self._outputs = [value.name for value in step.outputs]
        self._session = self._loaded(allowance, uses)
        renew_after_fork(self)

    def _loaded(self, allowance: Allowance, uses: int = 1, notes: Path | None = None) -> Any:
        """The graph in the engine, which writes how long each operator takes to a file in the folder `notes`."""
        onnxruntime = _onnxruntime()
        data = checked_file(self._path, self._step, allowance, uses)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.log_severity_level = 4
        if notes is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(notes / "notes")
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")  # the next step has threads of its own
        try:
            with own_denormals():
                session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of the engine's own kinds
            raise ValueError(f"{self._path} cannot be loaded by ONNX Runtime: {one_line(error)}") from error
        found = ([*map(_value, nodes)] for nodes in (session.get_inputs(), session.get_outputs()))
        check_values(self._path, self._step, *found)
        return session

    def call(self) -> Any:
        """What identifies one call of `run`."""
        return _onnxruntime().RunOptions()

    def run(self, inputs: Sequence[Tensor], call: Any = None) -> list[Tensor]:
        """The outputs, from the inputs in their order in the manifest.

        Raises:
            Cancelled: `cancel` was called with this call, in any thread, before or meanwhile.
        """
        if self._session is None:
            self._session = self._loaded(Allowance(*self._explained))
        try:
            outputs = self._session.run(self._outputs, self._given(inputs), call)
        except Exception as error:
            if _terminated(error, call):
                raise Cancelled(f"a run of {self._path.name} was cancelled") from error
            raise
        return [torch.from_numpy(output) for output in outputs]

    def run_into(self, image: Any, outputs: Sequence[Any], call: Any) -> None:
        """Writes the outputs, of the only input, to float32 arrays of numpy, each as soon as it is computed.

        Raises:
            Cancelled: `cancel` was called with this call.
        """
        bound = self._session.io_binding()
        bound.bind_cpu_input(self._names[0], image)
        for name, array in zip(self._outputs, outputs, strict=True):
            bound.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        try:
            self._session.run_with_iobinding(bound, call)
        except Exception as error:
            if _terminated(error, call):
                raise Cancelled(f"a run of {self._path.name} was cancelled") from error
            raise

    def _given(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        return dict(zip(self._names, [tensor.detach().contiguous().numpy() for tensor in inputs], strict=True))

    def cancel(self, call: Any) -> None:
        """Ends a call within one operator, and every later `run` with it."""
        call.terminate = True

    def measure(self, inputs: Sequence[Tensor], repeats: int) -> StepMeasurement:
        """How long the operators take in `repeats` runs, and how much memory they need; in a copy, which notes it.

        Of the runs, those before (`_WARMUP`) count neither. An operator is a kernel of ONNX Runtime's optimised graph.
        """
        given, seconds, memory = self._given(inputs), dict[str, list[float]](), 0
        with TemporaryDirectory() as notes:
            session = self._loaded(Allowance(*self._explained), notes=Path(notes))
            for _ in range(_WARMUP + repeats):
                session.run(self._outputs, given)
            events = json.loads(Path(session.end_profiling()).read_bytes())
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                seconds.setdefault(event["name"], []).append(event["dur"] * 1e-6)
                memory = max(memory, int(event["args"].get("mem_in_use_peak", 0)))
        longest = max((times[_WARMUP:] for times in seconds.values()), key=median, default=[])
        return StepMeasurement(longest or [0.0] * repeats, memory)

    def renew(self) -> None:
        """In a forked process: its threads do not exist here."""
        keep(self._session)
        self._session, self._threads = None, 1

    def __deepcopy__(self, memo: Any) -> OnnxGraph:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxGraph, (self._path.parent, self._step, self._threads, Allowance(*self._explained))


def _terminated(error: Exception, call: Any) -> bool:
    """Whether an error is the engine's own, of a call that was cancelled, and not one that a signal's handler raised then."""
    return call is not None and call.terminate and "terminate flag" in str(error)


def _value(node: Any) -> GraphValue:
    return GraphValue(node.name, tuple(node.shape), _KINDS.get(node.type, node.type))
