"""The steps of a model as graphs of tensors: what each takes and makes, and where it comes from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from anytime.model import AnytimeModel, State
from anytime.runtime.engines.manifest import ANSWER, BATCH, IMAGES, GraphValue, Origin
from anytime.support.text import one_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class CapturedStep:
    """One step as a graph.

    Attributes:
        program: Takes one tensor for each source and makes the outputs.
        sources: Where each input comes from; some may be unused.
        used: Whether the graph uses each of them.
        outputs: Names of the outputs, "answer" first.
    """

    program: ExportedProgram
    sources: tuple[Origin, ...]
    used: tuple[bool, ...]
    outputs: tuple[str, ...]


class _Step(nn.Module):
    """A step as a function of tensors; what else the state holds (numbers, None, names) is constant."""

    def __init__(self, model: AnytimeModel, before: State, slots: Sequence[int | None], wanted: Sequence[int]) -> None:
        super().__init__()
        self.model, self._slots, self._wanted = model, slots, wanted
        self._leaves, self._form = pytree.tree_flatten(before)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [leaf if k is None else tensors[k] for leaf, k in zip(self._leaves, self._slots, strict=True)]
        return self._step(pytree.tree_unflatten(leaves, self._form))

    def _step(self, state: State) -> tuple[Tensor, ...]:
        answer, after = self.model.step(state)
        leaves = pytree.tree_leaves(after)
        return answer, *(leaves[i] for i in self._wanted)


class _FirstStep(_Step):
    """The first step, from the images."""

    def __init__(self, model: AnytimeModel, wanted: Sequence[int]) -> None:
        super().__init__(model, None, (None,), wanted)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._step(self.model.initial_state(tensors[0]))


class _All(nn.Module):
    """All steps as one function of the images, with all answers. Each step waits for the answer before it.

    To every number that a step takes, 0 is added, which is computed from the answer before it: an engine has to make that
    first, and no optimiser knows that it is 0.
    """

    def __init__(self, model: AnytimeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        state, answers = self.model.initial_state(images), list[Tensor]()
        for _ in range(self.model.num_steps):
            if answers:
                nothing = (answers[-1].flatten().amax(0) > math.inf) * 0.0
                state = pytree.tree_map(lambda leaf, n=nothing: leaf + n if _is_real(leaf) else leaf, state)
            answer, state = self.model.step(state)
            answers.append(answer)
        return tuple(answers)


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def capture_all(model: AnytimeModel, images: Tensor, dynamic: bool) -> CapturedStep:
    """All steps as one graph, from the images to all answers; arguments and errors are those of `capture`."""
    batch = torch.export.Dim(BATCH_DIM) if dynamic else None
    program = _exported(_All(model).eval(), [images], batch, "the graph of all steps")
    names = tuple(f"{ANSWER}_{t}" for t in range(1, model.num_steps + 1))
    return CapturedStep(program, (Origin(0),), (True,), names)


def capture(model: AnytimeModel, images: Tensor, dynamic: bool) -> Iterator[CapturedStep]:
    """The steps of a model as graphs, the last one first, because what a step has to make is what later ones use.

    A tensor that a step leaves as it is, under whatever name in the state, comes from where it was made. Tensors that no later
    step uses are not made. Everything in the state besides tensors is a constant of the step.

    Args:
        model: In eval mode, on the CPU.
        images: An example, at least two images if the batch is dynamic.
        dynamic: Whether the graphs take any batch size.

    Raises:
        ValueError: A step cannot be captured.
    """
    states, sources = _followed(model, images)
    batch = torch.export.Dim(BATCH_DIM) if dynamic else None
    needed: set[Origin] = set()
    for t in range(model.num_steps, 0, -1):
        made = {source.output for source in needed if source.step == t and source.output != ANSWER}
        wanted = sorted((int(name.removeprefix("state_")), name) for name in made)
        step: _Step
        own: tuple[Origin, ...]
        if t == 1:
            step, given, own = _FirstStep(model, [i for i, _ in wanted]), [images], (Origin(0),)
        else:
            leaves = pytree.tree_leaves(states[t - 1])
            tensors = {sources[t - 1][i]: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
            given, own = [*tensors.values()], tuple(tensors)
            slots = [own.index(sources[t - 1][i]) if isinstance(leaf, Tensor) else None for i, leaf in enumerate(leaves)]
            step = _Step(model, states[t - 1], slots, [i for i, _ in wanted])
        program = _exported(step.eval(), given, batch, f"step {t}")
        _size_of_one(program)
        program.graph.eliminate_dead_code()  # what made tensors that nobody reads
        users = {node.name: len(node.users) for node in program.graph.nodes if node.op == "placeholder"}
        used = tuple(users[name] > 0 for name in program.graph_signature.user_inputs if isinstance(name, str))
        needed = {s for s in needed if s.step < t} | {s for s, there in zip(own, used, strict=True) if there and s.step}
        yield CapturedStep(program, own, used, (ANSWER, *(name for _, name in wanted)))


BATCH_DIM = "batch"


def _size_of_one(program: ExportedProgram) -> None:
    """Takes the batch size from one input that is read anyway, so that none is needed for its size only."""
    graph, size = program.graph, torch.ops.aten.sym_size.int
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node.name in program.graph_signature.user_inputs]
    read = [node for node in inputs if any(user.target is not size for user in node.users)]
    others = [user for node in inputs for user in node.users if user.target is size and user.args[1] == 0]
    if not (read and others):
        return
    with graph.inserting_after(inputs[-1]):
        one = graph.call_function(size, (read[0], 0))
    one.meta["val"] = others[0].meta["val"]
    for node in others:
        node.replace_all_uses_with(one)


def _followed(model: AnytimeModel, images: Tensor) -> tuple[list[State], list[dict[int, Origin]]]:
    """The states after 0..T steps, and where each of their tensors was first made, by its place among the leaves."""
    with torch.no_grad():
        states, answers = [model.initial_state(images)], []
        for _ in range(model.num_steps):
            answer, state = model.step(states[-1])
            answers.append(answer)
            states.append(state)
    known = {_identity(images): Origin(0)}
    found: list[dict[int, Origin]] = [{}]
    for t, (answer, state) in enumerate(zip(answers, states[1:], strict=True), 1):
        known.setdefault(_identity(answer), Origin(t, ANSWER))
        leaves = {i: leaf for i, leaf in enumerate(pytree.tree_leaves(state)) if isinstance(leaf, Tensor)}
        found.append({i: known.setdefault(_identity(leaf), Origin(t, f"state_{i}")) for i, leaf in leaves.items()})
    return states, found


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two live tensors that are the same values in memory, because a step changes none that exists."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _exported(step: nn.Module, given: Sequence[Tensor], batch: Any, name: str) -> ExportedProgram:
    shapes = None if batch is None else (tuple({0: batch} for _ in given),)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(step, tuple(given), dynamic_shapes=shapes, strict=False)
            pool = torch.ops.aten.adaptive_max_pool2d.default
            users = [user for node in program.graph.nodes if node.target is pool for user in node.users]
            if users and not any(user.args[1:] == (1,) and user.users for user in users):  # nobody reads the places
                return program.run_decompositions({pool: _adaptive_max_pool})
            return program
    except Exception as error:  # whatever a step does that cannot be captured
        if "specialized it to be a constant" in str(error):
            raise ValueError(
                f"{name} works for only one batch size as a graph, as len(x) does instead of x.shape[0]: export with batch=1"
            ) from error
        raise ValueError(f"{name} cannot be captured as a graph: {one_line(error)}") from error


def _adaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`adaptive_max_pool2d` by operators that every engine has; the places, which nobody reads, are zero.

    Of n values along an axis of size s, value i is the largest of those from floor(i s / n) to below ceil((i + 1) s / n).
    """
    for axis, n in zip((-2, -1), output_size, strict=True):
        size = x.shape[axis]
        bins = [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
        x = torch.cat([x.narrow(axis, a, b - a).amax(axis, keepdim=True) for a, b in bins], axis)
    return x, torch.zeros_like(x, dtype=torch.int64)


_TALKATIVE = (
    "torch.onnx",
    "torch.export",
    "torch._inductor",
    "torchao",
    "executorch",
    "torch.utils.cpp_extension",
    "onnxscript",
    "onnx_ir",
)


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


class OwnGraph(NamedTuple):
    """A step for an engine that takes programs of torch.

    Attributes:
        program: Takes the tensors that the step uses, contiguous, and makes its outputs.
        example: Such tensors.
        inputs: Their names, shapes and types.
        sources: Where they come from.
        outputs: Names, shapes and types of what it makes.
    """

    program: ExportedProgram
    example: tuple[Tensor, ...]
    inputs: list[GraphValue]
    sources: list[Origin]
    outputs: list[GraphValue]


def own_graph(step: CapturedStep) -> OwnGraph:
    """A captured step without the inputs that it does not use."""
    assert step.program.example_inputs is not None
    given: Sequence[Tensor] = step.program.example_inputs[0]
    named = [*zip(names_of(step.sources), given, step.sources, step.used, strict=True)]
    example = tuple(tensor.contiguous() for _, tensor, _, used in named if used)
    dynamic = bool(step.program.range_constraints)
    shapes = (tuple({0: torch.export.Dim(BATCH_DIM)} for _ in example),) if dynamic else None
    with torch.no_grad(), quiet():
        program = torch.export.export(_Used(step, given), example, dynamic_shapes=shapes, strict=False)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    made = [values[output] for output in program.graph_signature.user_outputs if isinstance(output, str)]
    inputs = [_graph_value(name, tensor, dynamic) for name, tensor, _, used in named if used]
    outputs = [_graph_value(output, tensor, dynamic) for output, tensor in zip(step.outputs, made, strict=True)]
    return OwnGraph(program, example, inputs, [source for _, _, source, used in named if used], outputs)


def _graph_value(name: str, tensor: Tensor, dynamic: bool) -> GraphValue:
    first: int | str = BATCH if dynamic else int(tensor.shape[0])
    return GraphValue(name, (first, *map(int, tensor.shape[1:])), str(tensor.dtype).removeprefix("torch."))


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what torch's exporters warn and log about themselves."""
    import logging

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def names_of(sources: Iterable[Origin]) -> list[str]:
    """A name for each input of a graph: "images", or by its place."""
    return [IMAGES if not source.step else f"input_{i}" for i, source in enumerate(sources)]
