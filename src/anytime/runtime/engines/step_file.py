"""The file of one step: read, compared with the manifest and checked, before an engine sees it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from anytime.runtime.engines.graph_check import MOST_BYTES, Allowance, checked_graph
from anytime.runtime.engines.manifest import GraphValue, StepFile
from anytime.support.folders import check_file

INSTALL = "pip install 'anytime-nets[engines]'"


def checked_file(path: Path, step: StepFile, allowance: Allowance, uses: int) -> bytes:
    """The ONNX graph of a step, written anew from what was checked.

    Args:
        path: The file.
        step: What the manifest says about it.
        allowance: What the graphs of the export may take together; this one takes its share.
        uses: Steps that compute it.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged, or needs more work or memory than the manifest explains.
    """
    return checked_graph(read_file(path, step), str(path), allowance, uses)


def read_file(path: Path, step: StepFile) -> bytes:
    """What the file of a step holds; FileNotFoundError if it is missing, ValueError if it is not what the manifest says."""
    check_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"the export lacks the file {path}")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, more than the {MOST_BYTES:,} of one step")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != step.sha256:
        raise ValueError(f"{path} is damaged: SHA-256 is {digest[:12]}..., the manifest says {step.sha256[:12]}...")
    return data


def check_values(path: Path, step: StepFile, inputs: Sequence[GraphValue], outputs: Sequence[GraphValue]) -> None:
    """Raises ValueError if the inputs or outputs of a loaded graph are not those of the manifest."""
    for values, found in zip((step.inputs, step.outputs), (inputs, outputs), strict=True):
        if list(values) != list(found):
            names = [value.to_dict() for value in found]
            raise ValueError(f"{path} has the inputs or outputs {names}, which are not those of the manifest")


@contextmanager
def own_denormals() -> Iterator[None]:
    """Keeps how the calling thread treats denormal numbers, which engines change for good when they load a graph."""
    flushed = sys.float_info.min * 0.5 == 0.0
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
