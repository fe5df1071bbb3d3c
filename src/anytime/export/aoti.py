"""The graph of a step as a library, compiled by AOTInductor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from anytime.export.capture import BATCH_DIM, CapturedStep, names_of, quiet
from anytime.runtime.engines.aoti import made_for
from anytime.runtime.engines.manifest import BATCH, GraphValue, Origin
from anytime.support.text import one_line

SUFFIX = ".pt2"


def require_engine() -> None:
    """Raises ImportError, in one sentence, unless there is a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # of several kinds
        raise ImportError("the engine 'aoti' needs a C++ compiler: install g++, or name one in the variable CXX") from error


class _Used(nn.Module):
    """A step as a function of those tensors that it uses."""

    def __init__(self, step: CapturedStep, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.step, self._used = step.program.module(), step.used
        self._sizes = [tensor.shape[1:] for tensor in given]

    def forward(self, *tensors: Tensor) -> Any:
        some, left = tensors[0], iter(tensors)
        pairs = zip(self._used, self._sizes, strict=True)
        return self.step(*[next(left) if there else some.new_zeros((some.shape[0], *size)) for there, size in pairs])


def convert(step: CapturedStep, name: str) -> tuple[bytes, list[GraphValue], list[Origin], list[GraphValue]]:
    """A library, its inputs and where they come from, and its outputs.

    The library takes the layout of tensors for granted: it is compiled for contiguous ones, and gets only those.

    Args:
        step: The captured step.
        name: What to call it in errors.

    Raises:
        ValueError: AOTInductor cannot compile it.
    """
    assert step.program.example_inputs is not None
    given: Sequence[Tensor] = step.program.example_inputs[0]
    named = [*zip(names_of(step.sources), given, step.sources, step.used, strict=True)]
    example = tuple(tensor.contiguous() for _, tensor, _, used in named if used)
    dynamic = bool(step.program.range_constraints)
    shapes = (tuple({0: torch.export.Dim(BATCH_DIM)} for _ in example),) if dynamic else None
    from torch._inductor import config
    from torch._inductor.utils import fresh_inductor_cache  # torch's own cache is a folder whose name others can take first

    settings = {"cpp.dynamic_threads": True, "freezing": True, "aot_inductor.metadata": made_for()}
    if hasattr(config.aot_inductor, "precompile_headers"):  # which lie there even so
        settings["aot_inductor.precompile_headers"] = False
    try:
        with torch.no_grad(), quiet(), TemporaryDirectory() as place, fresh_inductor_cache(dir=place):
            program = torch.export.export(_Used(step, given), example, dynamic_shapes=shapes, strict=False)
            package = str(Path(place, f"step{SUFFIX}"))
            torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=settings)
            data = Path(package).read_bytes()
    except Exception as error:  # of several layers of the compiler
        raise ValueError(f"{name} cannot be compiled by AOTInductor: {one_line(error)[:300]}") from error
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    made = [values[output] for output in program.graph_signature.user_outputs if isinstance(output, str)]
    inputs = [_value(given_name, tensor, dynamic) for given_name, tensor, _, used in named if used]
    outputs = [_value(output, tensor, dynamic) for output, tensor in zip(step.outputs, made, strict=True)]
    return data, inputs, [source for _, _, source, used in named if used], outputs


def _value(name: str, tensor: Tensor, dynamic: bool) -> GraphValue:
    first: int | str = BATCH if dynamic else int(tensor.shape[0])
    return GraphValue(name, (first, *map(int, tensor.shape[1:])), str(tensor.dtype).removeprefix("torch."))
