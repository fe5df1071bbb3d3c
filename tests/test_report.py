import dataclasses
import re
from html import unescape
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure

from anytime.analysis import curves
from anytime.analysis.summary import summary
from anytime.reporting import plots
from anytime.reporting.columns import STEP_COLUMNS
from anytime.reporting.drawing import inline_svg, say
from anytime.reporting.report import Section, write_page, write_report
from anytime.reporting.style import allowed, read
from anytime.reporting.tables import Column
from anytime.support.text import printable
from anytime.trace import Trace

VOID = {"meta", "link"}
HOSTILE = "_$x^2$</title><script>alert(1)</script>\"'&\x1b[2J\u202e\udcff"


class Checker(HTMLParser):
    """Fails on unbalanced tags; collects the references, identifiers and handlers of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.identifiers: list[str] = []
        self.scripts = 0
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert not [name for name, _ in attrs if name == "style" or name.startswith("on")]
        self.references += [value for name, value in attrs if name in ("src", "href")]
        self.references += [found for _, value in attrs for found in re.findall(r"url\((.*?)\)", value or "")]
        self.identifiers += [value for name, value in attrs if name == "id"]
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1] if tag not in VOID else self.open

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make(steps):
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


@pytest.fixture(params=[1, 4])
def trace(request):
    return make(request.param)


def test_report_is_one_self_contained_page(trace, tmp_path):
    path = tmp_path / "run" / "report.html"
    rows = [{"name": "<script>", "value": 1}]
    extra = Section("More & more", "First.\n\nSecond.", rows, (Column("name", "name"), Column("value", "value")))
    figures = {"Steps": plots.steps(trace), "Fast": plots.speed_accuracy(trace)}
    write_report(path, "A <b>title</b>", trace, figures, [extra])
    page = path.read_text(encoding="utf-8")
    checker = Checker(page)
    assert checker.references
    assert all(found.startswith("#") or found == "data:," for found in checker.references)
    assert {found[1:] for found in checker.references if found != "data:,"} <= {*checker.identifiers}
    assert len({*checker.identifiers}) == len(checker.identifiers)
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    for text in ("A &lt;b&gt;title", "Abacus &amp; Sons", "recipe.epochs", "1, 2", "&lt;script&gt;", "<p>Second.</p>"):
        assert text in page
    assert "seconds_low" not in page
    assert "split" not in page
    for column in STEP_COLUMNS:
        for row in summary(trace)["steps"]:
            assert f">{column.text(row)}</td>" in page or not any(column.key in each for each in summary(trace)["steps"])
    titles = ["In short", "Every step", "Figures", "More &amp; more", "How it was measured"]
    assert re.findall("<h2>(.*?)</h2>", page) == titles
    assert len(page) < 100_000
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_same_input_same_page(trace, tmp_path):
    for name in ("one", "two"):
        write_report(tmp_path / name, "Title", trace, {"Calibration": plots.calibration(trace)})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_page_of_only_sections(tmp_path):
    write_page(tmp_path / "page.html", "Nothing", [Section("Empty")])
    assert "<h2>Empty</h2>" in (tmp_path / "page.html").read_text()


TEXT = {column.key: column.text for column in STEP_COLUMNS}
LABELS = {"accuracy": "accuracy", "confidence": "confidence (max softmax)", "true_class_probability": "p(correct class)"}


@pytest.fixture(scope="module")
def drawn():
    """A trace of three steps, and its figures as they are on a page."""
    trace = make(3)
    figures = {f"steps {cost}": plots.steps(trace, cost) for cost in plots.panel_costs([trace])}
    figures |= {draw.__name__: draw(trace) for draw in (plots.speed_accuracy, plots.calibration, plots.per_class)}
    return trace, {name: inline_svg(figure, name, number) for number, (name, figure) in enumerate(figures.items())}


def said(svg):
    """What a figure says of its points."""
    return [unescape(text) for text in re.findall("<title>(.*?)</title>", svg)]


def test_points_say_the_numbers_of_the_table(drawn):
    trace, figures = drawn
    rows = summary(trace)["steps"]
    for cost, unit in (("macs", "MACs"), ("seconds", "ms")):
        svg = figures[f"steps {cost}"]
        assert said(svg) == [
            f"step {row['step']}, {TEXT[cost](row)} {unit}: {label} {TEXT[key](row)}"
            for key, label in LABELS.items()
            for row in rows
        ]
        assert all(f">{text}</text>" in svg for text in (*LABELS.values(), "no answer yet"))
    texts = [f"step {row['step']}, {TEXT['macs'](row)} MACs: accuracy {TEXT['accuracy'](row)}" for row in rows]
    both = said(inline_svg(plots.compare({"one": trace, "other": trace}, "macs"), "", 0))
    assert both == [f"{name}, {text}" for name in ("one", "other") for text in texts]
    assert [text for text in said(figures["speed_accuracy"]) if text.startswith("all")] == [
        f"all samples stop at {text}" for text in texts
    ]


def test_points_of_every_figure_say_what_they_are(drawn):
    trace, figures = drawn
    classes = said(figures["per_class"])
    assert len(classes) == 3 * 3
    right = trace.logits.argmax(2) == trace.labels
    accuracy = f"{right[0][trace.labels == 1].double().mean():.2%}"
    assert re.fullmatch(rf"step 1, b: p\(correct class\) 0\.\d\d\d, accuracy {accuracy}", classes[1])
    bars = [re.search(r"accuracy (.*)% of (\d+) samples$", text) for text in said(figures["calibration"])]
    assert sum(int(bar[2]) for bar in bars) == 3 * 30
    assert sum(float(bar[1]) / 100 * int(bar[2]) for bar in bars) == pytest.approx(int(right.sum()), abs=0.01)
    stops = [text for text in said(figures["speed_accuracy"]) if text.startswith("confidence threshold ")]
    curve = curves.threshold_curve(trace)
    assert len(stops) == len(curve.thresholds)
    whole = f"3.000 M MACs on average: accuracy {TEXT['accuracy'](summary(trace)['steps'][-1])}"
    assert stops[-1] == f"confidence threshold {float(curve.thresholds[-1]):.3f}, {whole}"


def test_letters_have_a_size_and_the_family_of_the_page(drawn):
    answer = plots.growing_answer(torch.rand(1, 8, 8), torch.tensor([[0.25, 0.75]]), ("ant", "bee"), label=1)
    bold = inline_svg(answer, "", 0)
    assert re.search(r'<text [^>]*font-weight="700"[^>]*>bee</text>', bold)
    for svg in (*drawn[1].values(), bold):
        texts = re.findall("<text .*?>", svg)
        assert texts
        assert [text for text in texts if not re.search(r' font-size="[789](\.\d)?px"', text)] == []
        assert "font-family" not in svg
        assert " font=" not in svg


def test_a_class_without_images_says_nothing():
    trace = make(1)
    trace = dataclasses.replace(trace, labels=trace.labels.clamp(max=1))
    assert [text[:9] for text in said(inline_svg(plots.per_class(trace), "", 0))] == ["step 1, a", "step 1, b"]


def test_a_point_never_says_the_words_of_another():
    figure = Figure()
    (line,) = figure.subplots().plot([1, 2, 3], [1, 2, 3], marker="o")
    say(line, ["one", "two"])
    with pytest.raises(ValueError, match="argument"):
        inline_svg(figure, "", 0)


def test_figures_are_light_and_dark(drawn):
    svg = "".join(drawn[1].values())
    colours = {name: pair for name, *pair in re.findall(r"(--[\w-]+): light-dark\((#\w+), (#\w+)\);", read("colours.css"))}
    assert {*re.findall(r"var\((.*?)\)", svg)} == {
        f"--{name}" for name in ["c0", "c1", "c2", "ink", "quiet", "edge", "track", "box"]
    }
    assert {*re.findall(r"var\((.*?)\)", svg + read("base.css", "report.css"))} <= {*colours}
    assert all(light != dark for light, dark in colours.values())
    assert not re.search(r"#[0-9a-f]{3,8}\"", svg.replace('href="#', ""))  # no colour that the page does not choose
    assert "color-scheme: light dark;" in read("colours.css")


def test_pages_run_only_their_own_script(tmp_path):
    probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    figures = {
        HOSTILE: plots.compare({HOSTILE: make(2), "other": make(1)}, "macs"),
        "Grown": plots.growing_answer(torch.rand(3, 8, 8), probabilities, (HOSTILE, "b"), label=0),
    }
    rows = [{"name": HOSTILE}]
    write_page(tmp_path / "page.html", HOSTILE, [Section(HOSTILE, HOSTILE, rows, (Column("name", HOSTILE),), figures)])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    checker = Checker(page)
    assert checker.scripts == 1
    assert "<script>alert" not in page
    assert not re.search("[\x1b\u202e\ufffd]", page)
    shown = printable(HOSTILE)
    title, heading, region, text, column, cell, label, caption, points, bars, tick = 2, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1
    times = title + heading + region + text + column + cell + label + caption + points + bars + tick
    assert unescape(page).count(shown) == times + 1  # and of the legend, in spite of its underscore
    assert f"> {shown}</text>" in unescape(page)
    (policy,) = re.findall('<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)
    (style,), (script,) = (re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("style", "script"))
    assert script == read("report.js")
    assert policy == (
        f"default-src 'none'; script-src {allowed(script)}; style-src {allowed(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
