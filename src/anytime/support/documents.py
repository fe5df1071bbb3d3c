"""JSON and YAML of unknown origin: a damaged document ends in one sentence that names its source."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from anytime.support.folders import check_ordinary
from anytime.support.text import one_line
from anytime.support.trust import is_consented

DEPTH, NODES = 100, 100_000  # far beyond any document of this library
CHARACTERS = 500_000  # of YAML, which is read slowly; a trusted file may have more, and more values
_CONSENT = "if you trust this file, use trust=True, or --trust on the command line"


TEXTS = 5  # YAML in texts of YAML
_NAME = re.compile(r"\w[\w ./-]{0,99}")  # no collection of YAML
_PLAIN = (str, int, float, type(None))
DIGITS = 400  # and signs of a number: no float has more before its point


class TooLarge(ValueError):
    """A document is nested too deeply or holds too many values; its text may be short."""


class _Expands(yaml.YAMLError):
    """Merge keys or numbers expand without end."""


_TAG = "tag:yaml.org,2002:"
_RESOLVERS = yaml.SafeLoader.yaml_implicit_resolvers.items()


class _Loader(yaml.SafeLoader):
    """The safe loader, where dates and `=` are texts; merge keys may not expand without end."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in pairs if tag not in (f"{_TAG}timestamp", f"{_TAG}value")]
        for first, pairs in _RESOLVERS
    }
    merged = 0

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if node.tag in (f"{_TAG}int", f"{_TAG}float") and len(value) > DIGITS:  # 1:1:1... takes quadratic time
            raise _Expands(f"a number has {len(value):,} characters, more than {DIGITS}")
        return value

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > NODES:
            raise _Expands(f"its merge keys expand to more than {NODES:,} values")


_Loader.add_constructor(f"{_TAG}merge", yaml.SafeLoader.construct_yaml_str)  # << as a value


class _TextLoader(_Loader):
    """Leaves all values as text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in pairs if tag == f"{_TAG}merge"] for first, pairs in _RESOLVERS
    }


def check_written(what: str, value: Any) -> None:
    """Raises ValueError, which begins with `what`, unless JSON gives a value back as it was, tuples as lists."""
    try:
        back = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be saved: {one_line(error)}") from error
    if back != _with_lists(value):
        raise ValueError(f"{what} cannot be saved: a file would give back {back!r} for {value!r}")


def _with_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_lists(each) for key, each in value.items()}
    return [_with_lists(each) for each in value] if isinstance(value, tuple | list) else value


def read_limited(path: Path, most: int) -> bytes:
    """The bytes of a file; raises TooLarge if it has more than `most` and the user has not declared it trustworthy.

    Raises ValueError if it is a pipe, a socket or a device.
    """
    check_ordinary(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most and not is_consented():
            raise TooLarge(f"{path} has {size:,} bytes, more than {most:,}; {_CONSENT}")
        return file.read()


def parse_json(text: str | bytes, source: object, nodes: int = NODES) -> Any:
    """The content of a JSON document; raises ValueError if it is damaged, nested deeper than `DEPTH`, or has more `nodes`."""
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opened > nodes and not is_consented():  # which the reader would take a minute and gigabytes to find out
        raise TooLarge(f"{source} is damaged: it holds more than {nodes:,} values; {_CONSENT}")
    try:
        content = json.loads(text)
    except RecursionError:
        raise TooLarge(f"{source} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{source} is damaged: {error}") from error
    return _checked(content, source, nodes)


def parse_yaml(text: str | bytes, source: object, as_text: bool = False) -> Any:
    """The content of a YAML document with plain values only; raises ValueError as `parse_json` does.

    With `as_text` every value is a text as it is written, also numbers and null. Aliases may not expand to more than `NODES`
    values.
    """
    if len(text) > CHARACTERS and not is_consented():
        raise TooLarge(f"{source} has {len(text):,} characters, more than {CHARACTERS:,}; {_CONSENT}")
    if _open_brackets(text) > 2 * DEPTH:  # which the reader would take seconds to find out
        raise TooLarge(f"{source} is not valid YAML: it is nested too deeply")
    try:
        content = yaml.load(text, Loader=_TextLoader if as_text else _Loader)
    except RecursionError:
        raise TooLarge(f"{source} is not valid YAML: it is nested too deeply") from None
    except _Expands as error:
        raise TooLarge(f"{source} is not valid YAML: {error}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # of `!!bool x`
        raise ValueError(f"{source} is not valid YAML: {one_line(error)}") from error
    return _checked(content, source)


def _open_brackets(text: str | bytes) -> int:
    """The most brackets of a text that are open at the same place."""
    brackets = re.findall(r"[\[\]{}]", text if isinstance(text, str) else text.decode(errors="replace"))
    return max(itertools.accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)


def check_text(text: Any, source: object) -> None:
    """Raises TooLarge if a text that others will read as YAML is more than any of this library; it may be no YAML at all.

    So does a value that holds such a text: jsonargparse reads texts within lists and mappings as well.
    """
    pending: list[tuple[Any, int]] = [(text, 0)]
    known: set[str] = set()
    count = 0
    while pending:
        value, depth = pending.pop()
        count += 1
        if depth > TEXTS or count > NODES:
            raise TooLarge(f"{source} holds texts of YAML with more than {NODES:,} values, or deeper than {TEXTS}")
        if isinstance(value, dict | list):
            inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            pending += [(item, depth) for item in inner]
        elif isinstance(value, str) and value not in known and not _NAME.fullmatch(value):
            known.add(value)
            try:
                pending.append((parse_yaml(value, source), depth + 1))
            except TooLarge:
                raise
            except ValueError:  # such as the pattern [a-c]*
                continue


def _checked(content: Any, source: object, nodes: int = NODES) -> Any:
    pending, count = [(content, 1, "")], 0
    while pending:
        value, depth, key = pending.pop()
        if isinstance(value, dict):
            inner = [(item, name) for name, held in value.items() for item, name in ((name, key), (held, name))]
        elif isinstance(value, list):
            inner = [(item, key) for item in value]
        elif isinstance(value, _PLAIN):
            continue
        else:  # of a tag such as !!binary or !!set
            where, kind = f" under {key!a:.50}" if key != "" else "", type(value).__name__
            raise ValueError(f"{source} holds {value!a:.50} of type {kind}{where}, which is no text, number, list or mapping")
        count += len(inner)
        if depth > DEPTH:
            raise TooLarge(f"{source} is damaged: it is nested too deeply")
        if count > nodes and not is_consented():
            raise TooLarge(f"{source} is damaged: it holds more than {nodes:,} values; {_CONSENT}")
        pending += [(item, depth + 1, name) for item, name in inner]
    return content
