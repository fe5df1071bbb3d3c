"""OpenVINO: the graph of a step in ONNX's format, compiled for this CPU, in a precision that is pinned."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from anytime.runtime.engines.base import Cancelled, StepMeasurement
from anytime.runtime.engines.graph_check import Allowance
from anytime.runtime.engines.manifest import GraphValue, StepFile
from anytime.runtime.engines.step_file import INSTALL, check_values, checked_file
from anytime.runtime.forks import keep, renew_after_fork
from anytime.support.text import one_line

_WARMUP = 3
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # int8: what the graph does not say to be of 8 bits
_KINDS = {
    **{"f32": "float32", "f64": "float64", "f16": "float16", "i64": "int64", "i32": "int32"},
    **{"i8": "int8", "u8": "uint8", "boolean": "bool"},
}


def engine_version() -> str:
    """Name and version of the engine; raises ImportError, in one sentence, if it is not installed."""
    return f"openvino {_openvino().__version__.partition('-')[0]}"


def _openvino() -> Any:
    try:
        import onnx  # noqa: F401, reads what a graph holds before it is loaded
        import openvino
    except ImportError as error:
        raise ImportError(f"the engine 'openvino' needs {error.name or 'openvino'}: {INSTALL}") from error
    return openvino


class _Inference:
    """The request that computes in one call, so that another thread can cancel it."""

    def __init__(self) -> None:
        self.cancelled = False
        self.request: Any = None
        self.lock = threading.Lock()


class OpenvinoGraph:
    """The graph of one step in OpenVINO, on the CPU; any number of threads may run it.

    Only what was checked of the file is read (see `graph_check`). OpenVINO itself would choose the precision by the processor,
    such as bfloat16 with AMX: here it is that of the manifest. In a forked process it computes with one thread.

    Args:
        directory: The exported folder.
        step: The step, as the manifest has it.
        threads: Threads to compute with.
        allowance: What the graphs of the export may take together; this one takes its share.
        uses: Steps that compute this graph.
        precision: What it computes in, "float32", "bfloat16" or "int8".

    Raises:
        ImportError: OpenVINO is not installed.
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged, not what the manifest says, or needs more work or memory than that explains; or this
            processor does not compute in that precision.
    """

    cancels = True

    def __init__(
        self, directory: Path, step: StepFile, threads: int, allowance: Allowance, uses: int = 1, precision: str = "float32"
    ) -> None:
        self._path, self._step, self._threads, self._precision = directory / step.file, step, threads, precision
        self._explained = allowance.macs, allowance.values
        self._names = [value.name for value in step.inputs]
        self._outputs = [value.name for value in step.outputs]
        self._compiled = self._loaded(allowance, uses)
        self._free: list[Any] = []  # requests that compute nothing now
        renew_after_fork(self)

    def _loaded(self, allowance: Allowance, uses: int = 1, notes: bool = False) -> Any:
        """The graph, compiled; with `notes` each run says how long its operators took.

        A thread of its own does it: the thread that makes a `Core` loses its treatment of denormal numbers, and on Linux its
        stack for signal handlers. OpenVINO frees the new one in the end, and the next signal crashes.
        """
        openvino, hint = _openvino(), _HINTS[self._precision]
        data = checked_file(self._path, self._step, allowance, uses)
        wanted = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": self._threads, "NUM_STREAMS": 1}
        wanted |= {"ENABLE_CPU_PINNING": False, "CPU_DENORMALS_OPTIMIZATION": True, "PERF_COUNT": notes}

        def made() -> Any:
            core = openvino.Core()
            return core.compile_model(core.read_model(data), "CPU", wanted)

        try:
            with ThreadPoolExecutor(1) as thread:
                compiled = thread.submit(made).result()
        except Exception as error:  # of the engine's own kinds
            raise ValueError(f"{self._path} cannot be loaded by OpenVINO: {one_line(error)}") from error
        if (taken := compiled.get_property("INFERENCE_PRECISION_HINT").to_string()) != hint:
            raise ValueError(f"{self._path} is of {self._precision}, and OpenVINO computes in {taken} on this processor")
        inputs = [_value(name, compiled.input(name)) for name in self._names if _has(compiled.inputs, name)]
        outputs = [_value(name, compiled.output(name)) for name in self._outputs if _has(compiled.outputs, name)]
        check_values(self._path, self._step, inputs, outputs)
        return compiled

    def call(self) -> Any:
        """What identifies one call of `run`."""
        return _Inference()

    def run(self, inputs: Sequence[Tensor], call: Any = None) -> list[Tensor]:
        """The outputs, from the inputs in their order in the manifest.

        Raises:
            Cancelled: `cancel` was called with this call, in any thread, before or meanwhile.
        """
        if self._compiled is None:
            self._compiled = self._loaded(Allowance(*self._explained))
        try:
            request = self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        given, ended = self._given(inputs), False
        try:
            if call is None:
                request.start_async(given, share_inputs=True)
            else:
                with call.lock:
                    if call.cancelled:
                        ended = True
                        raise Cancelled(f"a run of {self._path.name} was cancelled")
                    call.request = request
                    request.start_async(given, share_inputs=True)
            request.wait()
            outputs = [torch.from_numpy(request.get_tensor(name).data.copy()) for name in self._outputs]
            ended = True
        except RuntimeError as error:
            own = "Infer Request was canceled" in str(error)  # a signal's handler may raise others
            if not own or call is None or not call.cancelled:
                raise
            ended = True
            raise Cancelled(f"a run of {self._path.name} was cancelled") from error
        finally:
            if call is not None:
                with call.lock:
                    call.request = None
            if ended:  # after any other error, such as KeyboardInterrupt, it may still compute, so nobody can have it next
                self._free.append(request)
        return outputs

    def _given(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        return dict(zip(self._names, [tensor.detach().contiguous().numpy() for tensor in inputs], strict=True))

    def cancel(self, call: Any) -> None:
        """Ends a call within one operator, and every later `run` with it."""
        with call.lock:
            call.cancelled = True
            if call.request is not None:
                call.request.cancel()

    def measure(self, inputs: Sequence[Tensor], repeats: int) -> StepMeasurement:
        """How long the operators take in `repeats` runs, in a copy, which notes it; OpenVINO does not say its memory.

        Of the runs, those before (`_WARMUP`) count neither. An operator is a node of OpenVINO's compiled graph.
        """
        given, seconds = self._given(inputs), dict[str, list[float]]()
        request = self._loaded(Allowance(*self._explained), notes=True).create_infer_request()
        for _ in range(_WARMUP + repeats):
            request.start_async(given, share_inputs=True)
            request.wait()
            for node in request.profiling_info:
                seconds.setdefault(node.node_name, []).append(node.real_time.total_seconds())
        longest = max((times[_WARMUP:] for times in seconds.values()), key=median, default=[])
        return StepMeasurement(longest or [0.0] * repeats, 0)

    def renew(self) -> None:
        """In a forked process: its threads do not exist here."""
        keep(self._compiled, *self._free)
        self._compiled, self._threads, self._free = None, 1, []

    def __deepcopy__(self, memo: Any) -> OpenvinoGraph:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenvinoGraph, (self._path.parent, self._step, self._threads, Allowance(*self._explained), 1, self._precision)


def _has(nodes: Sequence[Any], name: str) -> bool:
    return any(name in node.names for node in nodes)


def _value(name: str, node: Any) -> GraphValue:
    sizes = tuple(
        size.get_length() if size.is_static else "batch" if i == 0 else "?" for i, size in enumerate(node.partial_shape)
    )
    kind = node.element_type.to_string()
    return GraphValue(name, sizes, _KINDS.get(kind, kind))
