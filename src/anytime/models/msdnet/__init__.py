"""MSDNet (Huang, Chen, Li, Wu, van der Maaten, Weinberger, 2018)."""
