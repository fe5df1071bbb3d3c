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
ROOT = Path(__file__).parents[1]

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
    {"cli", "public"},
    {"__init__", "__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
RUNTIME_USES = {"registry", "model", "combine", "stopping", "trace", "cost", "saving", "support", "runtime"}
LINES = 400


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@functools.cache
def imported(module: str, text: str) -> list[tuple[list[str], int]]:
    """What a module imports, and the line: the names that it may mean, the longest first (a module or something in one).

    Literal names in calls of `import_module` and `__import__` count.
    """
    found: list[tuple[list[str], int]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [([alias.name], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are absolute"
            found += [([f"{node.module}.{alias.name}", str(node.module)], node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found += [([str(node.args[0].value)], node.lineno)] if called in ("import_module", "__import__") else []
    return found


def imports(module: str, text: str, modules: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """The modules of this library that a module imports, late imports included: name, line."""
    for names, line in imported(module, text):
        yield from ((name, line) for name in [name for name in names if name in modules][:1])


def lost_imports(texts: dict[str, str], modules: dict[str, Path]) -> list[str]:
    """Imports from modules of this library that do not exist, as sentences."""
    return [
        f"{module}, line {line}: there is no module {names[-1]}"
        for module, text in texts.items()
        for names, line in imported(module, text)
        if names[-1].partition(".")[0] == PACKAGE.name and not modules.keys() & set(names)
    ]


def own_packages(texts: dict[str, str], modules: dict[str, Path]) -> list[str]:
    """Imports of a package by a file inside it, which runs before the package is complete, as sentences."""
    return [
        f"{module}, line {line}: it must import the part of {name} that it needs"
        for module, text in texts.items()
        for name, line in imports(module, text, modules)
        if module.startswith(f"{name}.") and line not in type_only(text)
    ]


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
        for name, line in imports(module, text, modules):
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
        others = {room(name) for name, line in imports(module, text, MODULES) if line not in type_only(text)}
        arrows.setdefault(room(module), set()).update(others - {room(module)})
    assert not (found := circle(arrows)), " -> ".join(found)


def test_no_circle_of_files() -> None:
    """Late imports count, and what the file of a package imports."""
    arrows = {
        module: {name for name, line in imports(module, text, MODULES) if line not in type_only(text)}
        for module, text in TEXTS.items()
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


def test_every_imported_module_exists() -> None:
    assert not (lost := lost_imports(TEXTS, MODULES)), "\n".join(lost)


def test_no_file_imports_its_own_package() -> None:
    assert not (found := own_packages(TEXTS, MODULES)), "\n".join(found)


def test_lost_and_hidden_imports_are_named() -> None:
    modules = dict.fromkeys(("anytime", "anytime.support.files", "anytime.cli", "anytime.data", "anytime.data.base"), Path())
    hidden = "import importlib\ndef f():\n    importlib.import_module('anytime.cli')\n    __import__('anytime.cli')\n"
    assert wrong_arrows({"anytime.support.files": hidden}, modules) == [
        f"anytime.support.files, line {line}: support must not import cli (anytime.cli)" for line in (3, 4)
    ]
    lost = (
        "import anytime.nothing\nfrom anytime.gone import x\nfrom anytime.data import y\nimport_module('anytime.data.gone')\n"
    )
    assert lost_imports({"anytime.cli": lost}, modules) == [
        "anytime.cli, line 1: there is no module anytime.nothing",
        "anytime.cli, line 2: there is no module anytime.gone",
        "anytime.cli, line 4: there is no module anytime.data.gone",
    ]
    inner = "from anytime.data import base\nfrom anytime.data import ImageData\nimport torch\n"
    assert own_packages({"anytime.data.base": inner}, modules) == [
        "anytime.data.base, line 2: it must import the part of anytime.data that it needs"
    ]


def long_files(root: Path) -> list[str]:
    """Python files of more than 400 lines below a folder, as sentences."""
    counts = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in sorted(root.rglob("*.py"))}
    return [f"{file} has {count} lines; split it, {LINES} are enough" for file, count in counts.items() if count > LINES]


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples", "edge"])
def test_files_stay_small(folder: str) -> None:
    assert not (found := long_files(ROOT / folder)), "\n".join(found)


def test_a_long_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text("\n" * LINES)
    (tmp_path / "long.py").write_text("\n" * (LINES + 1))
    assert long_files(tmp_path) == [f"{tmp_path / 'long.py'} has 401 lines; split it, 400 are enough"]


def test_the_root_holds_twelve_files() -> None:
    files = {file.stem for file in PACKAGE.glob("*.py")}
    assert files == {
        *("__init__", "__main__", "cli", "combine", "cost", "model"),
        *("pretrained", "public", "registry", "saving", "testing", "version"),
    }


def test_the_page_shows_the_same_order() -> None:
    """docs/architecture.md shows the rooms, floor by floor."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    block = page.split("```text\n", 1)[1].split("```", 1)[0]
    shown = [{name.strip() for name in line.split(",")} for line in block.strip().splitlines()]
    assert shown == [rooms & {room(m) for m in MODULES} for rooms in ORDER if rooms & {room(m) for m in MODULES}]
    assert all(FLOOR[min(below)] < FLOOR[min(above)] for below, above in pairwise(shown))
