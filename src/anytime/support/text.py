"""Text from files of unknown origin, made safe to print."""

from __future__ import annotations

LONGEST = 1500  # characters of an error; it may repeat what a file of any size says


def printable(text: str) -> str:
    r"""The text with control characters and other invisible ones as escapes, so that a name cannot command a terminal.

    Example:
        >>> from anytime.support.text import printable
        >>> print(printable("cat\x1b[2J"))
        cat\x1b[2J
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """The message of an error in one printable line of at most `LONGEST` characters; its class if there is no message."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def quoted(value: object, longest: int = 100) -> str:
    """A value as an error message repeats it: its `repr`, printable, of at most `longest` characters."""
    text = printable(repr(value))
    return text if len(text) <= longest else f"{text[:longest]}..."
