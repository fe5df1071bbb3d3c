"""A given network as a cascade: delays between its residual blocks."""
