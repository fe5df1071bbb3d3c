"""Plain classifiers for images of 32x32 pixels, as backbones for exits."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class ResNet20(nn.Sequential):
    """Three stages of three residual blocks at widths w, 2w and 4w, at 32, 16 and 8 pixels: 20 layers.

    Args:
        num_classes: K.
        in_channels: C.
        width: w.

    Source: He et al. 2016, section 4.2, with projections where the shape changes.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        from torchvision.models.resnet import BasicBlock

        stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
        before = width
        for stage in range(3):
            blocks = []
            for block in range(3):
                after, stride = width << stage, 2 if stage and not block else 1
                change = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
                blocks.append(BasicBlock(before, after, stride, change if stride > 1 else None))
                before = after
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(before, num_classes)}
        super().__init__(layers)


class SmallMobileNet(nn.Sequential):
    """MobileNetV2 with 10 inverted residual blocks, at 16, 8 and 4 pixels.

    Args:
        num_classes: K.
        in_channels: C.
        width: Factor of the usual widths.

    Source: Sandler et al. 2018, table 2, with fewer blocks and strides; the first convolution has stride 2, as there.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 0.5) -> None:
        from torchvision.models import MobileNetV2

        # expansion, width, blocks, stride
        blocks = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 3, 2], [6, 96, 1, 1]]
        network = MobileNetV2(num_classes, width, blocks, dropout=0.0)
        features, classifier = network.features, network.classifier
        features[0][0] = nn.Conv2d(in_channels, features[0][0].out_channels, 3, 2, 1, bias=False)
        nn.init.kaiming_normal_(features[0][0].weight, mode="fan_out")
        layers = {"features": features, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "classifier": classifier}
        super().__init__(OrderedDict(layers))
