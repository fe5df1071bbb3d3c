"""Metrics as pure functions of traces; only `robustness` runs a network, because noise streams are no data set."""
