"""Proof of the contract: `check_anytime_model` for any anytime model, as scikit-learn has `check_estimator`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from anytime.cost import flop_counter, recomputed, step_macs
from anytime.model import AnytimeModel, SplitStep, State, Trunk, create_model, select_samples
from anytime.saving import TASKS
from anytime.support.compare import are_probabilities, clone, require, require_answers, require_batch, require_close, same
from anytime.support.units import ImageSize, image_size

__all__ = ["check_anytime_model"]

FLOAT32, FLOAT64 = 1e-4, 1e-10  # how far two exact schedules may differ, relative to the largest logit (at least 1)


def check_anytime_model(model: AnytimeModel, input_size: ImageSize, *, batch_size: int = 3) -> None:
    """Proves that a model keeps the contract of `AnytimeModel`, in one line of a test.

    The model itself is not changed. The checks run on copies in float64 whose parameters, running statistics and
    normalisation are slightly randomised, so that no zero or identity of the initialisation hides a mistake.

    Args:
        model: Any `AnytimeModel`, of this library or a user's.
        input_size: (channels, height, width) of the images to try, or the side of square colour images.
        batch_size: Images per batch, at least 2.

    Raises:
        AssertionError: Part of the contract is broken; the message says which, and by how much.
        ValueError: batch_size is below 2.

    Example:
        >>> from anytime import create_model
        >>> from anytime.testing import check_anytime_model
        >>> check_anytime_model(create_model("anytimenet", width=4), (3, 8, 8))
    """
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2 to tell samples apart, got {batch_size!r}")
    if not isinstance(model, AnytimeModel):
        raise AssertionError(f"An anytime model is a subclass of anytime.AnytimeModel, got a {type(model).__name__}")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        x = torch.rand(batch_size, *image_size(input_size), dtype=torch.float64).to(device)
        try:
            probe = _randomise(copy.deepcopy(model)).double().eval()
        except Exception as error:
            raise AssertionError(f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}") from error
        for check in _CHECKS:
            try:
                check(copy.deepcopy(probe), x.clone())
            except Exception as error:
                broken = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                raise AssertionError(f"{type(model).__name__}: {check.__doc__} Broken: {broken}") from error


def _randomise(model: AnytimeModel) -> AnytimeModel:
    """The model itself, with noise on parameters, running statistics and normalisation; variances stay positive."""
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        last = name.rpartition(".")[2]
        if buffer.is_floating_point() and (last.startswith("running_") or last in ("mean", "std")):
            buffer.mul_(torch.rand_like(buffer) + 0.5).add_(0.1 * torch.rand_like(buffer))
    return model


def _answers(model: AnytimeModel, x: Tensor) -> Tensor:
    """forward(x), which must be [T, B, K], or [T, B, K, ...] if the task is "dense"."""
    answers: Tensor = model(x)
    require_answers(answers, [model.num_steps, len(x), model.num_classes], model.info.task == "dense", "forward gave")
    return answers


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
    """num_steps, num_classes, levels, info.task, mean and std describe the model."""
    require(model.info.task in TASKS, f"info.task is {model.info.task!r}, not one of {', '.join(TASKS)}.")
    require(model.info.task == "classification" or len(model.levels) == 1, f"levels {model.levels} are only for classifiers.")
    require(type(model.num_steps) is int and model.num_steps >= 1, f"num_steps is {model.num_steps!r}.")
    require(sum(model.levels) == model.num_classes, f"levels {model.levels}, but num_classes is {model.num_classes}.")
    shapes = {name: list(buffer.shape) for name, buffer in model.named_buffers()}
    for name in ("mean", "std"):
        require(name in shapes, f"there is no buffer {name!r}.")
        require(shapes[name] == [x.shape[1]], f"buffer {name!r} has shape {shapes[name]} for {x.shape[1]} channels.")


def _check_steps(model: AnytimeModel, x: Tensor) -> None:
    """Each of the num_steps steps gives (logits [B, K], state); logits are not yet probabilities; maps are [B, K, ...]."""
    state, answers, expected = model.initial_state(x), [], [len(x), model.num_classes]
    for t in range(1, model.num_steps + 1):
        try:
            given = model.step(state)
        except Exception as error:
            raise AssertionError(f"step {t} raised {type(error).__name__}: {error}") from error
        kinds = [type(part).__name__ for part in given] if isinstance(given, tuple) else type(given).__name__
        require(isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor), f"step {t} gave {kinds}.")
        logits, state = given
        require_answers(logits, expected, model.info.task == "dense", f"step {t} gave logits")
        answers.append(logits)
    ready = model.info.task == "classification" and are_probabilities(torch.stack(answers), model.levels)
    require(not ready, "all answers are probabilities, which sum to 1.")


def _check_schedules(model: AnytimeModel, x: Tensor) -> None:
    """forward gives [T, B, K] and stream the same numbers one by one, in eval mode."""
    for dtype, tolerance in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
        model, x = model.to(dtype), x.to(dtype)
        logits, stream = _answers(model, x), model.stream(x)
        require(isinstance(stream, Iterator), f"stream gave a {type(stream).__name__}, expected an iterator.")
        answers = list(stream)
        require(len(answers) == model.num_steps, f"stream gave {len(answers)} answers, expected {model.num_steps}.")
        for t, answer in enumerate(answers):
            require_close(answer, logits[t], f"stream and forward ({dtype}) at step {t + 1}", tolerance)


def _check_single_answers(model: AnytimeModel, x: Tensor) -> None:
    """forward(x, step=t) and jump(x, t) give forward(x)[t - 1]; jumps can be continued; others raise ValueError."""
    logits, last = model(x), model.num_steps
    for t in range(1, last + 1):
        require_close(model(x, step=t), logits[t - 1], f"forward(x, step={t}) and forward(x)[{t - 1}]")
    for t in sorted({1, 1 + last // 2, last}):
        answer, state = model.jump(x, t)
        answers, _ = _run(model, state, min(last - t, 1) if t == 1 else last - t)
        expected = logits[t - 1 : t + len(answers)]
        require_close(torch.stack([answer, *answers]), expected, f"the answers from jump(x, {t}) on, and those of forward(x)")
    for t in (-1, 0, last + 1):
        for name, call in (("forward", model), ("jump", model.jump)):
            try:
                call(x, step=t)
            except ValueError:
                continue
            raise AssertionError(f"{name}(x, step={t}) was accepted, with T = {last}.")


def _check_costs(model: AnytimeModel, x: Tensor) -> None:
    """Every step costs additional MACs, and a single answer costs no more than the stream up to it."""
    channels, height, width = x.shape[1:]
    stream = step_macs(model, (channels, height, width))
    single = step_macs(model, (channels, height, width), contract=True)
    for t, (before, after) in enumerate(zip([0, *stream], stream, strict=False), 1):
        require(after > before, f"step {t} adds {after - before} MACs; cumulative MACs are {stream}.")
    for t, (one, many) in enumerate(zip(single, stream, strict=True), 1):
        require(one <= many, f"only answer {t} costs {one} MACs, the stream up to it {many}.")
    middle = (model.num_steps + 1) // 2
    with flop_counter() as counter:
        model.jump(x[:1], middle)
    macs = counter.get_total_flops() // 2
    require(macs <= stream[middle - 1], f"jump(x, {middle}) costs {macs} MACs, the stream up to it {stream[middle - 1]}.")


def _check_no_recomputation(model: AnytimeModel, x: Tensor) -> None:
    """A step never runs a module with parameters again on an input that has not changed."""
    for name, now, then in recomputed(model, x[:1]):
        raise AssertionError(f"step {now} ran {name!r} again on its input of step {then}.")


def _check_samples(model: AnytimeModel, x: Tensor) -> None:
    """In eval mode a sample's answers do not depend on the other samples of its batch."""
    logits = model(x)
    for i in range(len(x)):
        require_close(model(x[i : i + 1]), logits[:, i : i + 1], f"answers to sample {i} by itself and in a batch")


def _check_state(model: AnytimeModel, x: Tensor) -> None:
    """State is a value: a pytree of numbers and of tensors with the batch in dimension 0; a step does not change it."""
    fewer = model.initial_state(x[1:])
    for t in range(model.num_steps):
        require_batch(fewer, len(x) - 1, f"after step {t}")
        fewer = model.step(fewer)[1]
    images, state = x.clone(), model.initial_state(x)
    states, answers = [state], []
    kept_states, kept_answers = [clone(state)], []
    for t in range(model.num_steps):
        require_batch(state, len(x), f"after step {t}")
        again = model.step(clone(kept_states[t]))[0].clone()
        logits, state = model.step(states[t])
        require(same(states[t], kept_states[t]), f"step {t + 1} modified the state it was given.")
        require_close(again, logits, f"two calls of step {t + 1} on one state")
        states.append(state)
        answers.append(logits)
        kept_states.append(clone(state))
        kept_answers.append(logits.clone())
    require(same(states, kept_states), "a later step modified an earlier state.")
    require(same(answers, kept_answers), "a later step modified an earlier answer.")
    require(torch.equal(x, images), "the images were modified.")


def _check_sessions(model: AnytimeModel, x: Tensor) -> None:
    """Live sessions do not disturb each other, neither interleaved nor from several threads."""
    batches = [x, 1 - x[1:]]
    separate = [_streamed(model, batch) for batch in batches]
    pairs = zip(*(model.stream(batch) for batch in batches), strict=True)
    for together, expected in zip(zip(*pairs, strict=True), separate, strict=True):
        require_close(torch.stack(together), expected, "answers of two interleaved sessions and of each by itself")

    def session(batch: Tensor) -> Tensor:
        with torch.no_grad():  # thread-local
            return _streamed(model, batch)

    with ThreadPoolExecutor(len(batches)) as pool:
        for concurrent, expected in zip(pool.map(session, batches), separate, strict=True):
            require_close(concurrent, expected, "answers of sessions in two threads and of each by itself")


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
            require_close(torch.stack(rest), logits[done:, index], f"answers to samples selected after step {done} and to all")


def _check_gradients(model: AnytimeModel, x: Tensor) -> None:
    """Gradients of the sum over all answers reach every parameter in train mode."""
    with torch.enable_grad():
        logits = _answers(model.train(), x)
        require(logits.requires_grad, "forward gave answers without gradients.")
        (logits * torch.randn_like(logits)).sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    dead = [name for name, grad in trained.items() if grad is None or not grad.any()]
    names = f"{len(dead)} of {len(trained)} parameters get none: {', '.join(dead[:5])}"
    require(not dead, f"{names}; freeze those that no answer uses with requires_grad_(False).")
    wild = [name for name, grad in trained.items() if grad is not None and not grad.isfinite().all()]
    require(not wild, f"{len(wild)} of {len(trained)} gradients are not finite: {', '.join(wild[:5])}.")


def _check_state_dict(model: AnytimeModel, x: Tensor) -> None:
    """The state dict holds everything the answers depend on: loaded into a new model, it gives the same answers."""
    logits = model(x)
    if model.config:
        arguments = json.loads(json.dumps(model.config["arguments"]))  # as config.json stores them
        fresh = create_model(model.config["model"], **arguments).to(x)
    else:
        fresh = _randomise(copy.deepcopy(model))
    fresh.load_state_dict(model.state_dict())
    require_close(fresh.eval()(x), logits, "answers before and after the round trip")


def _check_dtypes(model: AnytimeModel, x: Tensor) -> None:
    """The model runs in the dtype it is moved to, with finite answers."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for answer in (*model.to(dtype).stream(x.to(dtype)), model(x.to(dtype))):
            require(answer.dtype == dtype, f"in {dtype} it answered in {answer.dtype}.")
            wild = int((~answer.isfinite()).sum())
            require(wild == 0, f"in {dtype} {wild} of {answer.numel()} logits are infinite or NaN.")


def _check_devices(model: AnytimeModel, x: Tensor) -> None:
    """The model gives the same answers on every device it is moved to."""
    logits = model(x)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        answers = _streamed(model.to(device), x.to(device))
        require(answers.device.type == device, f"moved to {device} it answered on {answers.device}.")
        require_close(answers.to(x.device), logits, f"answers on {device} and on {x.device}")


def _check_determinism(model: AnytimeModel, x: Tensor) -> None:
    """In eval mode the same images get the same answers, in any memory format, and are not modified."""
    images, logits = x.clone(), _answers(model, x)
    require(torch.equal(x, images), "forward modified the images.")
    require_close(model(x), logits, "two calls")
    model.to(memory_format=torch.channels_last)
    require_close(model(x.contiguous(memory_format=torch.channels_last)), logits, "answers in channels_last and before")


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
        require(not torch.equal(changed(x), model(x)), f"forward gives the same answers whatever {name!r} is.")
        unchanged = torch.equal(_streamed(changed, x), _streamed(model, x))
        require(not unchanged, f"stream gives the same answers whatever {name!r} is.")
    normal = (x - model.mean[:, None, None]) / model.std[:, None, None]
    plain = copy.deepcopy(model)
    plain.set_normalization([0.0] * x.shape[1], [1.0] * x.shape[1])
    require_close(model(x), plain(normal), "answers to images and to images normalised before")


def _check_modes(model: AnytimeModel, x: Tensor) -> None:
    """A run leaves the train and eval modes of all modules, and in eval mode all buffers, as they were."""
    for training in (True, False):
        model.train(training)
        modes = [module.training for module in model.modules()]
        before = clone(dict(model.named_buffers()))
        for name, call in (("forward", model), ("stream", lambda images: _streamed(model, images))):
            call(x)
            require(modes == [m.training for m in model.modules()], f"{name} changed the mode of a module.")
            for buffer, value in model.named_buffers() if not training else ():
                require(same(value, before[buffer]), f"{name} in eval mode changed the buffer {buffer!r}.")


def _check_optional_attributes(model: AnytimeModel, x: Tensor) -> None:
    """Optional attributes keep what they promise: own_normalization, settled and measured arguments, head_names."""
    for name, kind in {"own_normalization": bool, "settled_arguments": dict, "measured_arguments": dict}.items():
        require(isinstance(getattr(model, name), kind), f"{name} is {getattr(model, name)!r}, not a {kind.__name__}.")
    unknown = model.measured_arguments.keys() - model.settled_arguments.keys()
    require(not unknown, f"measured_arguments holds {min(unknown, default='')!r}, which settled_arguments lacks.")
    if model.config:
        unknown = model.settled_arguments.keys() - model.config["arguments"].keys()
        require(not unknown, f"settled_arguments holds {min(unknown, default='')!r}, which is not an argument of the model.")
    parts, names = dict(model.named_modules(remove_duplicate=False)), model.head_names
    if names is not None:
        require(isinstance(names, tuple | list) and len(names) > 0, f"head_names is {names!r}, not a tuple of names.")
        for name in names:
            require(name != "" and name in parts, f"head_names holds {name!r}, which is not a submodule.")
    heads = [name for name in (("head", "heads") if names is None else names) if name in parts]
    changed = copy.deepcopy(model)
    for parameter in (p for name in heads for p in changed.get_submodule(name).parameters()):
        parameter.add_(torch.rand_like(parameter))
    state, other = model.initial_state(x), changed.initial_state(x)
    classes = slice(1, 2) if model.info.task == "dense" else slice(-1, None)
    for t in range(1, model.num_steps if heads else 1):
        state, other = model.step(state)[1], changed.step(other)[1]
        for leaf, again in zip(pytree.tree_leaves(state), pytree.tree_leaves(other), strict=True):
            answer = isinstance(leaf, Tensor) and leaf.shape[classes] == (model.num_classes,)  # may be kept
            require(answer or same(leaf, again), f"the state after step {t} depends on the heads: {', '.join(heads)}.")


def _check_protocols(model: AnytimeModel, x: Tensor) -> None:
    """Optional protocols are whole and keep what they promise: the halves of a step, features of a trunk."""
    for members in (("advance", "read"), ("trunk_features", "head_answers", "keeps_features")):
        lacking = [name for name in members if not hasattr(model, name)]
        there = [name for name in members if name not in lacking]
        require(not (lacking and there), f"there is {' and '.join(there)}, but no {' and no '.join(lacking)}.")
    if isinstance(model, SplitStep):
        state = unread = model.initial_state(x)
        for t in range(1, model.num_steps + 1):
            logits, after = model.step(state)
            require_close(model.read(model.advance(state)), logits, f"read(advance(state)) and the answer of step {t}")
            state, unread = after, model.advance(unread)
        require_close(model.read(unread), logits, "the last answer after unread steps and after read ones")
    keeps_features = getattr(model, "keeps_features", False)
    require(isinstance(keeps_features, bool), f"keeps_features is {keeps_features!r}, not a bool.")
    if isinstance(model, Trunk) and keeps_features:
        features = model.trunk_features(x)
        require(isinstance(features, list), f"trunk_features gave a {type(features).__name__}, expected a list.")
        require(all(h.shape[:1] == x.shape[:1] for h in features), "trunk_features lack the batch in dimension 0.")
        require_close(model.head_answers(features), model(x), "head_answers(trunk_features(x)) and forward(x)")


_CHECKS: tuple[Callable[[AnytimeModel, Tensor], None], ...] = (
    *(_check_description, _check_steps, _check_refusals, _check_determinism, _check_state, _check_sessions),
    *(_check_schedules, _check_single_answers, _check_samples, _check_compaction, _check_costs),
    *(_check_no_recomputation, _check_normalization, _check_modes, _check_gradients, _check_optional_attributes),
    *(_check_protocols, _check_state_dict, _check_dtypes, _check_devices),
)
