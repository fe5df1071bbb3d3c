"""Engines: what computes the steps of a model, in torch or in an export without it."""
