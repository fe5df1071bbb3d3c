"""Answers requests over HTTP: a scheduler that sheds depth before it refuses, and the application around it."""

from anytime.server.ray import ray_app

__all__ = ["ray_app"]
