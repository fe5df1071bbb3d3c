"""Fit a stopping rule on the validation images, measure it on the test images, and save it with the model, where
`anytime predict --stop NAME` and anytime.Predictor(model, stop=NAME) find it. docs/guarantees.md says what --max-loss and
--sure promise and what they assume.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from anytime.commands.parser import Parser
from anytime.model import AnytimeModel
from anytime.pretrained import load
from anytime.reporting.tables import Column, format_table
from anytime.saving import CONFIG, WEIGHTS
from anytime.stopping import Fitted, Never, mean_loss, measure, save_rule, saved_rules
from anytime.stopping.fitting import METHODS, Goal, fit_rule, unspent
from anytime.stopping.levels import choose_levels, chosen_accuracy
from anytime.support.digest import weights_digest
from anytime.support.folders import MANIFEST
from anytime.support.limits import UNFIT
from anytime.support.locks import only_writer
from anytime.support.model_files import config_file, read_weights
from anytime.support.owned import is_own
from anytime.support.text import printable
from anytime.support.units import macs_text, ms_text
from anytime.trace import Trace

GOALS = {"confidence": ["budget", "max_loss"], "budgeted": ["budget"], "value": ["price"], "learned": ["price"]}


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "fit",
        __doc__,
        "  anytime fit runs/demo --stop confidence --budget 50%\n"
        "  anytime fit runs/demo --stop confidence --max-loss 0.01 --sure 0.95 --name safe\n"
        "  anytime fit runs/demo --stop value --price 0.05 --combine product\n"
        "  anytime fit runs/demo --combine temperature\n"
        "  anytime fit runs/birds --levels 0.9",
    )
    parser.add_model("run")
    parser.add_argument(
        "--stop",
        choices=METHODS,
        help="confidence: max softmax, a threshold per step; budgeted: the same with MSDNet's exit shares; value: monitoring "
        "of the confidence by dynamic programming; learned: a small recurrent network. Default: only --combine is fitted",
    )
    parser.add_argument("--budget", metavar="COST", help="mean cost per image: 50%% of all steps' MACs, 40M MACs, or 2ms")
    parser.add_argument("--max-loss", type=float, metavar="SHARE", help="accepted loss of accuracy, e.g. 0.01")
    sure = "probability that the loss stays below --max-loss (default: only the mean loss is bounded)"
    parser.add_argument("--sure", type=float, metavar="P", help=sure)
    price = "accuracy that the MACs of all steps are worth, e.g. 0.05"
    parser.add_argument("--price", type=float, metavar="SHARE", help=price)
    parser.add_argument("--combine", default="last", help="last (default), caching, product, mixture, temperature, geometric")
    parser.add_argument(
        "--levels",
        type=float,
        metavar="ACCURACY",
        help="for a model with several label levels: each step answers at the finest level with this accuracy, e.g. 0.9",
    )
    parser.add_argument("--name", help="name to save under (default: the rule's, or else the combiner's)")
    parser.add_data_folder()
    parser.add_device("where to record missing traces")
    parser.add_argument("--out", type=Path, help="where to save the model (default: the run directory, or runs/NAME)")
    parser.add_overwrite("a rule of that name, or what --levels chose before,")
    options = parser.parse_args(arguments)
    _check_goal(parser, options)
    parser.check_model(options.run)
    parser.check_device(options.device)
    from anytime.reporting.evaluation import output_folder, records_traces

    folder = output_folder(options.run)
    out = options.out or folder
    with contextlib.ExitStack() as locks:
        places = {path.resolve(): path for path in (out, folder)}
        for place, path in sorted(places.items()):  # in one order, so that no two commands wait for each other
            writes = place == out.resolve() or records_traces(folder)
            locks.enter_context(only_writer(path, "a fit", writes=writes))
        _fit(parser, options, folder, out)
    return 0


def _fit(parser: Parser, options: Any, folder: Path, out: Path) -> None:
    """Fits to the answers of a model, whose traces lie in `folder`, and saves the model in `out`."""
    from anytime.reporting.evaluation import find_trace

    model = load(options.run, options.trust)
    saved = _saved_in(out, model, options.trust)
    name = options.name or options.stop or options.combine
    if options.levels is not None and len(model.levels) < 2:
        parser.error(f"--levels is for models with several label levels, {options.run} has one of {model.levels[0]} classes")
    if options.levels is not None and saved.info.answer_levels is not None and not options.overwrite:
        parser.error(f"{out} answers at label levels that were chosen before; add --overwrite to choose again")
    if options.levels is None and name in saved.info.rules and not options.overwrite:
        parser.error(f"{out} holds a rule {name!r} already; give another --name, or --overwrite to replace it")
    where = (options.root, options.device, options.download)
    validation, test = (find_trace(model, folder, part, *where) for part in ("validation", "test"))
    if options.levels is not None:
        _fit_levels(saved, validation, test, options.levels)
        _save(saved, folder, out)
        print(printable(f"saved in {out}; use it: anytime predict {out} IMAGE"))
        return
    if options.max_loss is not None and "groups" not in validation.meta:
        raise ValueError(
            f"the trace of the validation images in {folder} does not say which images belong to one group, such as a track; "
            "delete it to record it again"
        )
    validation, test = (trace.level(0) if trace.levels else trace for trace in (validation, test))
    try:
        goal = Goal.of(options.stop, options.budget, options.max_loss, options.sure, options.price, validation)
    except ValueError as error:
        parser.error(str(error))
    fitted = fit_rule(validation, test, options.combine, goal)
    save_rule(saved, name, fitted)
    _save(saved, folder, out)
    _show(fitted, validation, test)
    if why := unspent(goal, measure(fitted.stop, validation, fitted.combine), validation):
        print(why)
    if goal.max_loss is not None:
        _name_others(saved, name)
    use = f"--stop {name}" if options.stop else f"--combine {name}"
    print(printable(f"saved {name!r} in {out}; use it: anytime predict {out} IMAGE {use}"))


def _saved_in(out: Path, model: AnytimeModel, trust: bool) -> AnytimeModel:
    """The model that a folder holds, with its rules; `model` itself if it holds none.

    Raises:
        ValueError: The folder holds another model, a damaged one, or what a model would be mixed with.
    """
    holds = any((out / name).exists() for name in (CONFIG, WEIGHTS)) or is_own(out / MANIFEST)
    saved = load(out, trust) if holds and not _is_unfinished(out, model) else model
    if saved is not model and weights_digest(saved.state_dict()) != weights_digest(model.state_dict()):
        raise ValueError(f"{out} holds another model, which is not replaced; give another --out")
    model.check_room(out)
    return saved


def _is_unfinished(out: Path, model: AnytimeModel) -> bool:
    """Whether a folder holds the weights of `model`, but no configuration: an earlier version was killed while it saved."""
    if config_file(out).is_file():
        return False
    try:
        tensors = safetensors.torch.load(read_weights(out))
    except (safetensors.SafetensorError, OSError, *UNFIT):
        return False
    return weights_digest(tensors) == weights_digest(model.state_dict())


def _save(model: AnytimeModel, folder: Path, out: Path) -> None:
    """Saves a model in `out`, after the record of the images that it was trained on, which lies in `folder`."""
    from anytime.data.record import copy_record

    copy_record(folder, out)
    model.save(out)


def _check_goal(parser: Parser, options: Any) -> None:
    """Ends the command unless the options state one goal that the method can be fitted to."""
    if options.levels is not None:
        other = ["stop", "budget", "max_loss", "sure", "price", "name"]
        if options.combine != "last" or any(getattr(options, name) is not None for name in other):
            parser.error("--levels is fitted without a rule: leave out --stop and its options, --combine and --name")
        if not 0 < options.levels <= 1:
            parser.error(f"--levels must be an accuracy above 0 and at most 1, got {options.levels:g}")
        return
    given = [name for name in ("budget", "max_loss", "price") if getattr(options, name) is not None]
    wanted = GOALS.get(options.stop, [])
    if options.stop is None and (given or options.combine in ("last", "caching", "product")):
        fitted = "temperature, geometric, mixture"
        parser.error(f"choose a rule to fit: --stop {', '.join(METHODS)}; or a combiner: --combine {fitted}")
    if options.stop and (len(given) != 1 or given[0] not in wanted):
        flags = " or ".join(f"--{name.replace('_', '-')}" for name in wanted)
        parser.error(f"--stop {options.stop} needs {'one of ' if len(wanted) > 1 else ''}{flags}")
    if options.sure is not None and given != ["max_loss"]:
        parser.error("--sure is the probability that the loss stays below --max-loss: give --max-loss as well")
    for name in ("max_loss", "sure"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1:
            parser.error(f"--{name.replace('_', '-')} must lie between 0 and 1, got {value:g}")
    if options.price is not None and not 0 <= options.price < math.inf:
        parser.error(f"--price must be at least 0, got {options.price:g}")


def _name_others(model: AnytimeModel, name: str) -> None:
    """Prints which other rules were calibrated on these images, because one trace certifies one rule."""
    others = [repr(other) for other, fitted in saved_rules(model).items() if other != name and "max_loss" in fitted.facts]
    if others:
        print(
            f"{', '.join(others)} and {name!r} were calibrated on the same images: the guarantee of each holds only if you "
            "chose it before looking at these numbers (docs/guarantees.md)"
        )


def _fit_levels(model: AnytimeModel, validation: Trace, test: Trace, target: float) -> None:
    """Chooses a label level for each step on `validation`, prints its accuracy on `test`, and saves it to the model."""
    choice = choose_levels(validation, target)
    steps = zip(choice.steps, choice.accuracy, chosen_accuracy(test, choice).tolist(), strict=True)
    rows = [
        {"step": step, "classes": choice.sizes[level], "validation": accuracy, "test": held_out}
        for step, (level, accuracy, held_out) in enumerate(steps, 1)
    ]
    columns = [
        Column("step", "step"),
        Column("classes", "answers one of"),
        Column("validation", "accuracy (validation)", ".2%"),
        Column("test", "accuracy (test, held out)", ".2%"),
    ]
    print(format_table(rows, columns))
    choice.save_to(model)


def _show(fitted: Fitted, validation: Trace, test: Trace) -> None:
    """Prints what the rule saves and loses on both parts."""
    whole, rows = float(test.macs[-1]), []
    rules = {"all steps": Never()} | ({} if fitted.stop == Never() else {"with the rule": fitted.stop})
    for title, rule in rules.items():
        for part, trace in (("validation", validation), ("test (held out)", test)):
            outcome = measure(rule, trace, fitted.combine)
            lost = None if rule == Never() else mean_loss(trace, rule, fitted.combine)
            rows.append({"answers": title, "images": part, "n": trace.num_samples, "lost": lost} | vars(outcome))
    columns = [
        Column("answers", "answers"),
        Column("images", "images"),
        Column("n", "n"),
        Column("accuracy", "accuracy", ".2%"),
        Column("lost", "lost by stopping", ".2%"),
        Column("macs", "mean MACs", macs_text),
        Column("macs", "% of all", lambda macs: f"{macs / whole:.1%}"),
        Column("seconds", "mean ms", ms_text),
    ]
    print(format_table(rows, columns))
    if fitted.stop != Never():
        shares = measure(fitted.stop, test, fitted.combine).shares
        print("test images that stop at step: " + ", ".join(f"{t}: {share:.1%}" for t, share in enumerate(shares, 1)))
    elif fitted.facts.get("max_loss") is not None:
        groups = fitted.facts.get("groups")
        given = f"{fitted.facts['fitted_on']} images" + (f" in {groups} groups" if groups is not None else "")
        print(f"no threshold can guarantee that loss with {given}, so all steps run")
