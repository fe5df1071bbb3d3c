"""Draws docs/images/decision_guide.svg: what you have, what varies, what may be retrained, and the method that fits.

python docs/decision_guide.py
"""

from html import escape
from pathlib import Path

QUESTIONS = (
    (
        "You have a trained network.",
        "May it be trained further?",
        (
            ("no", "heads on the frozen network", "attach, --regime heads_only"),
            ("yes", "exits and network together", "attach, --regime joint or mixed"),
            ("its blocks can update in parallel", "a cascade with delays", "delayed, TDLambda"),
        ),
    ),
    (
        "You have images, no network.",
        "What varies from call to call?",
        (
            ("the moment when time is up", "many answers, each built on the last", "fast, anytimenet, msdnet"),
            ("the budget, known before", "thin networks inside a wide one", "isresnext, iresnext"),
            ("how hard an image is", "exits and a stopping rule", "sdn_*, branchynet_*, zero_time_waste"),
            ("the image, while you look", "a cascade that follows frames", "cascaded_*, Predictor.watch"),
            ("how fine the label must be", "coarse labels first", "isresnext, Hierarchical"),
        ),
    ),
    (
        "You have an anytime network.",
        "What varies where it runs?",
        (
            ("the deadline", "steps that fit", "Predictor, anytime predict"),
            ("how many requests come", "less depth under overload", "anytime serve"),
            ("the device", "one graph for each step", "anytime export, anytime-edge"),
        ),
    ),
)
WIDTH, ROW, TOP, GAP = 900, 44, 62, 26
BLUE, GREY, PALE, TEXT = "#0072B2", "#6b6b6b", "#eef4f8", "#222222"


def text(x: float, y: float, words: str, look: str = "") -> str:
    """One line of text."""
    return f'<text x="{x:g}" y="{y:g}" {look}>{escape(words)}</text>'


def drawing() -> str:
    """The picture as SVG."""
    parts, y = [], 10.0
    for have, question, answers in QUESTIONS:
        middle = y + TOP / 2
        parts.append(f'<rect x="10" y="{y:g}" width="880" height="{TOP}" rx="8" fill="{BLUE}"/>')
        parts.append(text(28, middle - 5, have, 'fill="white" font-weight="bold"'))
        parts.append(text(28, middle + 18, question, 'fill="white"'))
        y += TOP + 8
        top = y - 8
        for case, method, names in answers:
            line = y + ROW / 2
            parts.append(f'<path d="M40 {top:g} V{line:g} H64" fill="none" stroke="{GREY}" stroke-width="1.5"/>')
            parts.append(f'<rect x="64" y="{y:g}" width="826" height="{ROW - 6}" rx="6" fill="{PALE}"/>')
            parts.append(text(78, line + 2, case, f'fill="{TEXT}" font-style="italic"'))
            parts.append(text(336, line + 2, method, f'fill="{TEXT}"'))
            parts.append(text(600, line + 2, names, f'fill="{TEXT}" font-family="monospace" font-size="12"'))
            y += ROW
        y += GAP
    look = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP + 10:g}" font-family="sans-serif" font-size="15"'
    title = "<title>Decision guide: what you have, what varies, and the method that fits</title>"
    return (
        f'<svg {look} role="img">\n{title}\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    (Path(__file__).parent / "images/decision_guide.svg").write_text(drawing(), encoding="utf-8")
