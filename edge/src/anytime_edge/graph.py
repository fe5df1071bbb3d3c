"""The graph of one step in ONNX Runtime, loaded only after a look at what the file holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import onnxruntime

MOST_NODES, MOST_BYTES = 20_000, 2**31 - 1
WORKERS = 16  # computations at a time
_PARTS = {
    "file": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor"},
}
_FOREIGN = {
    "file": {20: "a training", 25: "operators of its own"},
    "graph": {15: "sparse constants"},
    "attribute": {
        6: "a graph within an operator",
        11: "graphs within an operator",
        22: "sparse constants",
        23: "sparse constants",
    },
    "tensor": {13: "constants in another file"},
}
_DOMAIN, _LOCATION = 7, 14  # of a node, of a tensor


class Cancelled(RuntimeError):
    """A step was cancelled."""


def check_graph(data: bytes, source: str) -> None:
    """Raises ValueError unless an ONNX file holds all that it needs, and only plain operators of ONNX itself.

    No library is asked before: the fields of the file are walked here, and constants are passed over.
    """
    nodes = 0
    pending: list[tuple[str, memoryview]] = [("file", memoryview(data))]
    while pending:
        kind, part = pending.pop()
        for field, value in _fields(part, source):
            if what := _FOREIGN.get(kind, {}).get(field):
                raise ValueError(f"{source} holds {what}, which no export has")
            if kind == "tensor" and field == _LOCATION and value != 0:
                raise ValueError(f"{source} keeps a constant in another file; an export holds all in its own")
            if kind == "node" and field == _DOMAIN and value not in (b"", b"ai.onnx"):
                raise ValueError(f"{source} uses an operator of {bytes(value)!r}, which is none of ONNX's own")
            if inner := _PARTS.get(kind, {}).get(field):
                if not isinstance(value, memoryview):
                    raise ValueError(f"{source} is damaged: it is no ONNX file")
                pending.append((inner, value))
                nodes += inner == "node"
    if not 0 < nodes <= MOST_NODES:
        raise ValueError(f"{source} has {nodes:,} operators, not 1 to {MOST_NODES:,}")


def _fields(part: memoryview, source: str) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message of protobuf: bytes, or a whole number; 0 for numbers of fixed size."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte, place = part[place], place + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128 and value < 2**64:
                return value
            if shift > 63:
                raise IndexError

    try:
        while place < len(part):
            key = number()
            if key >= 2**32:  # which other readers cut
                raise IndexError
            field, form = key >> 3, key & 7
            value: Any = 0
            if form == 2:
                size = number()
                value, place = part[place : place + size], place + size
            elif form in (1, 5):
                place += 8 if form == 1 else 4
            elif form == 0:
                value = number()
            if form not in (0, 1, 2, 5) or place > len(part):
                raise IndexError
            yield field, value
    except IndexError:
        raise ValueError(f"{source} is damaged: it is no ONNX file") from None


class Graph:
    """The graph of a step; any number of threads may run it.

    Args:
        path: The file.
        sha256: What its digest must be.
        inputs: Names and shapes.
        outputs: Names and shapes.
        threads: Threads to compute with.

    Raises:
        ValueError: The file is missing, a link, damaged, or not what the manifest says.
    """

    def __init__(self, path: Path, sha256: str, inputs: Mapping, outputs: Mapping, threads: int) -> None:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} is missing, a link, or larger than {MOST_BYTES:,} bytes")
        data = path.read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()) != sha256:
            raise ValueError(f"{path} is damaged: SHA-256 is {digest[:12]}..., the manifest says {sha256[:12]}...")
        check_graph(data, str(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        for name, value in (("load_model_format", "ONNX"), ("set_denormal_as_zero", "1"), ("force_spinning_stop", "1")):
            options.add_session_config_entry(f"session.{name}", value)
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of the engine's own kinds
            raise ValueError(f"{path} cannot be loaded by ONNX Runtime: {' '.join(str(error).split())[:300]}") from error
        for values, nodes in ((inputs, self._session.get_inputs()), (outputs, self._session.get_outputs())):
            if values != (found := {node.name: tuple(node.shape) for node in nodes}):
                raise ValueError(f"{path} has the inputs or outputs {found}, which are not those of the manifest")
        self._inputs, self._outputs = [*inputs], [*outputs]
        self.call = onnxruntime.RunOptions

    def run(self, inputs: Sequence[np.ndarray], call: Any = None) -> list[np.ndarray]:
        """The outputs, from the inputs in the order of the manifest; raises Cancelled if `call` was cancelled."""
        try:
            return self._session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True)), call)
        except Exception as error:  # of the engine's own kinds
            if call is not None and call.terminate:
                raise Cancelled("a step was cancelled") from error
            raise


_pool: list[ThreadPoolExecutor] = []


def in_pool(make: Any) -> tuple[Any, ThreadPoolExecutor]:
    """The result of `make()`, and the threads that compute, started once.

    ONNX Runtime treats denormal numbers as zero in the first thread that loads a graph, and threads that it starts inherit
    this. So that thread is one of ours, and so are its children: the caller's numbers stay as they are.
    """
    done: list[Any] = []

    def first() -> None:
        try:
            done.append(make())
        except BaseException as error:
            done.append(error)
        if not _pool:
            pool, all_there = ThreadPoolExecutor(WORKERS, thread_name_prefix="anytime-edge"), Barrier(WORKERS)
            wait([pool.submit(all_there.wait) for _ in range(WORKERS)])
            _pool.append(pool)

    thread = Thread(target=first)
    thread.start()
    thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0], _pool[0]
