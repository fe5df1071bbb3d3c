"""Neural networks that hold an answer at any moment, and answer better the longer they may compute."""
