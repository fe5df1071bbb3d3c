"""The verbs of the command `anytime`, one file each: its docstring is the help, `run(arguments)` returns the exit code."""
