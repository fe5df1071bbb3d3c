"""From recipes and flags to one resolved configuration: names found, keys and types checked, nothing left to chance."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

import anytime.data
import anytime.models  # registers the models
from anytime import objectives, registry
from anytime.objectives import Objective
from anytime.support.names import nearest
from anytime.training import regimes, schedules
from anytime.training.fit import Settings
from anytime.training.regimes.base import Regime
from anytime.training.schedules import Schedule

Config = dict[str, Any]

SKIPPED: dict[str, dict[str, str]] = {  # arguments that are not the user's to give, and why
    "model": {"num_classes": "is given by the data set", "in_channels": "is given by the data set"},
    "data": {"seed": "follows --seed"},
    "objective": {},
    "optimizer": {"params": "are the model's parameters"},
    "schedule": {},
    "regime": {},
}
SECTIONS = tuple(SKIPPED)
_FOUND_IN: dict[str, tuple[ModuleType, type]] = {
    "objective": (objectives, Objective),
    "optimizer": (torch.optim, torch.optim.Optimizer),
    "schedule": (schedules, Schedule),
    "regime": (regimes, Regime),
}
DEFAULTS: Config = {
    "objective": {"class_path": "anytime.objectives.Weighted", "init_args": {}},
    "optimizer": {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    },
    "schedule": {"class_path": "anytime.training.schedules.OneCycle", "init_args": {}},
    "regime": {"class_path": "anytime.training.regimes.base.Joint", "init_args": {}},
}
COMMAND_OPTIONS = ("config", "run", "overwrite", "resume")


class UsageError(ValueError):
    """The command or recipe asks for something that does not exist or makes no sense."""

    exit_code = 2


def known_names(section: str) -> list[str]:
    """What can be named in a section without an import path."""
    if section == "model":
        return registry.list_models()
    if section == "data":
        return anytime.data.list_datasets()
    module, base = _FOUND_IN[section]
    return [k for k, v in vars(module).items() if inspect.isclass(v) and issubclass(v, base) and v is not base]


def resolve(section: str, name: str) -> str:
    """The import path of what `name` stands for in a section; raises `UsageError` with the nearest valid name."""
    try:
        if section == "model":
            return registry.import_path(name)
        if section == "data":
            return anytime.data.resolve(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    module, base = _FOUND_IN[section]
    if "." in name:
        try:
            found = imported(name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{section} {name!r} cannot be imported: {error}") from error
        if not (inspect.isclass(found) and issubclass(found, base)):
            raise UsageError(f"{section} {name!r} is no subclass of {base.__module__}.{base.__qualname__}")
        return name
    for known in known_names(section):
        if known.lower() == name.replace("_", "").lower():
            return f"{module.__name__}.{known}"
    raise UsageError(f"unknown {section} {name!r}{nearest(name, known_names(section))}")


def imported(path: str) -> Callable[..., Any]:
    """The class or function at an import path."""
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def top_level_keys() -> list[str]:
    """What a recipe may hold at its top level."""
    return [*SECTIONS, *(field.name for field in fields(Settings))]


def build_parser(paths: dict[str, str]) -> ArgumentParser:
    """The parser of `anytime train` for the classes at `paths` (by section), made from the constructors' signatures."""
    parser = ArgumentParser(prog="anytime train", exit_on_error=False, allow_abbrev=False)
    for section, path in paths.items():
        target = imported(path)
        add = parser.add_class_arguments if inspect.isclass(target) else parser.add_function_arguments
        add(target, section, skip=set(SKIPPED[section]), fail_untyped=False)
    parser.add_class_arguments(Settings)
    return parser


@functools.cache
def _arguments(section: str, path: str) -> tuple[str, ...]:
    """Names of the arguments that can be given to a class."""
    given = build_parser({section: path}).get_defaults().get(section)
    return tuple(vars(given)) if given is not None else ()


def _check_argument(section: str, path: str, argument: str) -> None:
    if argument in SKIPPED[section]:
        raise UsageError(f"{section}.{argument} {SKIPPED[section][argument]}, leave it out")
    valid = _arguments(section, path)
    if argument not in valid:
        hint = nearest(argument, valid) if valid else "; it takes none"
        raise UsageError(f"{path.rpartition('.')[2]} has no argument {section}.{argument}{hint}")


def read_recipe(path: str | Path) -> Config:
    """A recipe file with names resolved to import paths and every key checked.

    Raises:
        UsageError: No such file, not a YAML mapping, an unknown key or name (the message names the nearest valid one).
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"recipe {path} must be a mapping like 'model: anytimenet', got {type(recipe).__name__}")
    try:
        return resolve_recipe(recipe)
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error}") from error


def resolve_recipe(recipe: Config) -> Config:
    """The same recipe with names resolved to import paths; raises `UsageError` for what is unknown."""
    resolved: Config = {}
    for key, value in recipe.items():
        if key not in top_level_keys():
            raise UsageError(f"unknown key {key!r}{nearest(str(key), top_level_keys())}")
        if key in SECTIONS:
            value = {"class_path": value} if isinstance(value, str) else value
            if not isinstance(value, dict) or not isinstance(value.get("class_path"), str):
                raise UsageError(f"{key} must be a name, or a mapping with class_path and init_args, got {value!r}")
            if extra := value.keys() - {"class_path", "init_args"}:
                raise UsageError(f"unknown key {key}.{min(extra, key=str)}; valid: class_path, init_args")
            path, arguments = resolve(key, value["class_path"]), value.get("init_args") or {}
            if not isinstance(arguments, dict):
                raise UsageError(f"{key}.init_args must be a mapping, got {arguments!r}")
            for argument in arguments:
                _check_argument(key, path, str(argument))
            value = {"class_path": path, "init_args": arguments}
        resolved[key] = value
    return resolved


def _layer(below: Config, above: Config) -> Config:
    """`above` over `below`: arguments stay where both name the same class; another class starts from its own defaults."""
    layered = below | above
    for section in below.keys() & above.keys() & set(SECTIONS):
        if below[section]["class_path"] == above[section]["class_path"]:
            layered[section] = {
                "class_path": above[section]["class_path"],
                "init_args": below[section]["init_args"] | above[section]["init_args"],
            }
    return layered


def named_classes(flags: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The import paths of the classes that flags such as `--model NAME` name, and all other flags."""
    paths: dict[str, str] = {}
    others: list[str] = []
    rest = iter(flags)
    for flag in rest:
        section, equals, name = flag.removeprefix("--").partition("=")
        if flag.startswith("--") and section in SECTIONS:
            name = name if equals else next(rest, "")
            if not name or name.startswith("--"):
                raise UsageError(f"--{section} needs a name: {', '.join(known_names(section))}, or an import path")
            paths[section] = resolve(section, name)
        else:
            others.append(flag)
    return paths, others


def _check_flags(flags: Sequence[str], paths: dict[str, str]) -> None:
    for flag in flags:
        if flag.startswith("--"):
            name = flag[2:].partition("=")[0].removesuffix("+")
            section, _, argument = name.partition(".")
            if section not in top_level_keys():
                valid = [f"--{key}" for key in (*top_level_keys(), *COMMAND_OPTIONS)]
                raise UsageError(f"unknown option --{name}{nearest(f'--{section}', valid)}")
            if section in SECTIONS:
                _check_argument(section, paths[section], argument)


def _flat(config: Config) -> dict[str, Any]:
    """Values by the flag that gives them: `{"model.width": 8, "epochs": 3}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in SECTIONS:
            flat |= {f"{key}.{argument}": given for argument, given in value["init_args"].items()}
        else:
            flat[key] = value
    return flat


def parse(flags: Sequence[str], recipes: Iterable[str | Path] = ()) -> Config:
    """Defaults, then recipes in order, then flags: the resolved configuration of a training.

    Where a later one names the class that is already there, the arguments given before stay; another class starts from its
    own defaults.

    Raises:
        UsageError: Unknown names or keys, values of the wrong type, no model or no data set.
    """
    base = functools.reduce(_layer, map(read_recipe, recipes), DEFAULTS)
    named, flags = named_classes(flags)
    if flags and not flags[0].startswith("-"):
        raise UsageError(f"unexpected {flags[0]!r}: options begin with --, e.g. --model {known_names('model')[0]}")
    base = _layer(base, {section: {"class_path": path, "init_args": {}} for section, path in named.items()})
    for section, command in {"model": "models", "data": "datasets"}.items():
        if section not in base:
            raise UsageError(f"say which {section}: --{section} NAME (see `anytime {command}`)")
    paths = {section: base[section]["class_path"] for section in SECTIONS}
    _check_flags(flags, paths)
    parser, values = build_parser(paths), _flat(base)
    parser.set_defaults({key: None for key, value in values.items() if value is None})
    below = [  # as flags, so that what recipes and flags give is converted and checked in one way
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
        if value is not None
    ]
    try:
        plain = yaml.safe_load(parser.dump(parser.parse_args([*below, *flags]), skip_unset=False))
    except (ArgumentError, TypeError, ValueError) as error:
        raise UsageError(_sentence(str(error))) from error
    return {
        key: {"class_path": paths[key], "init_args": plain.get(key) or {}} if key in SECTIONS else plain[key]
        for key in top_level_keys()
    }


def _sentence(message: str) -> str:
    """What jsonargparse says in many lines, in one: `epochs must be int, got 'x'`."""
    keys = re.findall(r'(?:Parser key|[Kk]ey) "([^"]+)"', message)
    values = re.findall(r"(?:Got|Given) value: (.*)", message)
    if needs := re.match(r"argument (\S+): expected one argument", message):
        return f"{needs[1]} needs a value"
    if needed := re.match(r"the following arguments are required: (.*)", message):
        return f"{needed[1]} must be given"
    if not keys or not values:
        return " ".join(message.split())
    expected: list[str] = []
    for kind in re.findall(r"Expected an? (?:<class '([\w.]+)'>|typing\.(Literal\[.*?\]))(?=\. Got|$)", message, re.M):
        name = kind[0].rpartition(".")[2].replace("NoneType", "null")
        expected.append(name or f"one of {kind[1][8:-1]}")
    hint = ""
    if literal := re.search(r"typing\.Literal\[(.*?)\]", message):
        choices = re.findall(r"'([^']*)'", literal[1])
        hint = h if (h := nearest(values[-1], choices)).startswith("; did") else ""
    wanted = " or ".join(dict.fromkeys(expected)) or "of another type"
    return f"{keys[-1]} must be {wanted}, got {values[-1].strip()!r}{hint}"


def short_names(config: Config) -> Config:
    """The configuration as people write it: names in place of the library's own import paths."""
    short = {}
    for key, value in config.items():
        if key in SECTIONS:
            path = value["class_path"]
            name = path.rpartition(".")[2]
            try:
                same = imported(resolve(key, name)) is imported(path)
            except UsageError:
                same = False
            value = {"class_path": name if same else path, "init_args": value["init_args"]}
        short[key] = value
    return short
