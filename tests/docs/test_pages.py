"""Pages are true: their code runs and prints what they show, their commands have these options, the picture is drawn anew."""

import ast
import builtins
import functools
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

import anytime
from anytime.cli import COMMANDS, main
from anytime.registry import list_models
from anytime.support.folders import OWN
from decision_guide import QUESTIONS, drawing
from fill_leaderboard import PAGE, README, ROOT, TABLE, filled_page, filled_readme

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(
    file for folder in ("start", "tutorials", "howto", "about", "reference") for file in (DOCS / folder).glob("*.md")
)


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_ten_lines_print_what_the_page_shows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(anytime.profile, warmup=1, contract=False)
    monkeypatch.setattr(anytime, "profile", lambda model, size, repeats: quick(model, size, repeats=min(repeats, 2)))
    (code,), (shown,) = blocks("start/quickstart", "python"), blocks("start/quickstart", "text")
    exec(compile(code, "quickstart.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(shown.splitlines()) == 7
    for line, expected in zip(printed[:-1], shown.splitlines(), strict=False):  # the last depends on what else runs
        (words, share), (expected_words, expected_share) = (text.rsplit(" ", 1) for text in (line, expected))
        assert words == expected_words
        assert abs(int(share[:-1]) - int(expected_share[:-1])) <= 1
    assert printed[-1].startswith("within 50 ms: ")


@pytest.mark.parametrize("page", ["howto/stopping_rule", "howto/add_a_model"])
def test_code_of_how_to_pages_runs(page: str) -> None:
    names: dict[str, Any] = {}
    for code in blocks(page, "python"):
        exec(compile(code, f"{page}.md", "exec"), names)
    assert names["model"].num_steps >= 2


@pytest.mark.parametrize("page", ["camera", "cascade", "comparison"])
def test_code_of_tutorials_has_all_that_it_names(page: str) -> None:
    text = (DOCS / f"tutorials/{page}.md").read_text(encoding="utf-8")
    programs: dict[str, str] = {}
    for name, first, end in re.findall(r"examples/(\w+)\.py\n:start-at: (.*)\n:end-before: (.*)\n", text):
        code = (DOCS.parent / f"examples/{name}.py").read_text(encoding="utf-8")
        at = code.rindex("\n", 0, code.index(first)) + 1
        programs[name] = programs.get(name, "") + code[at : code.rindex("\n", 0, code.index(end, at)) + 1]
    assert programs
    for name, code in programs.items():
        assert f"](../gallery/{name}.rst)" in text
        nodes = [*ast.walk(ast.parse(code))]
        read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        made |= {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
        assert read - made - {*dir(builtins)} == set()


def commands() -> list[tuple[str, list[str]]]:
    found = []
    for file in PAGES:
        for line in re.findall(r"^\$ (anytime .*)$", file.read_text(encoding="utf-8"), re.MULTILINE):
            name, *rest = shlex.split(line, comments=True)[1:]
            if name != "train":  # whose options tests/test_readme.py parses
                found.append((name, [word.split("=")[0] for word in rest if word.startswith("--")]))
    return found


def test_commands_have_the_options_of_the_pages(capsys: pytest.CaptureFixture[str]) -> None:
    shown = commands()
    assert len(shown) >= 10
    helps = {}
    for name in {name for name, _ in shown}:
        assert name in COMMANDS
        assert main([name, "--help"]) == 0
        helps[name] = {*re.findall(r"--[a-z-]+", capsys.readouterr().out)}
    assert [(name, flag) for name, flags in shown for flag in flags if flag not in helps[name]] == []


def test_the_decision_guide_is_drawn_anew_and_names_models() -> None:
    assert (DOCS / "images/decision_guide.svg").read_text(encoding="utf-8") == drawing()
    names = [name for *_, answers in QUESTIONS for *_, named in answers for name in re.findall(r"\b[a-z_]+\b\*?", named)]
    known = [*list_models(), *COMMANDS, "anytime", "edge", "regime", "joint", "mixed", "or", "heads_only", "watch"]
    assert [name for name in names if not any(model.startswith(name.rstrip("*")) for model in known)] == []


def test_the_install_matrix_has_every_extra() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "start/install.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(project["optional-dependencies"])


def test_the_page_on_files_has_every_file_of_a_run_directory() -> None:
    page = (DOCS / "reference/files.md").read_text(encoding="utf-8")
    named = [name for name in OWN if not re.search(r"[*]|^\.|validation|^figures/|^tensorboard/", name)]
    assert len(named) >= 10
    assert [name for name in named if f"`{name}`" not in page] == []


def test_the_leaderboard_on_the_pages_is_the_published_one() -> None:
    table = json.loads((ROOT / TABLE).read_text(encoding="utf-8"))
    for name, fill in ((PAGE, filled_page), (README, filled_readme)):
        page = (ROOT / name).read_text(encoding="utf-8")
        assert fill(page, table) == page, "run python docs/fill_leaderboard.py"
        with pytest.raises(ValueError, match=name):
            fill("nothing", table)
