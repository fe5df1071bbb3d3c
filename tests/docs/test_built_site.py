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
