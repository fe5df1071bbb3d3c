"""The help of `anytime train`, made from signatures and docstrings."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from anytime.training.config import SECTIONS, build_parser, canonical_name, find, named_classes, offered

TRAIN = """\
usage: anytime train --model NAME --data NAME [option VALUE ...]
       anytime train --config RECIPE [option VALUE ...]
       anytime train --resume RUN

Trains a model on a data set and writes a run directory: the model, checkpoints, metrics, and config.yaml, which is itself a
recipe. Flags override recipes. NAME may be the import path of a custom class, package.module.Class.

examples:
  anytime train --model anytimenet --data digits --epochs 20
  anytime train --config recipes/anytimenet_cifar10.yaml --data.root ~/data --epochs 5 --run runs/short
  anytime train --model anytimenet --data cifar10 --data.classes '[cat, dog]' --optimizer adamw --optimizer.lr 0.001
  anytime train --model attach --model.pretrained net.safetensors --data cifar10 --regime heads_only --regime.cache float16
  anytime train --resume runs/short
  torchrun --nproc-per-node 2 -m -- anytime train --model anytimenet --data digits --run runs/two

what:
  --model NAME          see `anytime models`
  --data NAME           see `anytime datasets`
  --objective NAME      {objective} (default: weighted)
  --optimizer NAME      a class of torch.optim (default: SGD, lr 0.1, Nesterov momentum 0.9, weight decay 5e-4)
  --schedule NAME       of the learning rate: {schedule} (default: one_cycle)
  --regime NAME         what is trained: {regime} (default: joint)
  --model.ARGUMENT VALUE, --data.ARGUMENT VALUE, ...: any constructor argument of these
  --model.help NAME, --data.help NAME, ...: the arguments of one

where:
  --config RECIPE       a YAML recipe; may be repeated, later ones override earlier ones
  --run DIR             where to write (default: runs/MODEL_DATA)
  --overwrite           replace the run in DIR when the training has finished; other files there stay
  --resume RUN          continue an interrupted run from its last checkpoint; only --optimizer.lr, --gradient_clip and
                        --progress may be changed, e.g. after the loss became NaN
  --trust               import the custom classes that a recipe names; this can run any code

how:
"""


def _lines(parser: ArgumentParser, section: str = "") -> str:
    """One entry for each argument of a section, or with no section each top-level one: flag, help, choices, default."""
    entries = []
    for action in parser._actions:
        prefix, _, name = action.dest.rpartition(".")
        if prefix.partition(".")[0] != section or name == "help":
            continue
        description = " ".join((action.help or "").split()).replace("%%", "%")
        description = re.sub(r"\s*\(default: ([^()]|\([^)]*\))*\)", "", description)
        text = textwrap.shorten(description, 400, placeholder=" ...")
        metavar = str(action.metavar or "")
        choices = f"{metavar[1:-1].replace(',', ', ')}; " if metavar.startswith("{") else ""
        default = action.default if isinstance(action.default, str) else json.dumps(action.default, default=str)
        given = "required" if action.required else f"default: {default}"
        body = textwrap.wrap(f"{text} ({choices}{given})", 94)
        flag = f"  --{action.dest}"
        lead = [f"{flag:<24}{body[0]}"] if len(flag) < 23 else [flag, f"{'':<24}{body[0]}"]
        entries += [*lead, *(f"{'':<24}{line}" for line in body[1:])]
    return "\n".join(entries)


def class_help(section: str, name: str) -> str:
    """The description and the arguments of a class; raises `UsageError` with the nearest name for an unknown one."""
    name = canonical_name(section, name)
    doc = inspect.cleandoc(find(section, name).__doc__ or "")
    about = re.split(r"\n(?:Args|Attributes|Raises|Example|Returns):|\n\.\. ", doc)[0].strip()
    arguments = _lines(build_parser({section: name}), section)
    return f"{name.rpartition('.')[2]}: {about}\n\n{arguments or '  takes no arguments'}"


def help_wanted(flags: Sequence[str]) -> str | None:
    """The help that `--help` or `--model.help NAME` among `flags` requests; None without such a flag."""
    for place, flag in enumerate(flags):
        section, dot, name = flag.removeprefix("--").partition(".help")
        if dot and section in SECTIONS and name[:1] in ("", "="):
            name = name[1:] or next(iter(flags[place + 1 : place + 2]), "")
            if name and not name.startswith("-"):
                return class_help(section, name)
            return f"--{section} takes: {', '.join(offered(section))}; or the import path of a custom class"
    if not {"-h", "--help"} & set(flags):
        return None
    names = {}
    for section in ("objective", "schedule", "regime"):
        snake_case = ", ".join(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in offered(section))
        names[section] = f"\n{'':<24}".join(textwrap.wrap(snake_case, 80))
    text = TRAIN.format(**names) + _lines(build_parser({}))
    named = named_classes([flag for flag in flags if flag not in ("-h", "--help")])
    return "\n\n".join([text, *(f"--{section} {class_help(section, name)}" for section, name in named.items())])
