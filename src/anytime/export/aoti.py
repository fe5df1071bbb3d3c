"""The graph of a step as a library, compiled by AOTInductor."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from anytime.export.capture import CapturedStep, own_graph, quiet
from anytime.runtime.engines.aoti import made_for
from anytime.runtime.engines.manifest import GraphValue, Origin
from anytime.support.text import one_line

SUFFIX = ".pt2"


def require_engine() -> None:
    """Raises ImportError, in one sentence, unless there is a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # of several kinds
        raise ImportError("the engine 'aoti' needs a C++ compiler: install g++, or name one in the variable CXX") from error


def convert(step: CapturedStep, name: str) -> tuple[bytes, list[GraphValue], list[Origin], list[GraphValue]]:
    """A library, its inputs and where they come from, and its outputs.

    The library takes the layout of tensors for granted: it is compiled for contiguous ones, and gets only those.

    Args:
        step: The captured step.
        name: What to call it in errors.

    Raises:
        ValueError: AOTInductor cannot compile it.
    """
    from torch._inductor import config
    from torch._inductor.utils import fresh_inductor_cache  # torch's own cache is a folder whose name others can take first

    settings = {"cpp.dynamic_threads": True, "freezing": True, "aot_inductor.metadata": made_for()}
    if hasattr(config.aot_inductor, "precompile_headers"):  # which lie there even so
        settings["aot_inductor.precompile_headers"] = False
    try:
        with torch.no_grad(), quiet(), TemporaryDirectory() as place, fresh_inductor_cache(dir=place):
            graph = own_graph(step)
            package = str(Path(place, f"step{SUFFIX}"))
            torch._inductor.aoti_compile_and_package(graph.program, package_path=package, inductor_configs=settings)
            data = Path(package).read_bytes()
    except Exception as error:  # of several layers of the compiler
        raise ValueError(f"{name} cannot be compiled by AOTInductor: {one_line(error)[:300]}") from error
    return data, graph.inputs, graph.sources, graph.outputs
