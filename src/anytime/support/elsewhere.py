"""Libraries that read the working directory while they are imported are imported from another one.

matplotlib takes its settings from a `matplotlibrc` there before any other, and 3.10 evaluates part of it as Python. The CUDA
builds of torch come with a library whose search path has an empty entry, so that `libcuda.so.1` is loaded from there before it
is looked for in the system's folders.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_READ = {"torch": os.curdir, "matplotlib": "matplotlibrc"}  # what must be there for an import to be made elsewhere


class ImportsElsewhere:
    """Finds these libraries before the other finders of `sys.meta_path` do."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        spec = PathFinder.find_spec(name, path, target) if name in _READ else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: _elsewhere(_READ[name], execute, module)  # type: ignore[method-assign]
        return spec


def import_elsewhere() -> None:
    """From now on this process imports them with Python's own folder as the working directory."""
    if ImportsElsewhere not in sys.meta_path:
        sys.meta_path.insert(0, ImportsElsewhere)


def _elsewhere(read: str, execute: Any, module: ModuleType) -> None:
    try:
        here = os.getcwd() if os.access(os.curdir, os.X_OK) and os.path.lexists(read) else None
    except FileNotFoundError:  # it has been removed, so it holds nothing
        here = None
    if here is None:
        return execute(module)
    os.chdir(sys.prefix)
    try:
        execute(module)
    finally:
        os.chdir(here)
