"""Mean and standard deviation of images."""

import torch
from torch import Tensor


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 `[N, C, H, W]`, in [0, 1].

    They are computed from exact counts of the 256 values, so that they are the same everywhere.
    """
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]).double()
    share = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    return mean.tolist(), variance.sqrt().tolist()
