"""Answers requests over HTTP: a scheduler that sheds depth before it refuses, and the application around it."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "ray_app":  # late, because it needs the extra `serve`
        from anytime.server.ray import ray_app

        return ray_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
