"""Objects by name: suggestions for a wrong name, and imports by path."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anytime.support.text import quoted
from anytime.support.trust import require_consent

LISTED = 40  # names that an error lists at most
LONGEST = 200  # characters of a name; longer ones are no slip
_PACKAGE = Path(__file__).parents[1]


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'x'?`, or at most `LISTED` of the valid names."""
    valid = list(dict.fromkeys(valid))
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5) if len(name) <= LONGEST else []
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid: {', '.join(valid[:LISTED])}" + (f" and {len(valid) - LISTED:,} more" if len(valid) > LISTED else "")


def import_object(path: str, what: str) -> Any:
    """The class or function at an import path such as `package.module.Class`.

    This library's own classes and functions are looked up; one whose module has moved is found by its last component, so that
    old directories still load. Any other path that comes from a file needs the user's consent, see `support.trust`.

    Args:
        path: The import path.
        what: What the path should name ("model", "loss"); it begins the error message.

    Raises:
        ValueError: It is no import path, or leads nowhere.
        UntrustedName: The path comes from a file, and the user has not consented to importing it.
    """
    if not isinstance(path, str):
        raise ValueError(f"{what} must be the name or import path of a class or function, got {quoted(path)}")
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"{what} {path[:100]!r} cannot be imported: it is no import path, package.module.Name")
    ours = path.startswith(f"{_PACKAGE.name}.")
    if not ours:
        require_consent(path, what)
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # last, so that the user's files shadow no library
    try:
        found = _own(module, name) if ours else getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} {quoted(path)} cannot be imported: {error}") from error
    return found


def _own(module: str, name: str) -> Any:
    """A class or function of this library, from `module` or, if that has moved, from the module that defines it now."""
    file = _PACKAGE.joinpath(*module.split(".")[1:])
    if file.name != "__main__" and (file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()):
        found = getattr(importlib.import_module(module), name, None)
        if str(getattr(found, "__module__", "")).startswith(f"{_PACKAGE.name}."):
            return found
    definition = re.compile(rf"^(?:class|def) {re.escape(name)}\b", re.MULTILINE)
    defining = [
        ".".join(file.relative_to(_PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for file in sorted(_PACKAGE.rglob("*.py"))
        if definition.search(file.read_text(encoding="utf-8"))
    ]
    if not defining:
        raise ImportError(f"{_PACKAGE.name} has no class or function {name!r} in {module}")
    nearest_module = max(defining, key=lambda new: difflib.SequenceMatcher(None, new, module).ratio())
    return getattr(importlib.import_module(nearest_module), name)


def import_subclass(path: str, base: type, what: str) -> Any:
    """The subclass of `base` at an import path, see `import_object`.

    Raises:
        ValueError: The path leads nowhere or to something else.
        UntrustedName: The path comes from a file, and the user has not consented to importing it.
    """
    found = import_object(path, what)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{what} {path!r} is not a subclass of {base.__qualname__}")
    return found
