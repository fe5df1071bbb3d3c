"""Metrics as pure functions of traces: nothing here runs a network."""
