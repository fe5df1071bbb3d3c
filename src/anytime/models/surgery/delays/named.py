"""Propagation delays on a network given by name, for commands and configuration files."""

from __future__ import annotations

from typing import Any, Literal

from anytime.models.common.step_norm import Statistics
from anytime.models.surgery.backbones import build_backbone, replace_classifier
from anytime.models.surgery.delays.model import DelayedNetwork
from anytime.registry import register_model
from anytime.support.units import image_size


@register_model
def delayed(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    backbone: str = "torchvision:resnet18",
    branches: tuple[str, ...] | None = None,
    kernel: Literal["osd", "ews", "instant"] | tuple[float, ...] = "osd",
    alpha: float = 0.9,
    num_steps: int | None = None,
    leaves: tuple[str, ...] = (),
    statistics: Statistics | None = None,
    pretrained: bool | str = False,
    reset: bool = False,
    input_size: int | tuple[int, int, int] | None = None,
    options: dict[str, Any] | None = None,
) -> DelayedNetwork:
    """Any torchvision or timm classifier with skip connections as a cascade (Iuzzolino et al. 2021).

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images; other than 3 replaces the first convolution.
        backbone: "torchvision:NAME", "timm:NAME" or the import path of a subclass of torch.nn.Module.
        branches: Names of the modules whose output is delayed; default: the branches of all blocks x + f(x).
        kernel: "osd" (one-step delay), "ews" (smoothing), "instant" (no delay), or the weights of a tapped delay line.
        alpha: Weight of the previous output under smoothing, in [0, 1).
        num_steps: T; default: until the answer has settled (with smoothing 70).
        leaves: Names of modules that run as one operation, because torch.fx cannot look into them.
        statistics: Running statistics of batch norm "per_step" or "shared" by all; default: per step, with smoothing shared.
        pretrained: A file with the backbone's weights; true: those that its library downloads.
        reset: Accept weights of another class count, with a new classifier.
        input_size: (channels, height, width) of the images, or the side of square colour images; default (in_channels, 224,
            224).
        options: Further arguments of the backbone, e.g. {"drop_path_rate": 0.1}.

    Source: Iuzzolino, Mozer, Bengio, NeurIPS 2021, section 2.
    """
    size = (in_channels, 224, 224) if input_size is None else image_size(input_size)
    if size[0] != in_channels:
        raise ValueError(f"input_size must be (channels, height, width) with in_channels={in_channels}, got {size}")
    classes = num_classes if isinstance(num_classes, int) else sum(num_classes)
    built = build_backbone(backbone, classes, size, pretrained, reset, options=options)
    if reset and pretrained is not False:
        replace_classifier(built.network, classes)
    model = DelayedNetwork(built.network, branches, kernel, alpha, num_steps, num_classes, in_channels, leaves, statistics)
    if built.mean is not None and built.std is not None:
        model.set_normalization(built.mean, built.std)
        model.own_normalization = True
    # Branches that were found are not settled: they may not be modules, but are found again.
    model.settled_arguments = {"pretrained": False, "reset": False}
    return model
