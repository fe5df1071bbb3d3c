"""Cascaded and serial networks: all blocks update in parallel, with delays (Iuzzolino et al. 2021)."""
