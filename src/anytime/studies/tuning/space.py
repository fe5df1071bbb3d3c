"""The space of a search: options of `anytime train`, each with its range or choices."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from anytime.support.documents import CHARACTERS, parse_json, parse_yaml, read_limited
from anytime.support.names import nearest
from anytime.support.text import one_line, quoted
from anytime.support.trust import UntrustedName
from anytime.training.config import SECTIONS, Config, UsageError, find, flatten, parse, resolve_recipe

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KINDS = ("float", "log", "int")
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """Numbers in low..high: real ones, real ones whose logarithm is uniform ("log"), or whole ones ("int")."""

    kind: str
    low: float
    high: float


@dataclass(frozen=True)
class Choices:
    """One of several values; lists and mappings are held as JSON."""

    values: tuple[Value, ...]


Space = Mapping[str, Range | Choices]


def read_space(path: Path) -> Space:
    """The space in a YAML file.

    A key is an option of `anytime train` without its dashes. Its value is a list of choices, or a range: `{float: [0, 1]}`,
    `{log: [0.003, 0.3]}`, `{int: [2, 8]}`.

    Raises:
        UsageError: It cannot be read, is no mapping, or a value has another form.
    """
    try:
        content = parse_yaml(read_limited(path, CHARACTERS), f"space {path}")
    except OSError as error:
        raise UsageError(f"space {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not isinstance(content, dict) or not content:
        raise UsageError(
            f"space {path} must be a mapping such as 'optimizer.lr: {{log: [0.003, 0.3]}}', got {quoted(content)}"
        )
    try:
        return {str(key): _read(str(key), value) for key, value in content.items()}
    except UsageError as error:
        raise UsageError(f"space {path}: {error}") from error


def _read(key: str, value: Any) -> Range | Choices:
    if isinstance(value, list) and value:
        return Choices(tuple(json.dumps(each) if isinstance(each, list | dict) else each for each in value))
    forms = "a list of choices, {float: [low, high]}, {log: [low, high]} or {int: [low, high]}"
    if not isinstance(value, dict) or len(value) != 1:
        raise UsageError(f"{key} must be {forms}, got {quoted(value)}")
    [(kind, ends)] = value.items()
    if kind not in KINDS:
        raise UsageError(f"{key} must be {forms}, got {quoted(value)}{nearest(str(kind), KINDS)}")
    numbers = [_number(end) for end in ends] if isinstance(ends, list) and len(ends) == 2 else [math.nan]
    if not all(map(math.isfinite, numbers)) or numbers[0] >= numbers[1]:
        raise UsageError(f"{key} must have two ends, the lower one first, got {quoted(ends)}")
    if kind == "log" and numbers[0] <= 0:
        raise UsageError(f"{key} must lie above 0, because its logarithm is searched, got {quoted(ends)}")
    if kind == "int" and not all(number.is_integer() for number in numbers):
        raise UsageError(f"{key} must have whole numbers as its ends, got {quoted(ends)}")
    return Range(kind, *numbers)


def _number(given: Any) -> float:
    """A number of a YAML document, where 1e-4 is a text; NaN if it is none."""
    try:
        return math.nan if isinstance(given, bool | list) else float(given)
    except (TypeError, ValueError):
        return math.nan


def as_flags(values: Mapping[str, Value]) -> tuple[str, ...]:
    """A set of values as it would be typed; a training gets it by `as_recipe`."""
    return tuple(f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())


def as_recipe(values: Mapping[str, Value], config: Config) -> Config:
    """A set of values as a recipe; `config` names the classes that it does not choose.

    The values come from a file, the space, so what they name is imported only with consent, as from any recipe.
    """
    recipe: Config = {}
    for key, value in values.items():
        section, _, argument = key.partition(".")
        if section not in SECTIONS:
            recipe[key] = _plain(value)
            continue
        name = values.get(section, config.get(section, {}).get("class_path"))
        part = recipe.setdefault(section, {"class_path": name, "init_args": {}})
        if argument:
            part["init_args"][argument] = _plain(value)
    return recipe


def _plain(value: Value) -> Any:
    """A value of a recipe; a list or mapping is held as JSON."""
    if not (isinstance(value, str) and value[:1] in ("[", "{")):
        return value
    try:
        return parse_json(value, "a choice")
    except ValueError:  # a text such as the pattern [a-c]*
        return value


def ends_of(part: Range | Choices) -> tuple[Value, ...]:
    """The values of one option that are checked before a search: all choices, or both ends of a range."""
    if isinstance(part, Choices):
        return part.values
    return (int(part.low), int(part.high)) if part.kind == "int" else (part.low, part.high)


def check_space(space: Space, source: Path, flags: Sequence[str], recipe: Path) -> Config:
    """The configuration of the first set: the first value of each option. Every end and choice is parsed as in a recipe.

    Raises:
        UsageError: An option does not exist, is given by a flag as well, is the seed, or a value is no value of it.
        UntrustedName: A value is an import path, the names come from a file, and the user has not consented to it.
    """
    first = {key: ends_of(part)[0] for key, part in space.items()}
    with TemporaryDirectory() as folder:
        file = Path(folder, source.name)

        def parsed(values: Mapping[str, Value], config: Config) -> Config:
            chosen = resolve_recipe(as_recipe(values, config))
            file.write_text(yaml.safe_dump(chosen, allow_unicode=True), encoding="utf-8")
            found = parse(flags, [recipe, file])
            if any(key.startswith("objective") for key in values):
                find("objective", found["objective"]["class_path"])(**found["objective"]["init_args"])  # finds its loss
            return found

        known = parsed({key: value for key, value in first.items() if key in SECTIONS}, {})
        valid = [*SECTIONS, *(key for key in flatten(known) if key != "seed")]
        given = {flag.removeprefix("--").partition("=")[0].removesuffix("+") for flag in flags if flag.startswith("--")}
        for key in space:
            if key == "seed":
                raise UsageError(f"space {source}: the seed is no option to choose; give --seed to train with another one")
            if key not in valid:
                raise UsageError(f"space {source}: there is no option {key!r}{nearest(key, valid)}")
            if key in given:
                raise UsageError(f"space {source}: {key} is also given as an option, leave out one of them")
        try:
            for key, part in space.items():
                for value in ends_of(part)[1:]:
                    parsed(first | {key: value}, known)
            return parsed(first, known)
        except UntrustedName:
            raise
        except (ValueError, TypeError) as error:
            raise UsageError(f"space {source}: {one_line(error)}") from error


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for key, part in space.items():
        if isinstance(part, Choices):
            found[key] = CategoricalDistribution(part.values)
        elif part.kind == "int":
            found[key] = IntDistribution(int(part.low), int(part.high))
        else:
            found[key] = FloatDistribution(part.low, part.high, log=part.kind == "log")
    return found
