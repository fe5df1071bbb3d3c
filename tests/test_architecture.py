"""The house: rooms import one way, there is no import circle, files stay small."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import anytime

PACKAGE = Path(anytime.__file__).parent

ORDER = (  # a room imports itself and the lines before its own, see docs/architecture.md
    {"support", "version"},
    {"registry"},
    {"saving"},
    {"model"},
    {"cost", "data", "objectives"},
    {"models"},
    {"pretrained", "testing", "trace"},
    {"training", "combine", "analysis"},
    {"stopping", "reporting"},
    {"runtime", "studies"},
    {"export", "server"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
RUNTIME_USES = {"model", "combine", "stopping", "trace", "cost", "saving", "support", "runtime"}
LINES = 400


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(module: str, text: str, modules: dict[str, Path]) -> Iterator[tuple[str, int, bool]]:
    """The modules of this library that a module imports: name, line, and whether they are loaded with it."""
    tree = ast.parse(text)
    lazy = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.dump(outer.test))
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.append(inner if inner in modules else str(node.module))
        for name in names:
            if name in modules:
                yield name, node.lineno, id(node) not in lazy  # type: ignore[attr-defined]


@functools.cache
def type_only(text: str) -> set[int]:
    """Lines of imports that only a type checker sees."""
    guarded = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    return {inner.lineno for node in guarded for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)}


def wrong_arrows(texts: dict[str, str], modules: dict[str, Path]) -> list[str]:
    """Imports against the order, as sentences; those for type checkers do not count."""
    found = []
    for module, text in texts.items():
        here = room(module)
        for name, line, _ in imports(module, text, modules):
            there = room(name)
            if line in type_only(text) or here == there:
                continue
            if FLOOR[there] > FLOOR[here]:
                found.append(f"{module}, line {line}: {here} must not import {there} ({name})")
            if here == "runtime" and there not in RUNTIME_USES:
                found.append(f"{module}, line {line}: runtime must not import {there} ({name})")
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A circle of arrows, its first member again at the end; empty if there is none."""
    done: set[str] = set()

    def walk(place: str, path: list[str]) -> list[str]:
        if place in path:
            return [*path[path.index(place) :], place]
        if place in done:
            return []
        for other in sorted(arrows.get(place, ())):
            if found := walk(other, [*path, place]):
                return found
        done.add(place)
        return []

    for place in arrows:
        if found := walk(place, []):
            return found
    return []


TEXTS = {module: file.read_text(encoding="utf-8") for module, file in MODULES.items()}


def test_every_room_has_its_floor() -> None:
    assert {room(module) for module in MODULES} <= FLOOR.keys()


def test_no_import_against_the_order() -> None:
    assert not (wrong := wrong_arrows(TEXTS, MODULES)), "\n".join(wrong)


def test_no_circle_of_rooms() -> None:
    arrows: dict[str, set[str]] = {}
    for module, text in TEXTS.items():
        others = {room(name) for name, line, _ in imports(module, text, MODULES) if line not in type_only(text)}
        arrows.setdefault(room(module), set()).update(others - {room(module)})
    assert not (found := circle(arrows)), " -> ".join(found)


def test_no_circle_of_files() -> None:
    """Late imports count too; a package's own file only re-exports, so that its parts may import what it names."""
    arrows = {
        module: {name for name, line, _ in imports(module, text, MODULES) if line not in type_only(text)}
        for module, text in TEXTS.items()
        if MODULES[module].name != "__init__.py"
    }
    assert not (found := circle(arrows)), " -> ".join(found)


def test_the_offending_import_is_named() -> None:
    modules = {"anytime.support.files": Path(), "anytime.cli": Path(), "anytime.runtime.steps": Path()}
    modules["anytime.data.base"] = Path()
    texts = {
        "anytime.support.files": "def f():\n    from anytime.cli import main\n",
        "anytime.runtime.steps": "import anytime.data.base\n",
    }
    assert wrong_arrows(texts, modules) == [
        "anytime.support.files, line 2: support must not import cli (anytime.cli)",
        "anytime.runtime.steps, line 1: runtime must not import data (anytime.data.base)",
    ]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_small(module: str) -> None:
    count = len(TEXTS[module].splitlines())
    assert count <= LINES, f"{module} has {count} lines; split it, {LINES} are enough"


def test_the_root_holds_twelve_files() -> None:
    files = {file.stem for file in PACKAGE.glob("*.py")}
    assert files == {
        *("__init__", "__main__", "cli", "combine", "cost", "model"),
        *("pretrained", "registry", "saving", "testing", "trace", "version"),
    }


def test_the_page_shows_the_same_order() -> None:
    """docs/architecture.md shows the rooms, floor by floor."""
    page = (Path(__file__).parents[1] / "docs/architecture.md").read_text(encoding="utf-8")
    block = page.split("```text\n", 1)[1].split("```", 1)[0]
    shown = [{name.strip() for name in line.split(",")} for line in block.strip().splitlines()]
    assert shown == [rooms & {room(m) for m in MODULES} for rooms in ORDER if rooms & {room(m) for m in MODULES}]
    assert all(FLOOR[min(below)] < FLOOR[min(above)] for below, above in pairwise(shown))
