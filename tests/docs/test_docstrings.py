"""The examples in docstrings work as they stand, with their own imports, and every public name has a docstring."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

from anytime import registry

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MODULES = [
    ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for file in SOURCES
    if re.search("^ *>>> ", file.read_text(encoding="utf-8"), re.MULTILINE)
]
PUBLIC = re.findall(r"^   (anytime[\w.]*)$", (ROOT / "docs/reference/api.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.list_models()  # finds all
    for known in ("_FACTORIES", "_VARIANTS"):  # an example registers a model
        monkeypatch.setattr(registry, known, {**getattr(registry, known)})
    said: list[str] = []
    tests = [test for test in doctest.DocTestFinder().find(importlib.import_module(name), name) if test.examples]
    assert tests
    for test in tests:
        test.globs = {"__name__": name}  # nothing that the reader would not have
        doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_modules_say_what_they_offer(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert len(module.__all__) == len({*module.__all__})
    for offered in module.__all__:
        thing = getattr(module, offered)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__module__.startswith("anytime."), f"{name}.{offered} belongs to another library"
            assert thing.__doc__, f"{name}.{offered} has no docstring"


@pytest.mark.parametrize("name", PUBLIC)
def test_arguments_in_docstrings_are_no_links_to_functions_of_their_name(name: str) -> None:
    module = importlib.import_module(name)
    linked = {*module.__all__, *(page.removeprefix(f"{name}.") for page in PUBLIC)}
    for offered in module.__all__:
        thing = getattr(module, offered)
        if inspect.isfunction(thing) or (inspect.isclass(thing) and not issubclass(thing, Exception)):
            named = linked & {*inspect.signature(thing).parameters} - {offered}
            found = [argument for argument in named if re.search(f"(?<!`)`{argument}`(?!`)", thing.__doc__ or "")]
            assert found == [], f"{name}.{offered}"


def test_the_reference_has_every_module_that_the_pages_import_from() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.py"), ROOT / "README.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    found = {*re.findall(r"from (anytime(?:\.\w+)*) import (\w+)", text)}
    assert len(found) > 5
    assert [f"{module}.{name}" for module, name in sorted(found) if not {module, f"{module}.{name}"} & {*PUBLIC}] == []
