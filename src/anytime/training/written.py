"""Values of recipes and flags that stay as they are written: texts, such as the run 007, and names of classes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

CLASSES = "data.classes"
NULL = ("null", "~")  # as flags; NULL and Null are names
_LOOKS_NULL = (*NULL, "Null", "NULL", "")
_ITEM = re.compile(r"""\s*(?:("(?:[^"\\]|\\.)*"|'(?:[^']|'')*')|([^,]*?))\s*(?:,|$)""")


def kinds_of(hint: Any) -> list[Any]:
    """The types that a hint is made of: `float | list[Tensor]` gives float and Tensor."""
    origin = get_origin(hint)
    if origin is Literal:
        return []
    if origin is Callable:
        return [Callable]
    return [kind for part in get_args(hint) for kind in kinds_of(part)] if get_args(hint) else [hint]


def is_text(hint: Any) -> bool:
    """Whether an argument is a text or a path, or null."""
    kinds = set(kinds_of(hint))
    return str in kinds and kinds <= {str, NoneType, os.PathLike, Path} and get_origin(hint) not in (list, tuple, dict)


def is_single(hint: Any) -> bool:
    """Whether an argument takes one value, and no list or mapping."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return all(map(is_single, get_args(hint)))
    return (origin or hint) in (str, int, float, bool, NoneType, Literal, os.PathLike, Path, Callable)


def as_written(value: Any, text: Any, key: str, hint: Any) -> Any:
    """A value of a recipe, or its text if the argument takes texts and no such value: `weights: 007` is no number.

    Args:
        value: The value.
        text: The same part of the recipe with all values as text.
        key: The argument, such as `data.root`.
        hint: Its type.
    """
    if key == CLASSES:
        if value is None and text in (*NULL, ""):
            return None
        return text if isinstance(text, str | list) else value
    if isinstance(value, list) and isinstance(text, list) and len(value) == len(text):
        parts = (hint, *get_args(hint))
        kinds = [kind for part in parts if get_origin(part) in (list, tuple) for kind in kinds_of(part)]
        return [_scalar(item, written, kinds) for item, written in zip(value, text, strict=True)]
    return _scalar(value, text, kinds_of(hint))


def _scalar(value: Any, text: Any, kinds: Collection[Any]) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = type(value) in kinds or (is_number and float in kinds)
    return text if isinstance(text, str) and is_plain(value) and str in kinds and not fits else value


def is_plain(value: Any) -> bool:
    """Whether a value is a number or a truth value."""
    return isinstance(value, bool | int | float)


def texts_of(
    recipe: Mapping[str, Any], flags: Sequence[tuple[str, str | None]], hints: Mapping[str, Any]
) -> dict[str, list[str] | str | None]:
    """The arguments that are texts or class names, as they are written.

    Args:
        recipe: The values of the recipes by argument.
        flags: Flags with their values, in order.
        hints: The types by argument.
    """
    texts: dict[str, list[str] | str | None]
    texts = {key: value for key, value in recipe.items() if isinstance(value, str) and is_text(hints.get(key, Any))}
    for flag, value in flags:
        if is_text(hints.get(key := flag[2:], Any)) and value is not None:
            texts[key] = None if value in NULL and NoneType in kinds_of(hints[key]) else value
    if (classes := _classes(recipe.get(CLASSES), flags)) is not None or any(flag == f"--{CLASSES}" for flag, _ in flags):
        texts[CLASSES] = classes
    return texts


def _classes(recipe: Any, flags: Sequence[tuple[str, str | None]]) -> list[str] | str | None:
    """The class names of a recipe or of the flags, which may add to them; None for all classes."""
    names = [recipe] if isinstance(recipe, str) and (recipe.startswith("[") or recipe in _LOOKS_NULL) else recipe
    if isinstance(names, list):
        names = [str(name) if is_plain(name) else name for name in names]
        if not all(isinstance(name, str) for name in names):
            return None  # jsonargparse says what is wrong
    added = any(flag == f"--{CLASSES}+" for flag, _ in flags)
    for flag, value in flags:
        if value is None or flag.removesuffix("+") != f"--{CLASSES}":
            continue
        given = None if value in NULL else _listed(value, one=added)
        if flag.endswith("+"):
            before = [] if names is None else [names] if isinstance(names, str) else names
            names = before + (given if isinstance(given, list) else [value])
        else:
            names = given
    return names


def _listed(text: str, one: bool) -> list[str] | str:
    """The names in a list such as `[cat, 007, "a, b"]`; a list of one name is left as it is unless `one` is set.

    `[12]` may also be the name of a class, or a pattern, so the data set decides.
    """
    listed = text.strip()
    if not (listed.startswith("[") and listed.endswith("]")):
        return text
    inner, names, position = listed[1:-1], [], 0
    while position < len(inner):
        found = _ITEM.match(inner, position)
        assert found is not None  # a match reaches at least to the next comma
        if found[1] is not None:
            names.append(str(yaml.load(found[1], yaml.BaseLoader)))
        elif found[2]:
            names.append(found[2])
        position = found.end()
    return names if one or len(names) != 1 or inner.strip() != names[0] else text
