"""The verbs of the command `anytime`, one file each."""
