"""The answers of a server to image files, shown as they improve: `anytime predict MODEL IMAGE --server URL`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anytime.commands.parser import Parser
from anytime.server.client import ask, check_url
from anytime.support.text import printable
from anytime.support.units import macs_text, ms_text, typed_seconds

LOCAL = ("combine", "stop", "plot", "camera_like", "stream", "fps", "updates", "trust")  # options of a model in this process


def show_served(parser: Parser, options: Any) -> int:
    """Prints the answers of the server `options.server`; returns the exit code."""
    given = [name for name in LOCAL if getattr(options, name) not in (None, False)]
    given += ["top"] if options.top != 1 else []
    if given:
        parser.error(f"--{given[0].replace('_', '-')} is decided where the model runs: leave it out, or leave out --server")
    try:
        url = check_url(options.server)
        seconds = None if options.deadline is None else typed_seconds(options.deadline)
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    for path in options.images:
        print(f"{printable(str(path))} ({printable(options.model)} at {printable(url)})")
        _show(url, options.model, path, None if seconds is None else f"{max(seconds, 0.0)!r}s")
    return 0


def _show(url: str, model: str, path: Path, deadline: str | None) -> None:
    shown = 0
    for answer in ask(url, model, path, deadline):
        if answer["step"] == shown:  # the last answer comes once more, with the reason why there is no later one
            continue
        shown = answer["step"]
        cost = f"{macs_text(answer['macs']):>8} MACs {ms_text(answer['seconds']):>6} ms"
        missed = "  (after the deadline)" if answer["missed"] else ""
        text = f"{answer['class']} ({100 * answer['confidence']:.0f} %)"
        print(f"  step {answer['step']}/{answer['steps']}  {cost}  {printable(text)}{missed}", flush=True)
