"""From recipes and flags to one resolved configuration: canonical names, keys and types checked, defaults filled in."""

from __future__ import annotations

import functools
import inspect
import json
import os
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
import yaml
from jsonargparse import ArgumentParser

import anytime.data
import anytime.models  # registers the models
from anytime import objectives, registry
from anytime.data import ImageData
from anytime.objectives import Objective
from anytime.support.documents import CHARACTERS, TooLarge, check_text, parse_yaml, read_limited
from anytime.support.names import import_subclass, nearest
from anytime.support.text import one_line, quoted
from anytime.support.trust import UntrustedName, is_untrusted
from anytime.training import regimes, schedules
from anytime.training.fit import Settings
from anytime.training.recipes import recipe_file
from anytime.training.regimes.base import Regime
from anytime.training.schedules import Schedule
from anytime.training.written import as_written, is_single, is_text, kinds_of, texts_of

Config = dict[str, Any]

SECTIONS = ("model", "data", "objective", "optimizer", "schedule", "regime")
_SKIPPED = {  # arguments that users cannot give, and why
    "model": {"num_classes": "is given by the data set", "in_channels": "is given by the data set"},
    "data": {"seed": "follows --seed"},
    "optimizer": {"params": "are the model's parameters"},
}
_OFFERED_BY: dict[str, tuple[ModuleType, type]] = {
    "data": (anytime.data, ImageData),
    "objective": (objectives, Objective),
    "optimizer": (torch.optim, torch.optim.Optimizer),
    "schedule": (schedules, Schedule),
    "regime": (regimes, Regime),
}
_RENAMED = {"schedule": {"steps": "MultiStep"}}  # old names in saved files, folded as in `canonical_name`
DEFAULTS: Config = {
    "objective": {"class_path": "Weighted", "init_args": {}},
    "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}},
    "schedule": {"class_path": "OneCycle", "init_args": {}},
    "regime": {"class_path": "Joint", "init_args": {}},
}


class UsageError(ValueError):
    """The command or recipe asks for something that does not exist or makes no sense."""

    exit_code = 2


def offered(section: str) -> dict[str, Callable[..., Any]]:
    """The classes and factories that the library offers for a section, by canonical name."""
    if section == "model":
        return {name: registry.find_factory(name) for name in registry.list_models()}
    if section == "data":
        return {name: getattr(anytime.data, name) for name in anytime.data.list_datasets()}
    module, base = _OFFERED_BY[section]
    return {k: v for k, v in vars(module).items() if inspect.isclass(v) and issubclass(v, base) and v is not base}


def find(section: str, name: str) -> Callable[..., Any]:
    """The class or factory behind a name in a resolved configuration.

    Raises:
        UsageError: Nothing has this name; the message suggests the nearest.
        UntrustedName: The name is an import path from a file, and the user has not consented to it.
    """
    what = "data set" if section == "data" else section
    try:
        if "." in name:
            return registry.find_factory(name) if section == "model" else import_subclass(name, _OFFERED_BY[section][1], what)
    except UntrustedName:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    known = offered(section)
    if name not in known:
        hint = nearest(name, known)
        raise UsageError(f"unknown {what} {name!r}{hint} (or the import path of a custom class, package.module.Class)")
    return known[name]


def canonical_name(section: str, name: str) -> str:
    """The name that a resolved configuration holds: as `offered`, or the import path of a custom class.

    Names other than models' are found whatever their case, hyphens and underscores. An import path into this library or
    torch.optim counts by its last component, so that files written before a module moved still load.

    Raises:
        UsageError: Nothing has this name; the message suggests the nearest.
    """
    package, _, last = name.rpartition(".")
    if not package or f"{package}.".startswith(("anytime.", "torch.optim.")):
        fold = str if section == "model" else lambda text: text.replace("_", "").replace("-", "").lower()
        names = {fold(known): known for known in offered(section)} | _RENAMED.get(section, {})
        if fold(last) in names:
            return names[fold(last)]
    find(section, name)
    return name


def top_level_keys() -> list[str]:
    """The keys that a recipe may have at its top level."""
    return [*SECTIONS, *(field.name for field in fields(Settings))]


def build_parser(names: dict[str, str]) -> ArgumentParser:
    """The parser of `anytime train` for classes given by section and name, made from the constructors' signatures."""
    parser = ArgumentParser(prog="anytime train", exit_on_error=False, allow_abbrev=False)
    for section, name in names.items():
        target = find(section, name)
        add = parser.add_class_arguments if inspect.isclass(target) else parser.add_function_arguments
        add(target, section, skip=set(_SKIPPED.get(section, ())), fail_untyped=False)
    parser.add_class_arguments(Settings)
    return parser


@functools.cache
def _arguments(section: str, name: str) -> tuple[str, ...]:
    """Names of the arguments that can be given to a class."""
    given = build_parser({section: name}).get_defaults().get(section)
    return tuple(vars(given)) if given is not None else ()


def _hints(parser: ArgumentParser) -> dict[str, Any]:
    """The types of the arguments of a parser."""
    return {action.dest: getattr(action, "_typehint", Any) for action in parser._actions}


@functools.cache
def _section_hints(section: str = "", name: str = "") -> dict[str, Any]:
    """The types of the settings, and of the arguments of a class."""
    return _hints(build_parser({section: name} if section else {}))


def _check_argument(section: str, name: str, argument: str) -> None:
    if reason := _SKIPPED.get(section, {}).get(argument):
        raise UsageError(f"{section}.{argument} {reason}, leave it out")
    valid = _arguments(section, name)
    if argument not in valid:
        hint = nearest(argument, valid) if valid else "; it takes none"
        raise UsageError(f"{name.rpartition('.')[2]} has no argument {section}.{argument}{hint}")


def read_recipe(path: str | Path) -> Config:
    """A recipe file, or `recipes/NAME` of the library, with canonical names and every key checked.

    Raises:
        UsageError: No such file, not a YAML mapping, an unknown key or name (the message names the nearest valid one).
    """
    try:
        content = read_limited(recipe_file(path), CHARACTERS)
        recipe = parse_yaml(content, f"recipe {path}")
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        return _as_written(resolve_recipe(recipe), parse_yaml(content, f"recipe {path}", as_text=True))
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error}") from error


def _as_written(recipe: Config, text: Any) -> Config:
    """The recipe with its texts as `text` has them: the same document with all values as text."""
    for key, value in flatten(recipe).items():
        section, _, argument = key.partition(".")
        hints = _section_hints(section, recipe[section]["class_path"]) if argument else _section_hints()
        holder, written = (recipe[section]["init_args"], text[section]["init_args"]) if argument else (recipe, text)
        holder[argument or section] = as_written(value, written[argument or section], key, hints.get(key, Any))
    return recipe


def _flag_value(value: Any) -> str:
    """A value of a recipe as a flag's."""
    return value if isinstance(value, str) else json.dumps(value)


def resolve_recipe(recipe: Config) -> Config:
    """The same recipe with canonical names; raises `UsageError` for unknown names and keys."""
    if not isinstance(recipe, dict):
        raise UsageError(f"a recipe must be a mapping like 'model: anytimenet', got {type(recipe).__name__}")
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
            name, arguments = canonical_name(key, value["class_path"]), value.get("init_args") or {}
            if not isinstance(arguments, dict):
                raise UsageError(f"{key}.init_args must be a mapping, got {arguments!r}")
            for argument in arguments:
                _check_argument(key, name, str(argument))
            value = {"class_path": name, "init_args": arguments}
        resolved[key] = value
    return resolved


def _layer(below: Config, above: Config) -> Config:
    """`above` over `below`: arguments stay where both name the same class; another class starts from its own defaults."""
    layered = below | above
    for section in below.keys() & above.keys() & set(SECTIONS):
        old, new = below[section], above[section]
        if old["class_path"] == new["class_path"]:
            layered[section] = new | {"init_args": old["init_args"] | new["init_args"]}
    return layered


def flatten(config: Config) -> dict[str, Any]:
    """The arguments and settings of a configuration by the flags that set them: `{"model.width": 8, "epochs": 3}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= {f"{key}.{argument}": v for argument, v in value["init_args"].items()} if key in SECTIONS else {key: value}
    return flat


def _split_flags(flags: Sequence[str]) -> list[tuple[str, str | None]]:
    """Flags with their values: `--epochs 3 --model.width=8` is `[("--epochs", "3"), ("--model.width", "8")]`."""
    pairs: list[tuple[str, str | None]] = []
    pending = list(reversed(flags))
    while pending:
        flag, equals, value = pending.pop().partition("=")
        follows = not equals and flag.startswith("--") and pending and not pending[-1].startswith("--")
        pairs.append((flag, value if equals else pending.pop() if follows else None))
    return pairs


def named_classes(flags: Sequence[str]) -> dict[str, str]:
    """Canonical names by section, from flags such as `--model NAME`."""
    names: dict[str, str] = {}
    for flag, name in _split_flags(flags):
        section = flag.removeprefix("--")
        if flag.startswith("--") and section in SECTIONS:
            if not name:
                raise UsageError(f"--{section} needs a name: {', '.join(offered(section))}, or an import path")
            names[section] = canonical_name(section, name)
    return names


def _check_flag(flag: str, value: str | None, names: dict[str, str]) -> None:
    key = flag[2:].removesuffix("+")
    section, _, argument = key.partition(".")
    if section not in top_level_keys():
        valid = [f"--{key}" for key in (*top_level_keys(), "config", "run", "overwrite", "resume")]
        raise UsageError(f"unknown option --{key}{nearest(f'--{section}', valid)}")
    if section in SECTIONS:
        _check_argument(section, names[section], argument)
    if value is None:
        raise UsageError(f"{flag} needs a value")


def parse(flags: Sequence[str], recipes: Iterable[str | Path] = ()) -> Config:
    """Defaults, then recipes in order, then flags: the resolved configuration of a training.

    Where a later one names the class that is already there, the arguments given before stay; another class starts from its
    own defaults.

    Raises:
        UsageError: Unknown names or keys, values of the wrong type, no model or no data set.
    """
    base = functools.reduce(_layer, map(read_recipe, recipes), DEFAULTS)
    named = named_classes(flags)
    pairs = [(flag, value) for flag, value in _split_flags(flags) if flag not in {f"--{section}" for section in named}]
    for key, text in [*flatten(base).items(), *pairs]:
        _check_length(key, text)  # jsonargparse reads texts as YAML
    if stray := [flag for flag, _ in pairs if not flag.startswith("--")]:
        raise UsageError(f"unexpected {stray[0]!r}: options begin with --, e.g. --model {next(iter(offered('model')))}")
    base = _layer(base, {section: {"class_path": name, "init_args": {}} for section, name in named.items()})
    for section, what in {"model": "model", "data": "data set"}.items():
        if section not in base:
            raise UsageError(f"no {what} given; use --{section} NAME (see `anytime {what.replace(' ', '')}s`)")
    names = {section: base[section]["class_path"] for section in SECTIONS}
    for flag, value in pairs:
        _check_flag(flag, value, names)
    parser, values = build_parser(names), flatten(base)
    hints = _hints(parser)
    texts = texts_of(values, pairs, hints)
    parser.set_defaults({key: None for key, value in values.items() if value is None})
    below = [  # as flags, so that recipes and flags are converted and checked in one way
        f"--{key}={_flag_value(value)}" for key, value in values.items() if value is not None and key not in texts
    ]
    above = [f"{flag}={value}" for flag, value in pairs if flag[2:].removesuffix("+") not in texts]
    given = [*below, *above, *(f"--{key}=text" for key in texts)]  # jsonargparse reads even 007 and #1 as YAML
    keys = values.keys() | {flag[2:].removesuffix("+") for flag, _ in pairs}
    if missing := [action.dest for action in parser._actions if action.required and action.dest not in keys]:
        raise UsageError(f"{missing[0]} must be given")
    for key, value in values.items():  # jsonargparse takes a list for a text
        if isinstance(value, list | dict) and is_single(hints.get(key, Any)):
            raise UsageError(_wrong_type(key, hints[key], value))
    if is_untrusted():
        _reject_imports(parser, values)
    try:
        plain = yaml.safe_load(parser.dump(parser.parse_args(given), skip_unset=False))
    except (ArgumentError, TypeError, ValueError) as error:
        raise UsageError(_wrong_value(parser, given) or one_line(error)) from error
    for key, text in texts.items():
        section, _, argument = key.partition(".")
        (plain[section] if argument else plain)[argument or section] = text
    return {
        key: {"class_path": names[key], "init_args": plain.get(key) or {}} if key in SECTIONS else plain[key]
        for key in top_level_keys()
    }


def _check_length(key: str, text: Any) -> None:
    """Raises UsageError if a text in a value would expand without end."""
    try:
        check_text(text, key)
    except TooLarge as error:
        raise UsageError(str(error)) from error


_PLAIN = {..., str, int, float, bool, type(None), bytes, list, tuple, dict, set, Any, os.PathLike, Path}  # needs no import


def _reject_imports(parser: ArgumentParser, values: Config) -> None:
    """Raises UsageError if jsonargparse would import a value: a class, by path, for an argument that takes objects.

    Where anything may be given, jsonargparse reads texts as YAML and imports every `class_path` in them, at any depth.
    """
    hints = _hints(parser)
    for key, value in values.items():
        kinds = kinds_of(hints.get(key, Any))
        parts = value if isinstance(value, list) else [value]
        plain = all(part is None or isinstance(part, int | float | (str if str in kinds else int)) for part in parts)
        if (not set(kinds) <= _PLAIN and not plain) or (not is_text(hints.get(key, Any)) and _names_class(value)):
            raise UsageError(f"{key} must be a plain value in a recipe, got {quoted(value)}; give it as a flag")


def _names_class(value: Any) -> bool:
    """Whether a value holds the key `class_path`, or a text that may: only a backslash can hide it in YAML or JSON."""
    if isinstance(value, dict):
        return "class_path" in value or any(map(_names_class, [*value.keys(), *value.values()]))
    if isinstance(value, list):
        return any(map(_names_class, value))
    return isinstance(value, str) and ":" in value and ("class_path" in value or "\\" in value)


def _wrong_value(parser: ArgumentParser, given: Sequence[str]) -> str:
    """One sentence about the first flag whose value has the wrong type; empty if there is none.

    jsonargparse's exceptions carry only prose, so each value is tried by itself, where flag, type and value are known.
    """
    hints = {option: getattr(action, "_typehint", Any) for action in parser._actions for option in action.option_strings}
    for flag, value in (text.split("=", 1) for text in given):
        hint, key = hints.get(flag, Any), flag.removesuffix("+")
        single = ArgumentParser(exit_on_error=False)
        single.add_argument(key, type=hint)
        try:
            single.parse_args([f"{flag}={value}"])
        except (ArgumentError, TypeError, ValueError):
            choices = [text for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for text in get_args(kind)]
            guess = nearest(value, map(str, choices))
            return _wrong_type(key[2:], hint, value) + (guess if guess.startswith("; did") else "")
    return ""


def _wrong_type(key: str, hint: Any, value: Any) -> str:
    return f"{key} must be {' or '.join(_written(hint)) or 'of another type'}, got {quoted(value)}"


def _written(hint: Any) -> list[str]:
    """The alternatives of a type, without those that a recipe cannot hold: `float | Tensor | None` gives float and null."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return [text for kind in get_args(hint) for text in _written(kind)]
    if origin is Literal:
        return [f"one of {', '.join(map(repr, get_args(hint)))}"]
    if hint is type(None):
        return ["null"]
    return [hint.__name__ if origin is None else str(hint)] if (origin or hint).__module__ == "builtins" else []
