"""The site: the check of its links finds what is wrong, and links that leave docs/ lead to pages of the site."""

import re
from pathlib import Path

import pytest

from anytime.reporting.style import read
from brought import WHOLE, bibtex, led
from check_site import faults

ROOT = Path(__file__).parents[2]
GOOD = '<a href="b.html#there">x</a><script src="s.js"></script><link rel="canonical" href="https://example.org/a.html">'


def site(folder: Path, page: str) -> list[str]:
    (folder / "a.html").write_text(page)
    (folder / "b.html").write_text('<h1 id="there">b</h1>')
    (folder / "s.js").write_text("")
    return faults(folder)


def test_a_site_without_faults(tmp_path: Path) -> None:
    assert site(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('<a href="c.html">x</a>', "c.html, which is no file"),
        ('<a href="b.html#nowhere">x</a>', "b.html#nowhere, which has no such anchor"),
        ('<a href="#nowhere">x</a>', "#nowhere, which has no such anchor"),
        ('<script src="https://example.org/s.js"></script>', "loads https://example.org/s.js from elsewhere"),
        ('<script src="//example.org/s.js"></script>', "loads //example.org/s.js from elsewhere"),
        ('<link rel="stylesheet" href="https://example.org/s.css">', "loads https://example.org/s.css from elsewhere"),
        ('<style>@import "//example.org/s.css";</style>', "loads //example.org/s.css from elsewhere"),
        ('<img src="gone.png">', "gone.png, which is no file"),
    ],
)
def test_a_fault_of_a_page_is_found(tmp_path: Path, more: str, said: str) -> None:
    (found,) = site(tmp_path, GOOD + more)
    assert found.startswith("a.html ")
    assert said in found


def test_a_font_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "s.css").write_text("@font-face { src: url('https://example.org/f.woff2') }")
    assert site(tmp_path, GOOD) == ["s.css loads https://example.org/f.woff2 from elsewhere"]


def test_the_site_and_the_live_page_have_the_colours_of_reports() -> None:
    colours = read("colours.css")
    for sheet in ("docs/_static/site.css", "src/anytime/export/html/page/page.css"):
        used = {*re.findall(r"var\((--(?!pst-)[\w-]+)\)", (ROOT / sheet).read_text())}
        assert len(used) > 5
        assert [name for name in used if f"  {name}: light-dark(" not in colours] == []


def test_an_empty_folder_is_no_site(tmp_path: Path) -> None:
    assert faults(tmp_path) == [f"{tmp_path} holds no pages"]


@pytest.mark.parametrize(
    ("before", "link", "now", "there"),
    [
        ("docs", "../SECURITY.md#x", "docs", "/about/security.md#x"),
        ("docs", "../recipes/fast_cifar10.yaml", "docs", "/reference/recipes.md#fast_cifar10"),
        ("", "docs/losses.md", "docs/about", "../losses.md"),
        ("docs", "../results/fast_cifar10/seeds.json", "docs/about", "../../results/fast_cifar10/seeds.json"),
        ("docs", "h", "docs", "h"),  # of code, not a link
        ("docs", "https://example.org/", "docs", "https://example.org/"),
    ],
)
def test_links_lead_to_pages(before: str, link: str, now: str, there: str) -> None:
    assert led(f"[text]({link})", before, now) == f"[text]({there})"


def test_bibtex_has_the_library_and_every_paper() -> None:
    cited = bibtex()
    assert re.findall(r"^@(\w+)\{(\w+),$", cited, re.MULTILINE)[:2] == [("misc", "anytime"), ("inproceedings", "kim2020")]
    assert cited.count("@") == len(re.findall("^ +title: ", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)) + 1
    assert "  author = {Lee, Hankook and Shin, Jinwoo},\n" in cited
    assert cited.count("{") == cited.count("}")


def test_what_is_brought_exists() -> None:
    assert [file for file in WHOLE.values() if not (ROOT / file).is_file()] == []
    assert [page for page in WHOLE if not (ROOT / "docs" / f"{page}.md").is_file()] == []
