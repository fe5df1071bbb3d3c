"""Which import paths may be imported: those typed in this call; those that a file names, only with the user's consent."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from anytime.support.files import atomic_write

ANY = "*"
_NAMING = {  # flags whose values name classes or functions
    *("--model", "--data", "--objective", "--optimizer", "--schedule", "--regime"),
    *("--model.backbone", "--model.head", "--model.base", "--objective.loss"),
}
_NAMING_WITHIN = {"--model.arguments", "--model.members"}  # mappings that hold such values
_PATH = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+"


class UntrustedName(ValueError):
    """A file names an import path, and the user has not consented to importing it."""

    exit_code = 2


class Source(NamedTuple):
    """Where the names that are being resolved come from.

    Attributes:
        file: The file that holds them.
        consent: Import paths that the user consents to; `ANY` stands for all.
        loading: Shapes of the trained weights, by name, that will replace those of whatever is built; None: there are none.
        passes_on: Whether files that are read meanwhile are trusted as well.
    """

    file: str
    consent: Collection[str]
    loading: Mapping[str, Sequence[int]] | None
    passes_on: bool


_SOURCE: ContextVar[Source | None] = ContextVar("source of names", default=None)
_ARGUMENTS: ContextVar[Sequence[str] | None] = ContextVar("arguments of the command", default=None)


@contextmanager
def names_from(
    file: str | os.PathLike[str],
    trust: bool = False,
    typed: Collection[str] = (),
    loading: Mapping[str, Sequence[int]] | None = None,
    remembered: bool = False,
) -> Iterator[None]:
    """Inside this block names come from a file, and its import paths need consent; outside it, the user has typed them.

    Args:
        file: The file, for the message.
        trust: The user trusts the file, and those that are read inside this block.
        typed: Import paths that the user typed in the same call.
        loading: Shapes of the trained weights, by name, that will replace those of whatever is built, see `weights_follow`.
        remembered: The user has consented to this very file before, which does not extend to other files.
    """
    outer = _SOURCE.get()
    trust = trust or (outer is not None and outer.passes_on)
    token = _SOURCE.set(Source(os.fspath(file), (ANY,) if trust or remembered else typed, loading, trust))
    try:
        yield
    finally:
        _SOURCE.reset(token)


@contextmanager
def only_typed(arguments: Sequence[str]) -> Iterator[None]:
    """Inside this block, which runs a command, names whose source nobody has declared need to be among its arguments.

    As soon as one of these is imported, its code may name others.
    """
    token = _ARGUMENTS.set(arguments)
    try:
        yield
    finally:
        _ARGUMENTS.reset(token)


def typed_paths(arguments: Sequence[str]) -> set[str]:
    """The import paths that the user typed as names of classes: `["--model", "mine.Net"]` holds `{"mine.Net"}`.

    Other values, such as the file `data.v2`, are no consent to the same name in a file.
    """
    paths: set[str] = set()
    for argument, following in itertools.pairwise([*arguments, ""]):
        flag, equals, value = argument.partition("=")
        value = value if equals else following
        if flag in _NAMING and re.fullmatch(_PATH, value):
            paths.add(value)
        elif flag in _NAMING_WITHIN:
            paths.update(re.findall(rf"""\b(?:model|base|backbone|head)["']?\s*:\s*["']?({_PATH})(?=["',}}\s])""", value))
    return paths


def is_declared() -> bool:
    """Whether names come from a file, trusted or not; else the user has typed them."""
    return _SOURCE.get() is not None


def is_untrusted() -> bool:
    """Whether names come from a file that the user has not declared trustworthy."""
    source = _SOURCE.get()
    return source is not None and ANY not in source.consent


def source_name() -> str:
    """The file that names come from, for messages; empty if the user has typed them."""
    source = _SOURCE.get()
    return "" if source is None else source.file


def is_consented() -> bool:
    """Whether names come from a file that the user has declared trustworthy."""
    return is_declared() and not is_untrusted()


def weights_follow() -> bool:
    """Whether a saved model is being loaded: then no other weights are read or downloaded."""
    return saved_shapes() is not None


def saved_shapes() -> Mapping[str, Sequence[int]] | None:
    """Shapes, by name, of the weights of the saved model that is being loaded; None if none is."""
    source = _SOURCE.get()
    return None if source is None else source.loading


def require_consent(path: str, what: str) -> None:
    """Raises UntrustedName if an import path comes from a file and the user has not consented to it."""
    source, arguments = _SOURCE.get(), _ARGUMENTS.get()
    if source is None and arguments is not None:
        if any(path in re.findall(_PATH, argument) for argument in arguments):
            _ARGUMENTS.set(None)
            return
        source = Source("a file", (), None, passes_on=False)
    if source is not None and ANY not in source.consent and path not in source.consent:
        raise UntrustedName(
            f"{source.file} names the {what} {path!a}: this would import the module {path.rpartition('.')[0]!a}, which may "
            "run any code; if you trust this file, use trust=True, or --trust on the command line"
        )


def remember(path: Path, content: str) -> None:
    """Remembers that the user consented to every name in `content`, the configuration at `path`.

    It only warns where it cannot: in a container, the home directory may be missing or read-only.
    """
    try:
        with atomic_write(_record(path)) as part:
            part.write_text(_digest(content), encoding="utf-8")
    except (OSError, RuntimeError, ValueError) as error:  # of Path.home; a file in the place of a folder
        warnings.warn(
            f"the consent to {path} is not remembered ({error}): if it names classes outside this library, later commands on "
            "it need --trust; XDG_STATE_HOME may name a folder for what is remembered",
            stacklevel=2,
        )


def is_remembered(path: Path, content: str) -> bool:
    """Whether the user has consented to exactly this configuration at this path before."""
    try:
        return _record(path).read_text(encoding="utf-8") == _digest(content)
    except (OSError, UnicodeDecodeError, RuntimeError):
        return False


def _record(path: Path) -> Path:
    given = os.environ.get("XDG_STATE_HOME", "")  # only an absolute path counts: the working directory may be a stranger's
    home = "AppData/Local" if sys.platform == "win32" else ".local/state"
    state = Path(given) if os.path.isabs(given) else Path.home() / home
    return state / "anytime" / "trusted" / _digest(str(path.resolve()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
