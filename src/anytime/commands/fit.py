"""What `anytime fit` does: a stopping rule fitted on validation images, measured on test images, saved with the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytime.commands.parser import RUN_HELP, Parser, check_device, check_trained
from anytime.reporting.evaluation import find_trace
from anytime.stopping.fitting import METHODS, Goal, fit_rule

if TYPE_CHECKING:
    from anytime.model import AnytimeModel
    from anytime.stopping import Fitted
    from anytime.trace import Trace


def run(arguments: Sequence[str]) -> int:
    """Fit a stopping rule to a budget, or to a loss of accuracy that it keeps below; save it with the model."""
    parser = Parser(
        "fit",
        "Fit a stopping rule on the validation images, measure it on the test images, and save it with the model, where\n"
        "`anytime predict --stop NAME` and anytime.Predictor(model, stop=NAME) find it.",
        "  anytime fit runs/demo --stop confidence --budget 50%\n"
        "  anytime fit runs/demo --stop confidence --max-loss 0.01 --sure 0.95 --name safe\n"
        "  anytime fit runs/demo --stop value --price 0.05 --combine product\n"
        "  anytime fit runs/demo --combine temperature\n"
        "  anytime fit runs/birds --levels 0.9",
    )
    parser.add_argument("run", metavar="RUN|NAME", help=RUN_HELP)
    parser.add_argument(
        "--stop",
        choices=METHODS,
        help="confidence: max softmax, a threshold per step; budgeted: the same by MSDNet's exit shares; value: monitoring of "
        "the confidence by dynamic programming; learned: a small recurrent network. Default: none, only --combine is fitted",
    )
    parser.add_argument("--budget", metavar="COST", help="mean cost per image: 50%% of all steps' MACs, 40M MACs, or 2ms")
    parser.add_argument("--max-loss", type=float, metavar="SHARE", help="loss of accuracy against all steps, e.g. 0.01")
    parser.add_argument(
        "--sure",
        type=float,
        metavar="P",
        help="the probability with which --max-loss is kept (default: it is kept on average)",
    )
    parser.add_argument(
        "--price", type=float, metavar="SHARE", help="accuracy that the MACs of all steps are worth, e.g. 0.05"
    )
    parser.add_argument("--combine", default="last", help="last, caching, product, mixture or temperature (default: last)")
    parser.add_argument(
        "--levels",
        type=float,
        metavar="ACCURACY",
        help="of a model with several label levels: each step answers at the finest level that is right so often, e.g. 0.9",
    )
    parser.add_argument("--name", help="what to save it as (default: the rule's, or else the combiner's)")
    parser.add_argument("--root", type=Path, help="folder of the data, if not the recipe's")
    parser.add_argument("--download", action="store_true", help="download the data if they are missing")
    parser.add_argument("--device", default="cpu", help="where to record missing traces, e.g. cuda (default: cpu)")
    parser.add_argument("--out", type=Path, help="where to save the model (default: the run directory, or runs/NAME)")
    options = parser.parse_args(arguments)
    _check_goal(parser, options)
    check_trained(parser, options.run)
    check_device(parser, options.device)
    from anytime.pretrained import load
    from anytime.reporting.evaluation import output_folder
    from anytime.stopping import keep

    model = load(options.run)
    folder = output_folder(options.run)
    where = (options.root, options.device, options.download)
    if options.levels is not None and len(model.levels) < 2:
        parser.error(f"--levels is for models with several label levels, {options.run} has one of {model.levels[0]} classes")
    traces = [find_trace(model, folder, part, *where) for part in ("validation", "test")]
    out = options.out or folder
    if options.levels is not None:
        _fit_levels(model, traces[0], traces[1], options.levels)
        model.save(out)
        print(f"saved in {out}; use it: anytime predict {out} IMAGE")
        return 0
    validation, test = (trace.level(0) if trace.levels else trace for trace in traces)
    try:
        goal = Goal.of(options.stop, options.budget, options.max_loss, options.sure, options.price, validation)
    except ValueError as error:
        parser.error(str(error))
    fitted = fit_rule(validation, test, options.combine, goal)
    name = options.name or options.stop or options.combine
    keep(model, name, fitted)
    model.save(out)
    _show(fitted, validation, test)
    use = f"--stop {name}" if options.stop else f"--combine {name}"
    print(f"saved {name!r} in {out}; use it: anytime predict {out} IMAGE {use}")
    return 0


def _check_goal(parser: Parser, options: Any) -> None:
    """Each method has its own way to say what is wanted."""
    if options.levels is not None:
        other = ["stop", "budget", "max_loss", "sure", "price", "name"]
        if options.combine != "last" or any(getattr(options, name) is not None for name in other):
            parser.error("--levels is chosen by itself: leave out --stop and its options, --combine and --name")
        if not 0 < options.levels <= 1:
            parser.error(f"--levels must be an accuracy above 0 and at most 1, got {options.levels:g}")
        return
    given = [name for name in ("budget", "max_loss", "price") if getattr(options, name) is not None]
    takes = {"confidence": ["budget", "max_loss"], "budgeted": ["budget"], "value": ["price"], "learned": ["price"]}
    wanted = takes.get(options.stop, [])
    words = " or ".join(f"--{name.replace('_', '-')}" for name in wanted)
    if options.stop is None and (given or options.combine in ("last", "caching", "product")):
        parser.error(
            f"say which rule to fit: --stop {', '.join(METHODS)}; without one, --combine temperature or mixture is kept"
        )
    if options.stop and (len(given) != 1 or given[0] not in wanted):
        parser.error(f"--stop {options.stop} needs {words}" + (", one of them" if len(wanted) > 1 else ""))
    if options.sure is not None and given != ["max_loss"]:
        parser.error("--sure is the probability with which --max-loss is kept: give --max-loss, too")
    for name in ("max_loss", "sure"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1:
            parser.error(f"--{name.replace('_', '-')} must lie between 0 and 1, got {value:g}")
    if options.price is not None and not 0 <= options.price < math.inf:
        parser.error(f"--price must be at least 0, got {options.price:g}")


def _fit_levels(model: AnytimeModel, validation: Trace, test: Trace, target: float) -> None:
    """Chooses a label level for each step on `validation`, shows what it gives on `test`, and lets the model know it."""
    from anytime.reporting.tables import Column, format_table
    from anytime.stopping.levels import choose_levels, chosen_accuracy

    choice = choose_levels(validation, target)
    held_out = chosen_accuracy(test, choice).tolist()
    rows = [
        {"step": step, "classes": choice.sizes[level], "validation": found, "test": reached}
        for step, (level, found, reached) in enumerate(zip(choice.steps, choice.accuracy, held_out, strict=True), 1)
    ]
    columns = [
        Column("step", "step"),
        Column("classes", "answers one of"),
        Column("validation", "accuracy (validation)", ".2%"),
        Column("test", "accuracy (test, held out)", ".2%"),
    ]
    print(format_table(rows, columns))
    choice.keep(model)


def _show(fitted: Fitted, validation: Trace, test: Trace) -> None:
    from anytime.reporting.tables import Column, format_table
    from anytime.stopping import Never, mean_loss, measure
    from anytime.support.units import macs_text, ms_text

    whole, rows = float(test.macs[-1]), []
    shown = {"all steps": Never()} | ({} if fitted.stop == Never() else {"with the rule": fitted.stop})
    for title, rule in shown.items():
        for part, trace in (("validation", validation), ("test (held out)", test)):
            found = measure(rule, trace, fitted.combine)
            lost = None if rule == Never() else mean_loss(trace, rule, fitted.combine)
            rows.append({"answers": title, "images": part, "n": trace.num_samples, "lost": lost} | vars(found))
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
        print(f"no threshold keeps that loss for sure with {fitted.facts['fitted_on']} images, so all steps run")
