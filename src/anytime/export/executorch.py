"""The graph of a step as a program of ExecuTorch, computed by XNNPACK where that has the operators."""

from __future__ import annotations

import torch

from anytime.export.capture import CapturedStep, own_graph, quiet
from anytime.runtime.engines.executorch import require_engine
from anytime.runtime.engines.manifest import GraphValue, Origin
from anytime.support.text import one_line

SUFFIX = ".pte"
__all__ = ["SUFFIX", "convert", "require_engine"]


def convert(step: CapturedStep, name: str) -> tuple[bytes, list[GraphValue], list[Origin], list[GraphValue]]:
    """A program, its inputs and where they come from, and its outputs.

    Args:
        step: The captured step, of one batch size.
        name: What to call it in errors.

    Raises:
        ValueError: The batch is dynamic, or ExecuTorch has no counterpart of an operator.
    """
    if step.program.range_constraints:
        raise ValueError("the engine 'executorch' plans its memory for one batch size: export with batch=1")
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.exir.passes.constant_prop_pass import constant_prop_pass

        try:
            graph = own_graph(step)
            with torch.no_grad():
                program = constant_prop_pass(graph.program.run_decompositions({}))
                for constants in (program.state_dict, program.constants):
                    constants.update({name: _whole(value) for name, value in constants.items() if _is_part(value)})
                lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
                data = bytes(lowered.to_executorch().buffer)
        except Exception as error:  # of several layers of the exporter
            raise ValueError(f"{name} cannot be exported to ExecuTorch: {one_line(error)[:300]}") from error
    return data, graph.inputs, graph.sources, graph.outputs


def _is_part(value: object) -> bool:
    """Whether a tensor is a part of another's memory: ExecuTorch 1.5 would write what that memory begins with."""
    if not isinstance(value, torch.Tensor):
        return False
    return bool(value.storage_offset()) or value.untyped_storage().nbytes() != value.numel() * value.element_size()


def _whole(value: torch.Tensor) -> torch.Tensor:
    """The same values in memory of their own."""
    copy = value.detach().clone()
    return torch.nn.Parameter(copy, value.requires_grad) if isinstance(value, torch.nn.Parameter) else copy
