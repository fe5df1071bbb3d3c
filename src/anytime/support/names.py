"""Objects by name: suggestions for a wrong name, and imports by path."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'x'?`, or the list of valid names."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(valid)}"


def import_object(path: str, what: str) -> Any:
    """The class or function at an import path such as `package.module.Class`.

    A path into this library whose module has moved is resolved by its last component, so that old directories still load.

    Args:
        path: The import path.
        what: What the path should name ("model", "loss"); it begins the error message.

    Raises:
        ValueError: The path leads nowhere.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        moved = _module_of(name) if path.startswith(f"{_PACKAGE.name}.") else None
        if moved is None:
            raise ValueError(f"{what} {path!r} cannot be imported: {error}") from error
    return getattr(importlib.import_module(moved), name)


def _module_of(name: str) -> str | None:
    """The only module of this library that defines a class or function `name` at its top level."""
    definition = re.compile(rf"^(?:class|def) {re.escape(name)}\b", re.MULTILINE)
    found = [file for file in _PACKAGE.rglob("*.py") if definition.search(file.read_text(encoding="utf-8"))]
    if len(found) != 1:
        return None
    return ".".join((_PACKAGE.name, *found[0].relative_to(_PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def import_subclass(path: str, base: type, what: str) -> Any:
    """The subclass of `base` at an import path; a name read from a file may call nothing else.

    Raises:
        ValueError: The path leads nowhere or to something else.
    """
    found = import_object(path, what)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{what} {path!r} is not a subclass of {base.__qualname__}")
    return found
