"""A figure as part of a page: SVG in the page's colours and letters, with what it says of its points."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from weakref import WeakKeyDictionary
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from anytime.support.text import printable

# Okabe and Ito's palette, which colour-blind readers can distinguish.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BLACK, INK, GREY, GRID, PALE, WHITE = "#000000", "#222222", "#6b6b6b", "#dddddd", "#ececec", "#ffffff"
_ON_PAGES = {
    **{BLUE: "c0", RED: "c1", GREEN: "c2", PURPLE: "c3", ORANGE: "c4", SKY: "c5"},
    **{BLACK: "ink", INK: "ink", GREY: "quiet", GRID: "edge", PALE: "track", WHITE: "box"},
}
_VARIABLES = {colour.lower(): f"var(--{name})" for colour, name in _ON_PAGES.items()}
_LEFT_TO_THE_PAGE = ("font-family", "image-rendering")
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_SVG = "{http://www.w3.org/2000/svg}"
_LONG = re.compile(r"\d+\.\d{3,}")  # a hundredth of a point is enough
_INCH = 115  # pixels; letters are then about as large as the page's
_WIDE = 5  # inches; a wider figure does not shrink to a narrow screen, but scrolls
_said: WeakKeyDictionary[Artist, list[str]] = WeakKeyDictionary()


def say(artist: Artist, texts: Iterable[str]) -> None:
    """Sets what a page says of the markers of a line, of the points of a scatter or of a bar, in the order of drawing."""
    _said[artist] = [*texts]


def inline_svg(figure: Figure, label: str, number: int) -> str:
    """A figure as an SVG element whose points hold what was said of them in `title` elements.

    Args:
        figure: The figure; colours of the palette above become those of the page.
        label: What a screen reader calls it.
        number: The figure's number on its page, so that no two share an identifier.
    """
    said = {f"said-{index}": artist for index, artist in enumerate(a for a in figure.findobj() if a in _said)}
    for gid, artist in said.items():
        artist.set_gid(gid)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"anytime {number}", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="none")
    root = ElementTree.fromstring(_NOT_IN_XML.sub("\ufffd", buffer.getvalue()))
    groups = {group.get("id"): group for group in root.iter(f"{_SVG}g")}
    for gid, artist in said.items():
        for mark, text in zip(_marks(groups[gid]), _said[artist], strict=True):
            ElementTree.SubElement(mark, f"{_SVG}title").text = printable(text)
    used = {*re.findall(r"#([^)\s]+)", "\n".join(value for element in root.iter() for value in element.attrib.values()))}
    for element in root.iter():
        for child in [child for child in element if child.tag.endswith(("metadata", "style"))]:
            element.remove(child)
        element.tag, element.tail = element.tag.removeprefix(_SVG), None
        if element.text and not element.text.strip():
            element.text = None
        element.attrib = {name: value for name, value in _plain(element.attrib) if name != "id" or value in used}
    width, height = figure.get_size_inches()
    root.attrib = {"role": "img", "aria-label": printable(label), "viewBox": root.attrib["viewBox"]}
    root.attrib |= {"width": f"{_INCH * width:.0f}", "height": f"{_INCH * height:.0f}"}
    if width > _WIDE:
        root.set("class", "many")
    return ElementTree.tostring(root, encoding="unicode")


def _marks(group: Element) -> list[Element]:
    """The markers that a group of a figure draws; of a group without markers its paths, such as a bar."""
    defined = {path for defs in group.iter(f"{_SVG}defs") for path in defs}
    paths = [path for path in group.iter(f"{_SVG}path") if path not in defined]
    return [*group.iter(f"{_SVG}use")] or paths


def _plain(attributes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Attributes without namespaces, styles as attributes of their own, colours of the palette as those of the page."""
    for name, value in attributes.items():
        if name == "style":
            for declaration in value.split(";"):
                key, _, given = (part.strip() for part in declaration.partition(":"))
                if key == "font":  # of matplotlib before 3.10: a style or weight, the size and the families
                    before, size = re.findall(r"^(.*?)([\d.]+px)", given)[0]
                    yield "font-size", size
                    yield from (("font-weight", weight) for weight in re.findall(r"\d+", before))
                elif key and key not in _LEFT_TO_THE_PAGE:
                    yield key, _VARIABLES.get(given, given)
        else:
            short = value if value.startswith("data:") else _LONG.sub(lambda match: f"{float(match[0]):.2f}", value)
            yield name.rpartition("}")[2], short
