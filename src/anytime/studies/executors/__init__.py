"""Where trainings run: each in a subprocess, or small ones in this process."""
