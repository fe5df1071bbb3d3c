"""The built site in a browser: its search finds pages, from disk and without a network."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "build/site"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium")
@pytest.mark.skipif(not (SITE / "search.html").is_file(), reason="the site is not built, see CONTRIBUTING.md")
@pytest.mark.slow
def test_the_search_finds_deadline() -> None:
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    page = subprocess.run(
        [str(BROWSER), *quiet, f"{(SITE / 'search.html').as_uri()}?q=deadline"], capture_output=True, text=True
    )
    found = re.search(r"found (\d+) pages? matching", page.stdout)
    assert found, page.stderr[-2000:]
    assert int(found[1]) >= 20
    assert 'href="runtime.html' in page.stdout


@pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium")
@pytest.mark.skipif(not (SITE / "search.html").is_file(), reason="the site is not built, see CONTRIBUTING.md")
@pytest.mark.slow
def test_narrow_screens_cut_no_text_and_the_live_page_has_the_sites_colours() -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright, which drives the browser")
    beyond = """() => [...document.querySelectorAll("article :is(h1, h2, h3, p, li, figcaption)")].filter(part => {
        const range = document.createRange(), end = document.querySelector("article").getBoundingClientRect().right;
        range.selectNodeContents(part);
        return !part.closest("table, pre") && [...range.getClientRects()].some(({ right }) => right > end + 2);
    }).map(part => part.textContent)"""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="light")
        for name in ("reference/cards", "reference/models", "reference/recipes", "about/changelog"):
            page.goto((SITE / f"{name}.html").as_uri())
            assert page.evaluate(beyond) == [], name
        page.goto((SITE / "index.html").as_uri())
        if page.locator("iframe.live").count():
            for asked in ("dark", "light"):
                page.evaluate("asked => document.documentElement.dataset.theme = asked", asked)
                frame = page.frame(url=re.compile(f"live.html#{asked}$")) or page.wait_for_event("framenavigated")
                assert frame.url.endswith(f"#{asked}")
        browser.close()
