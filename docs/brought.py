"""What the site brings from elsewhere: pages of the repository's root, help texts, recipes, model cards, and links to them."""

import contextlib
import io
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import anytime
from anytime.cli import COMMANDS, main
from anytime.pretrained import list_pretrained
from anytime.registry import list_models

ROOT = Path(__file__).parents[1]
WHOLE = {
    "about/changelog": "CHANGELOG.md",
    "about/contributing": "CONTRIBUTING.md",
    "about/security": "SECURITY.md",
    "reference/edge": "edge/README.md",
}
PLACES = {  # of what is linked, the first match counts
    r"README\.md": "/index.md",
    r"edge": "/reference/edge.md",
    r"recipes": "/reference/recipes.md",
    r"recipes/(\w+)\.yaml": r"/reference/recipes.md#\1",
    r"results(/\w+)?|benchmarks": "/about/results.md",
    r"examples/(\w+)\.py": r"/gallery/\1.rst",
    r"src/anytime/weights/(\w+)/README\.md": r"/reference/cards.md#\1",
} | {re.escape(file): f"/{page}.md" for page, file in WHOLE.items()}
LIVE = ROOT / "docs/_static/live.html"  # of `anytime export fast_cifar10 --html docs/_static/live.html`
PLACE = "% The live page, if it was made.\n"
FRAME = """```{raw} html
<iframe class="live" src="_static/live.html" allow="camera" title="A network that answers live"></iframe>
<script>
{ // the page has the colours of the site's switch
  const frame = document.querySelector("iframe.live"), site = document.documentElement;
  const follow = () => frame.contentWindow.location.replace(`_static/live.html#${site.dataset.theme}`);
  new MutationObserver(follow).observe(site, { attributeFilter: ["data-theme"] });
  follow();
}
</script>
```
"""
DRAWN = ROOT / "docs/images/examples"
CODE = ".. GENERATED FROM PYTHON SOURCE LINES"  # in a page of the gallery, where the text ends
OUTPUT = """
.. figure:: /images/examples/{0}.png
   :alt: The figure that the program draws

It prints

.. literalinclude:: /images/examples/{0}.txt
   :language: text

"""


def setup(app: Any) -> dict[str, bool]:
    """Makes this file an extension of Sphinx."""
    app.setup_extension("sphinx.ext.autosummary")
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", with_plain_bars)
    app.connect("autodoc-skip-member", skipped)
    app.config.autosummary_context["elsewhere"] = lambda module: () if module == "anytime" else anytime.__all__
    return {"parallel_read_safe": True}


def with_plain_bars(app: Any, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """In a formula of a docstring |x| is an absolute value or a size, never a substitution."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def skipped(app: Any, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Leaves out the fields of named tuples, which the docstring of the class describes."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def read(app: Any, docname: str, source: list[str]) -> None:
    """For Sphinx's event `source-read`: adds what is brought to a page, and leads its links to pages of the site."""
    file = WHOLE.get(docname, f"docs/{docname}.md")
    if (DRAWN / f"{posixpath.basename(docname)}.png").is_file() and docname.startswith("gallery/"):
        source[0] = source[0].replace(CODE, OUTPUT.format(posixpath.basename(docname)) + CODE, 1)
    if not (ROOT / file).is_file():
        return  # a page that Sphinx made itself
    if docname in WHOLE:
        source[0] += (ROOT / file).read_text(encoding="utf-8")
    if LIVE.is_file():
        source[0] = source[0].replace(PLACE, FRAME)
    if docname in MADE:
        source[0] += MADE[docname]()
    app.env.note_dependency(str(ROOT / file))
    source[0] = led(source[0], posixpath.dirname(file), posixpath.dirname(f"docs/{docname}"))


def led(text: str, before: str, now: str) -> str:
    """The text with the links of a file of folder `before` as they must be in a page of folder `now`, both from the root."""

    def link(match: re.Match[str]) -> str:
        target, hash_, anchor = match[1].partition("#")
        path = posixpath.normpath(posixpath.join(before, target))
        if not target or path.startswith("..") or not (ROOT / path).exists():
            return match[0]
        for pattern, place in PLACES.items():
            if found := re.fullmatch(pattern, path):
                return f"]({found.expand(place)}{hash_}{anchor})"
        return f"]({os.path.relpath(path, now)}{hash_}{anchor})"

    return re.sub(r"\]\(([^()\s:]+)\)", link, text)


def _printed(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(arguments)
    if code:
        raise ValueError(f"anytime {' '.join(arguments)} ended with {code}")
    return f"```text\n{out.getvalue().strip()}\n```\n\n"


def _commands() -> str:
    return "".join(f"## anytime {name}\n\n{_printed(name, '--help')}" for name in COMMANDS)


def _models() -> str:
    return "".join(f"## {name}\n\n{_printed('models', name)}" for name in list_models())


def _recipes() -> str:
    text = ""
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        text += f"## {file.stem}\n\n```yaml\n{file.read_text(encoding='utf-8').strip()}\n```\n\n"
    return text


def _cards() -> str:
    folder = ROOT / "src/anytime/weights"
    cards = [(folder / name / "README.md").read_text(encoding="utf-8") for name in list_pretrained()]
    return "\n\n".join(re.sub(r"^#", "##", card, flags=re.MULTILINE) for card in cards)


def bibtex() -> str:
    """CITATION.cff for BibTeX: the library and the papers, each by the name of its first author and the year."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = ""
    for work in (cff, *cff["references"]):
        first = work["authors"][0].get("family-names", "anytime")
        people = [f"{{{a['name']}}}" if "name" in a else f"{a['family-names']}, {a['given-names']}" for a in work["authors"]]
        known = {"author": " and ".join(people), "title": f"{{{work['title']}}}", "booktitle": work.get("collection-title")}
        known |= {"year": work.get("year"), "note": f"version {work['version']}" if "version" in work else None}
        fields = "".join(f"  {key} = {{{value}}},\n" for key, value in known.items() if value)
        kind = "inproceedings" if "collection-title" in work else "misc"
        text += f"@{kind}{{{first.lower()}{work.get('year', '')},\n{fields}}}\n\n"
    return text.strip()


def _citing() -> str:
    return f"## BibTeX\n\n```text\n{bibtex()}\n```\n"


MADE: dict[str, Callable[[], str]] = {
    "reference/commands": _commands,
    "reference/models": _models,
    "reference/recipes": _recipes,
    "reference/cards": _cards,
    "about/citing": _citing,
}
