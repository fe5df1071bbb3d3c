"""Text from files of unknown origin, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text with control characters and other invisible ones as escapes, so that a name cannot command a terminal.

    Example:
        >>> print(printable("cat\x1b[2J"))
        cat\x1b[2J
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """What an error says, in one printable line; its class if it says nothing."""
    return printable(" ".join(str(error).split())) or type(error).__name__
