"""The precision that a model computes in."""

from __future__ import annotations

from contextlib import nullcontext

import torch


def own_precision(device: torch.device) -> torch.autocast | nullcontext[None]:
    """Within it, a model on `device` computes in the precision of its weights, whatever autocast the caller has set."""
    kind = device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if cast else nullcontext()
