"""Turns a given network into an anytime one: exits on its stages, or delays between its blocks."""
