"""A report in a browser, from disk: points say the numbers of the table, it is light or dark, and it asks for nothing."""

import shutil

import pytest
import torch

pytest.importorskip("playwright", reason="no playwright, which drives the browser: pip install playwright")

from playwright import sync_api

from anytime.reporting import plots
from anytime.reporting.report import Section, write_report
from anytime.trace import Trace

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path: apt-get install chromium")
HOSTILE = "<img src=x onerror=document.title='hit'></script><script>document.title='hit'</script>"
LONG = "a_name_of_a_run_" * 20


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    labels = torch.arange(40) % 2
    logits = torch.randn(3, 40, 2, generator=torch.Generator().manual_seed(0)) + torch.nn.functional.one_hot(labels)
    trace = Trace.from_logits(logits, labels, macs=[10**6, 2 * 10**6, 4 * 10**6], class_names=(HOSTILE, LONG))
    path = tmp_path_factory.mktemp("report") / "report.html"
    alike = plots.compare({LONG: trace, HOSTILE: trace}, "macs")
    write_report(path, HOSTILE, trace, {"Steps": plots.steps(trace)}, [Section("Alike", figures={"Alike": alike})])
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        page.set_default_timeout(20_000)
        seen, wrong = [], []
        page.on("request", lambda request: seen.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.goto(path.as_uri())
        yield page
        assert [text for text in wrong if "https://example.com" not in text] == []  # which the last test asks for
        assert [url for url in seen if not url.startswith("data:")] == [path.as_uri()]
        browser.close()


def cells(page, title):
    """A column of the table of steps."""
    titles = page.locator("thead").first.locator("th").all_inner_texts()
    return page.locator("tbody").first.locator(f"tr > :nth-child({titles.index(title) + 1})").all_inner_texts()


def test_points_say_the_numbers_of_the_table(page):
    points = page.locator("figure svg").first.locator("use[fill='var(--c0)']")
    said = []
    for index in range(3):
        points.nth(index).hover()
        said.append(page.locator(".tip:visible").inner_text())
    found = zip(cells(page, "step"), cells(page, "MACs"), cells(page, "accuracy"), strict=True)
    assert said == [f"step {step}, {macs} MACs: accuracy {accuracy}" for step, macs, accuracy in found]
    page.mouse.move(0, 0)
    assert page.locator(".tip:visible").count() == 0


def test_keys_and_a_screen_reader_reach_every_point(page):
    svg = page.locator("figure svg").first
    page.locator(".scroll").first.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Steps"
    page.keyboard.press("Home")
    said = [page.locator(".tip:visible").inner_text()]
    for _ in range(9):
        page.keyboard.press("ArrowRight")
        said.append(page.locator(".tip:visible").inner_text())
        assert svg.get_attribute("aria-valuetext") == said[-1]
    assert (
        said[8] == said[9] == f"step 3, {cells(page, 'MACs')[2]} MACs: p(correct class) {cells(page, 'p(correct class)')[2]}"
    )
    assert len({*said}) == 9
    page.keyboard.press("Home")
    assert page.locator(".tip:visible").inner_text() == said[0]
    page.keyboard.press("Escape")
    assert page.locator(".tip:visible").count() == 0


def test_points_at_one_place_all_speak(page):
    page.locator("figure svg").nth(1).locator("use[fill='var(--c1)']").first.hover()
    said = page.locator(".tip:visible").inner_text().split("\n")
    assert [text.partition(", step ")[0] for text in said] == [LONG, HOSTILE]
    tip, figure = page.locator(".tip:visible").bounding_box(), page.locator("figure").nth(1).bounding_box()
    assert figure["x"] <= tip["x"]
    assert tip["x"] + tip["width"] <= figure["x"] + figure["width"] + 1


def test_a_page_is_dark_for_a_reader_who_is(page):
    look = "name => getComputedStyle(document.querySelector(name[0]))[name[1]]"
    looks = [["body", "backgroundColor"], [".box", "backgroundColor"], ["figure svg text", "fill"], ["figure use", "fill"]]
    dark = [page.evaluate(look, each) for each in looks]
    page.emulate_media(color_scheme="light")
    light = [page.evaluate(look, each) for each in looks]
    page.emulate_media(color_scheme="dark")
    assert dark[0] == "rgb(17, 20, 24)"
    assert light[1] == "rgb(255, 255, 255)"
    assert not {*dark} & {*light}


def test_names_are_text_and_nothing_leaves_the_page(page):
    assert page.locator("h1").inner_text() == page.title() == HOSTILE
    assert page.locator("img").count() == 0
    assert page.evaluate("fetch('https://example.com').then(() => 'sent', () => 'refused')") == "refused"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
