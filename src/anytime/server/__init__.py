"""Answers requests over HTTP: a scheduler that sheds depth before it refuses, and the application around it."""
