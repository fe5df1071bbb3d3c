"""Neural networks that hold an answer at any moment, and answer better the longer they may compute."""

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.orig_argv[-len(sys.argv)] in ("anytime", "-manytime"):
    del sys.path[0]  # of `python -m anytime`: files of the working directory must not shadow what is imported from here on

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from anytime.registry import add_source
from anytime.support.elsewhere import import_elsewhere
from anytime.version import __version__ as __version__

if sys.flags.safe_path:  # nothing of the working directory is to run here, as in the processes that the command starts
    import_elsewhere()

if TYPE_CHECKING:
    from anytime.public import *  # noqa: F403
    from anytime.public import __all__ as __all__


def _everything() -> dict[str, Any]:
    """What `public` offers, by name; torch and the families are imported now, if they were not yet."""
    public = importlib.import_module("anytime.public")
    return {"__all__": public.__all__} | {name: getattr(public, name) for name in public.__all__}


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__all__" or not name.startswith("__"):  # inspection asks for __wrapped__ and the like
        globals().update(_everything())
    if name in globals():
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_everything()})


add_source(_everything)
