"""JSON and YAML of unknown origin: a damaged document ends in one sentence that names its source."""

from __future__ import annotations

import json
from typing import Any

import yaml

DEPTH, NODES = 100, 100_000  # far beyond any document of this library


class _Loader(yaml.SafeLoader):
    """The safe loader; merge keys may not expand without end."""

    merged = 0

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > NODES:
            raise yaml.YAMLError(f"its merge keys expand to more than {NODES:,} values")


def parse_json(text: str | bytes, source: object) -> Any:
    """The content of a JSON document; raises ValueError if it is damaged, or nested deeper than `DEPTH`."""
    try:
        return _checked(json.loads(text), source)
    except RecursionError:
        raise ValueError(f"{source} is damaged: it is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is damaged: {error}") from error


def parse_yaml(text: str | bytes, source: object) -> Any:
    """The content of a YAML document with plain values only; raises ValueError as `parse_json` does.

    Aliases may not expand to more than `NODES` values.
    """
    try:
        return _checked(yaml.load(text, Loader=_Loader), source)
    except RecursionError:
        raise ValueError(f"{source} is not valid YAML: it is nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def _checked(content: Any, source: object) -> Any:
    pending, count = [(content, 1)], 0
    while pending:
        value, depth = pending.pop()
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
        count += len(inner)
        if depth > DEPTH:
            raise ValueError(f"{source} is damaged: it is nested too deeply")
        if count > NODES:
            raise ValueError(f"{source} is damaged: it holds more than {NODES:,} values")
        pending += [(item, depth + 1) for item in inner]
    return content
