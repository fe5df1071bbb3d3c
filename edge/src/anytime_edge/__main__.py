"""`python -m anytime_edge DIR [REPEATS]` measures each step on this machine and writes `profile.json` into the folder."""

import sys
from pathlib import Path

from anytime_edge import load, profile
from anytime_edge.profile import check_replaceable

if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3 or not "".join(sys.argv[2:] or "1").isdecimal():
        sys.exit(__doc__)
    file = Path(sys.argv[1], "profile.json")
    try:
        check_replaceable(file)
        measured = profile(load(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 1000)
        measured.save(file)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    for t, row in enumerate(measured.steps, 1):
        print(f"step {t}: " + ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in row.items()))
