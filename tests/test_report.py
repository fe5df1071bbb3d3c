import base64
import re
from html.parser import HTMLParser

import pytest
import torch

from anytime.reporting import plots
from anytime.reporting.report import Section, write_page, write_report
from anytime.reporting.tables import Column
from anytime.trace import Trace

VOID = {"meta", "img"}


class Checker(HTMLParser):
    """Fails on unbalanced tags; collects the references of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(params=[1, 4])
def trace(request):
    steps = request.param
    return Trace(
        logits=torch.randn(steps, 30, 3, generator=torch.Generator().manual_seed(0)),
        labels=torch.arange(30) % 3,
        macs=torch.arange(1, steps + 1) * 1_000_000,
        contract_macs=None,
        seconds=torch.arange(1, steps + 1).double() / 1000,
        class_names=("a", "b", "c"),
        meta={
            "hardware": "Abacus & Sons",
            "recipe": {"epochs": 3, "seeds": [1, 2]},
            "split": None,
            "seconds_low": [0.0] * steps,
        },
    )


def test_report_is_one_self_contained_page(trace, tmp_path):
    path = tmp_path / "run" / "report.html"
    rows = [{"name": "<script>", "value": 1}]
    extra = Section("More & more", "First.\n\nSecond.", rows, (Column("name", "name"), Column("value", "value")))
    figures = {"Steps": plots.steps(trace), "Fast": plots.speed_accuracy(trace)}
    write_report(path, "A <b>title</b>", trace, figures, [extra])
    page = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.references) == 2
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in checker.references)
    for reference in checker.references:
        svg = base64.b64decode(reference.partition(",")[2]).decode()
        assert "<svg" in svg
        assert "<image" not in svg
    for text in ("A &lt;b&gt;title", "Abacus &amp; Sons", "recipe.epochs", "1, 2", "&lt;script&gt;", "<p>Second.</p>"):
        assert text in page
    assert "seconds_low" not in page
    assert "split" not in page
    titles = ["In short", "Every step", "Figures", "More &amp; more", "How it was measured"]
    assert re.findall("<h2>(.*?)</h2>", page) == titles
    assert len(page) < 1_500_000
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_same_input_same_page(trace, tmp_path):
    for name in ("one", "two"):
        write_report(tmp_path / name, "Title", trace, {"Calibration": plots.calibration(trace)})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_page_of_only_sections(tmp_path):
    write_page(tmp_path / "page.html", "Nothing", [Section("Empty")])
    assert "<h2>Empty</h2>" in (tmp_path / "page.html").read_text()
