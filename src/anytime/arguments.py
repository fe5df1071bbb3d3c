"""What several commands ask of their arguments."""

from __future__ import annotations

from pathlib import Path

from anytime.parser import Parser
from anytime.support.names import nearest

RUN_HELP = "a run directory, or the name of a pretrained model (see `anytime models`)"


def check_trained(parser: Parser, name: str) -> None:
    """Refuses what is neither a run directory nor a pretrained model."""
    from anytime.pretrained import list_pretrained

    if not Path(name).is_dir() and name not in list_pretrained():
        valid = [*list_pretrained(), *(str(path.parent) for path in sorted(Path().glob("runs/*/run.json")))]
        hint = nearest(name, valid) if valid else ""
        parser.error(f"there is no run directory and no pretrained model {name!r}{hint}")


def check_device(parser: Parser, name: str) -> None:
    """Refuses a device that this machine does not have."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"device {name!r} is not available here: {str(error).splitlines()[0]}")
