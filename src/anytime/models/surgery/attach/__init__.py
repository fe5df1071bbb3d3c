"""Exits on a given network, cut into stages once."""
