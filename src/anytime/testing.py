"""Proof of the contract: `check_anytime_model` for any anytime model, as scikit-learn has `check_estimator`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from anytime.cost import step_macs
from anytime.model import AnytimeModel, SplitStep, State, Trunk, create_model, map_state, select_samples

FLOAT32, FLOAT64 = 1e-4, 1e-10  # how far two exact schedules may differ, relative to the largest logit (at least 1)


def check_anytime_model(model: AnytimeModel, input_size: tuple[int, int, int], *, batch_size: int = 3) -> None:
    """Proves that a model keeps the contract of `AnytimeModel`, in one line of a test.

    The model itself is not changed. The checks run on copies in float64 whose parameters, running statistics and
    normalisation are slightly randomised, so that no zero or identity of the initialisation hides a mistake.

    Args:
        model: Any `AnytimeModel`, of this library or a user's.
        input_size: (channels, height, width) of the images to try.
        batch_size: Images per batch, at least 2.

    Raises:
        AssertionError: Part of the contract is broken; the message says which, and by how much.
        ValueError: batch_size is below 2.

    Example:
        >>> from anytime import create_model
        >>> check_anytime_model(create_model("anytimenet", width=4), (3, 8, 8))
    """
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2 to tell samples apart, got {batch_size!r}")
    if not isinstance(model, AnytimeModel):
        raise AssertionError(f"An anytime model is a subclass of anytime.AnytimeModel, got a {type(model).__name__}")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        x = torch.rand(batch_size, *input_size, dtype=torch.float64).to(device)
        probe = _randomise(copy.deepcopy(model)).double().eval()
        for check in _CHECKS:
            try:
                check(copy.deepcopy(probe), x.clone())
            except Exception as error:
                broken = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                raise AssertionError(f"{type(model).__name__}: {inspect.getdoc(check)} Broken: {broken}") from error


def _randomise(model: AnytimeModel) -> AnytimeModel:
    """The model itself, with noise on parameters, running statistics and normalisation; variances stay positive."""
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        last = name.rpartition(".")[2]
        if buffer.is_floating_point() and (last.startswith("running_") or last in ("mean", "std")):
            buffer.mul_(torch.rand_like(buffer) + 0.5).add_(0.1 * torch.rand_like(buffer))
    return model


def _require(kept: bool, broken: str) -> None:
    if not kept:
        raise AssertionError(broken)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value (at least 1); NaN where either is NaN."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def _require_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = FLOAT64) -> None:
    _require(actual.shape == expected.shape, f"{what}: shapes {list(actual.shape)} and {list(expected.shape)}.")
    difference = _difference(actual, expected)
    _require(difference <= tolerance, f"{what} differ by {difference:.1e} (relative), allowed is {tolerance:.0e}.")


def _same(first: Any, second: Any) -> bool:
    """Bit-equal pytrees."""
    leaves, spec = pytree.tree_flatten(first)
    others, other_spec = pytree.tree_flatten(second)
    return spec == other_spec and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or bool(a == b)
        for a, b in zip(leaves, others, strict=True)
    )


def _clone(value: Any) -> Any:
    return map_state(Tensor.clone, value)


def _streamed(model: AnytimeModel, x: Tensor) -> Tensor:
    return torch.stack(list(model.stream(x)))


def _run(model: AnytimeModel, state: State, steps: int) -> tuple[list[Tensor], State]:
    """The answers of the next steps, and the state after them."""
    answers = []
    for _ in range(steps):
        logits, state = model.step(state)
        answers.append(logits)
    return answers, state


def _check_description(model: AnytimeModel, x: Tensor) -> None:
    """num_steps, num_classes, levels, mean and std describe the model."""
    _require(isinstance(model.num_steps, int) and model.num_steps >= 1, f"num_steps is {model.num_steps!r}.")
    _require(sum(model.levels) == model.num_classes, f"levels {model.levels}, but num_classes is {model.num_classes}.")
    buffers = dict(model.named_buffers())
    for name in ("mean", "std"):
        _require(name in buffers, f"there is no buffer {name!r}.")
        shape = list(buffers[name].shape)
        _require(shape == [x.shape[1]], f"buffer {name!r} has shape {shape} for {x.shape[1]} channels.")


def _check_schedules(model: AnytimeModel, x: Tensor) -> None:
    """forward gives [T, B, K] and stream the same numbers one by one, in eval mode."""
    expected = [model.num_steps, len(x), model.num_classes]
    for dtype, tolerance in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
        model, x = model.to(dtype), x.to(dtype)
        logits, answers = model(x), list(model.stream(x))
        _require(list(logits.shape) == expected, f"forward gave {list(logits.shape)}, expected [T, B, K] = {expected}.")
        _require(len(answers) == model.num_steps, f"stream gave {len(answers)} answers, expected {model.num_steps}.")
        for t, answer in enumerate(answers):
            _require_close(answer, logits[t], f"stream and forward ({dtype}) at step {t + 1}", tolerance)


def _check_single_answers(model: AnytimeModel, x: Tensor) -> None:
    """forward(x, step=t) equals forward(x)[t - 1]; steps outside 1..T raise ValueError."""
    logits = model(x)
    for t in range(1, model.num_steps + 1):
        _require_close(model(x, step=t), logits[t - 1], f"forward(x, step={t}) and forward(x)[{t - 1}]")
    for t in (-1, 0, model.num_steps + 1):
        try:
            model(x, step=t)
        except ValueError:
            continue
        raise AssertionError(f"forward(x, step={t}) was accepted, with T = {model.num_steps}.")


def _check_costs(model: AnytimeModel, x: Tensor) -> None:
    """Every step costs additional MACs, and a single answer costs no more than the stream up to it."""
    channels, height, width = x.shape[1:]
    stream = step_macs(model, (channels, height, width))
    single = step_macs(model, (channels, height, width), contract=True)
    for t, (before, after) in enumerate(zip([0, *stream], stream, strict=False), 1):
        _require(after > before, f"step {t} adds {after - before} MACs; cumulative MACs are {stream}.")
    for t, (one, many) in enumerate(zip(single, stream, strict=True), 1):
        _require(one <= many, f"only answer {t} costs {one} MACs, the stream up to it {many}.")


def _check_no_recomputation(model: AnytimeModel, x: Tensor) -> None:
    """A step never runs a module with parameters again on an input that has not changed."""
    # An all-zero input proves nothing: in a narrow network all ReLUs of a layer may be off at two steps.
    names = {module: name for name, module in model.named_modules()}
    seen: dict[nn.Module, list[tuple[int, Any]]] = {}
    now = 0

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for then, inputs in seen.setdefault(module, []):
            again = _same(inputs, (args, kwargs)) and any(bool(x.any()) for x in args if isinstance(x, Tensor))
            _require(not again, f"step {now} ran {names[module]!r} again on its input of step {then}.")
        seen[module].append((now, _clone((args, kwargs))))

    for module in names:
        if module is not model and next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(hook, with_kwargs=True)
    state = model.initial_state(x[:1])
    for now in range(1, model.num_steps + 1):  # noqa: B007, the hook reads it
        _, state = model.step(state)


def _check_samples(model: AnytimeModel, x: Tensor) -> None:
    """In eval mode a sample's answers do not depend on the other samples of its batch."""
    logits = model(x)
    for i in range(len(x)):
        _require_close(model(x[i : i + 1]), logits[:, i : i + 1], f"answers to sample {i} by itself and in a batch")


def _check_state(model: AnytimeModel, x: Tensor) -> None:
    """State is a value: a pytree of numbers and of tensors with the batch in dimension 0; a step does not change it."""
    images, state = x.clone(), model.initial_state(x)
    states, answers = [state], []
    kept_states, kept_answers = [_clone(state)], []
    for t in range(model.num_steps):
        for path, leaf in pytree.tree_flatten_with_path(state)[0]:
            where = f"state{pytree.keystr(path)} after step {t}"
            if isinstance(leaf, Tensor):
                _require(leaf.shape[:1] == x.shape[:1], f"{where} is {list(leaf.shape)} for a batch of {len(x)}.")
            else:
                plain = leaf is None or isinstance(leaf, int | float)
                _require(plain, f"{where} is a {type(leaf).__name__}, neither a tensor nor a number.")
        again = model.step(_clone(kept_states[t]))[0].clone()
        logits, state = model.step(states[t])
        _require(_same(states[t], kept_states[t]), f"step {t + 1} modified the state it was given.")
        _require_close(again, logits, f"two calls of step {t + 1} on one state")
        states.append(state)
        answers.append(logits)
        kept_states.append(_clone(state))
        kept_answers.append(logits.clone())
    _require(_same(states, kept_states), "a later step modified an earlier state.")
    _require(_same(answers, kept_answers), "a later step modified an earlier answer.")
    _require(torch.equal(x, images), "the images were modified.")


def _check_sessions(model: AnytimeModel, x: Tensor) -> None:
    """Live sessions do not disturb each other, neither interleaved nor from several threads."""
    batches = [x, 1 - x[1:]]
    separate = [_streamed(model, batch) for batch in batches]
    pairs = zip(*(model.stream(batch) for batch in batches), strict=True)
    for together, expected in zip(zip(*pairs, strict=True), separate, strict=True):
        _require_close(torch.stack(together), expected, "answers of two interleaved sessions and of each by itself")

    def session(batch: Tensor) -> Tensor:
        with torch.no_grad():  # thread-local
            return _streamed(model, batch)

    with ThreadPoolExecutor(len(batches)) as pool:
        for concurrent, expected in zip(pool.map(session, batches), separate, strict=True):
            _require_close(concurrent, expected, "answers of sessions in two threads and of each by itself")


def _check_compaction(model: AnytimeModel, x: Tensor) -> None:
    """Samples may leave the batch in mid-stream: the remaining ones get exactly the answers of the full batch."""
    logits = _streamed(model, x)
    mask = torch.ones(len(x), dtype=torch.bool, device=x.device)
    mask[1] = False
    backwards = torch.arange(len(x) - 1, 0, -1, device=x.device)
    for done in sorted({0, model.num_steps // 2}):
        _, state = _run(model, model.initial_state(x), done)
        for index in (mask, backwards):
            rest, _ = _run(model, select_samples(state, index), model.num_steps - done)
            what = f"answers to samples selected after step {done} and to all"
            _require_close(torch.stack(rest), logits[done:, index], what)


def _check_gradients(model: AnytimeModel, x: Tensor) -> None:
    """Gradients of the sum over all answers reach every parameter in train mode."""
    model.train()
    with torch.enable_grad():
        logits = model(x)
        (logits * torch.randn_like(logits)).sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    dead = [name for name, grad in trained.items() if grad is None or not grad.any()]
    _require(not dead, f"{len(dead)} of {len(trained)} parameters get none: {', '.join(dead[:5])}.")
    wild = [name for name, grad in trained.items() if grad is not None and not grad.isfinite().all()]
    _require(not wild, f"{len(wild)} of {len(trained)} gradients are not finite: {', '.join(wild[:5])}.")


def _check_state_dict(model: AnytimeModel, x: Tensor) -> None:
    """The state dict holds everything the answers depend on: loaded into a new model, it gives the same answers."""
    logits = model(x)
    if model.config:
        fresh = create_model(model.config["model"], **model.config["arguments"]).to(x)
    else:
        fresh = _randomise(copy.deepcopy(model))
    fresh.load_state_dict(model.state_dict())
    _require_close(fresh.eval()(x), logits, "answers before and after the round trip")


def _check_dtypes(model: AnytimeModel, x: Tensor) -> None:
    """The model runs in the dtype it is moved to, with finite answers."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for answer in (*model.to(dtype).stream(x.to(dtype)), model(x.to(dtype))):
            _require(answer.dtype == dtype, f"in {dtype} it answered in {answer.dtype}.")
            wild = int((~answer.isfinite()).sum())
            _require(wild == 0, f"in {dtype} {wild} of {answer.numel()} logits are infinite or NaN.")


def _check_devices(model: AnytimeModel, x: Tensor) -> None:
    """The model gives the same answers on every device it is moved to."""
    logits = model(x)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        moved = x.to(device)
        answers = _streamed(model.to(device), moved)
        _require(answers.device.type == device, f"moved to {device} it answered on {answers.device}.")
        _require_close(answers.to(x.device), logits, f"answers on {device} and on {x.device}")


def _check_determinism(model: AnytimeModel, x: Tensor) -> None:
    """In eval mode the same images get the same answers."""
    _require_close(model(x), model(x), "two calls")


def _check_refusals(model: AnytimeModel, x: Tensor) -> None:
    """Wrong inputs raise ValueError or TypeError (`check_input` in `initial_state` does so)."""
    wrong = {
        f"{x.shape[1] + 1} channels instead of {x.shape[1]}": x[:, [*range(x.shape[1]), 0]],
        "3 dimensions": x[0],
        "integers": (255 * x).to(torch.uint8),
        "an empty batch": x[:0],
    }
    calls: dict[str, Callable[[Tensor], Any]] = {
        "forward(x)": model,
        "forward(x, step=1)": lambda images: model(images, step=1),
        "stream(x)": lambda images: _streamed(model, images),
    }
    for what, images in wrong.items():
        for name, call in calls.items():
            try:
                call(images)
            except (ValueError, TypeError):
                continue
            except Exception as error:
                raise AssertionError(f"{name} with {what} raised {type(error).__name__}: {error}") from error
            raise AssertionError(f"{name} accepted {what}.")


def _check_normalization(model: AnytimeModel, x: Tensor) -> None:
    """The buffers mean and std normalise the images (`normalize` in `initial_state` does so)."""
    for name, value in (("mean", model.mean + 0.1), ("std", model.std * 1.5)):
        changed = copy.deepcopy(model)
        changed.get_buffer(name).copy_(value)
        _require(not torch.equal(changed(x), model(x)), f"forward gives the same answers whatever {name!r} is.")
        same = torch.equal(_streamed(changed, x), _streamed(model, x))
        _require(not same, f"stream gives the same answers whatever {name!r} is.")


def _check_modes(model: AnytimeModel, x: Tensor) -> None:
    """A run leaves the train and eval modes of all modules, and in eval mode all buffers, as they were."""
    for training in (True, False):
        model.train(training)
        modes = [module.training for module in model.modules()]
        before = _clone(dict(model.named_buffers()))
        for name, call in (("forward", model), ("stream", lambda images: _streamed(model, images))):
            call(x)
            _require(modes == [m.training for m in model.modules()], f"{name} changed the mode of a module.")
            for buffer, value in model.named_buffers() if not training else ():
                _require(_same(value, before[buffer]), f"{name} in eval mode changed the buffer {buffer!r}.")


def _check_optional_members(model: AnytimeModel, x: Tensor) -> None:
    """Optional members keep what they promise: head_names, settled arguments, the halves of a step, features of a trunk."""
    parts = dict(model.named_modules())
    for name in model.head_names or ():
        _require(name in parts, f"head_names holds {name!r}, which is not a submodule.")
    unknown = model.measured_arguments.keys() - model.settled_arguments.keys()
    _require(not unknown, f"measured_arguments holds {min(unknown, default='')!r}, which settled_arguments lacks.")
    if model.config:
        unknown = model.settled_arguments.keys() - model.config["arguments"].keys()
        _require(not unknown, f"settled_arguments holds {min(unknown, default='')!r}, which is not an argument of the model.")
    if isinstance(model, SplitStep):
        state = unread = model.initial_state(x)
        for t in range(1, model.num_steps + 1):
            logits, after = model.step(state)
            _require_close(model.read(model.advance(state)), logits, f"read(advance(state)) and the answer of step {t}")
            state, unread = after, model.advance(unread)
        _require_close(model.read(unread), logits, "the last answer after unread steps and after read ones")
    if isinstance(model, Trunk) and model.keeps_features:
        features = model.trunk_features(x)
        _require(all(h.shape[:1] == x.shape[:1] for h in features), "trunk_features lack the batch in dimension 0.")
        _require_close(model.head_answers(features), model(x), "head_answers(trunk_features(x)) and forward(x)")


_CHECKS: tuple[Callable[[AnytimeModel, Tensor], None], ...] = (
    _check_description,
    _check_refusals,
    _check_determinism,
    _check_state,
    _check_sessions,
    _check_schedules,
    _check_single_answers,
    _check_samples,
    _check_compaction,
    _check_costs,
    _check_no_recomputation,
    _check_normalization,
    _check_modes,
    _check_gradients,
    _check_optional_members,
    _check_state_dict,
    _check_dtypes,
    _check_devices,
)
