"""Small helpers that any room may import; this room imports nothing of the library."""
