"""Checks a built site: internal links and anchors lead somewhere; no script, style, font or image comes from another host.

python docs/check_site.py build/site
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "audio": "src", "video": "src", "link": "href"}
NOT_LOADED = {"canonical", "next", "prev", "index", "search", "author", "copyright", "license"}  # of `link rel`
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")


class Page(HTMLParser):
    """The anchors of a page, where it links to, and what a browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = IN_STYLE.findall(text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif LOADED.get(tag) in given and not NOT_LOADED & {*given.get("rel", "").split()}:
            self.loaded.append(given[LOADED[tag]])


def faults(site: Path) -> list[str]:
    """One sentence for each fault of the site in a folder, with the page that has it."""
    files = [file for file in sorted(site.rglob("*.html")) if file.name != "webpack-macros.html"]  # the theme's own template
    pages = {file.resolve(): Page(file.read_text(encoding="utf-8")) for file in files}
    found = []
    for file, page in pages.items():
        name = file.relative_to(site.resolve())
        for target in page.loaded:
            if urlsplit(target).scheme not in ("", "data") or urlsplit(target).netloc:
                found.append(f"{name} loads {target} from elsewhere")
        for target in {*page.links, *page.loaded}:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not there.is_file():
                found.append(f"{name} links to {target}, which is no file of the site")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].anchors:
                found.append(f"{name} links to {target}, which has no such anchor")
    for file in sorted(site.rglob("*.css")):
        found += [f"{file.name} loads {url} from elsewhere" for url in IN_STYLE.findall(file.read_text(encoding="utf-8"))]
    return found if pages else [f"{site} holds no pages"]


if __name__ == "__main__":
    problems = faults(Path(sys.argv[1]))
    print("\n".join([*problems[:50], f"{len(problems)} faults"] if problems else ["every link and anchor leads somewhere"]))
    sys.exit(bool(problems))
