"""The recipes that come with the library: `recipes/NAME` in a checkout, and in the installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")


def recipe_file(path: str | Path) -> Path:
    """The path as it is, or the library's own file if it is `recipes/NAME` and the working directory holds none."""
    given = Path(path)
    if given.parts[:-1] != ("recipes",) or given.exists():
        return given
    return next((folder / given.name for folder in _FOLDERS if (folder / given.name).is_file()), given)
