"""List the places where a backbone can be cut into stages, with the cumulative MACs and measured milliseconds of one image
and the shape of the features there. A * marks the exits that --exits would take.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anytime.commands.parser import Parser
from anytime.cost import hardware
from anytime.models.surgery.attach.choice import place_exits
from anytime.models.surgery.attach.cut_points import survey
from anytime.models.surgery.backbones import build_backbone
from anytime.reporting.tables import Column, format_table
from anytime.support.text import one_line, printable
from anytime.support.units import image_size, macs_text, ms_text

COLUMNS = (
    Column("exit", "exit"),
    Column("name", "cut after"),
    Column("macs", "MACs", macs_text),
    Column("share", "% of MACs", ".1%"),
    Column("seconds", "ms", ms_text),
    Column("time", "% of ms", ".1%"),
    Column("shape", "features"),
)


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "exits",
        __doc__,
        "  anytime exits timm:convnext_tiny\n"
        "  anytime exits torchvision:resnet18 --exits 4 --spread latency --first 0.15\n"
        "  anytime exits my_package.MyNetwork --input-size 1,28,28",
    )
    parser.add_argument("backbone", metavar="BACKBONE", help="torchvision:NAME, timm:NAME, hf:NAME or an import path")
    parser.add_argument("--exits", type=int, metavar="N", help="mark the places for N answers, including the network's own")
    parser.add_argument("--spread", choices=["macs", "latency"], default="macs", help="cost to divide evenly (default: macs)")
    parser.add_argument("--first", type=float, metavar="SHARE", help="share of the cost at the first exit, e.g. 0.15")
    size_help = "size of the images, or N for square colour images (default: 224)"
    parser.add_argument("--input-size", default="224", metavar="C,H,W", help=size_help)
    parser.add_argument("--classes", type=int, default=1000, help="classes of the network's own answer (default: 1000)")
    parser.add_device("where to measure")
    options = parser.parse_args(arguments)
    if options.classes < 1:
        parser.error(f"--classes must be at least 1, got {options.classes}")
    try:
        size = image_size(options.input_size)
        device = torch.device(options.device)
        network = build_backbone(options.backbone, options.classes, size).network.to(device)
    except ValueError as error:
        parser.error(str(error))
    except (RuntimeError, AssertionError) as error:
        parser.error(f"{options.backbone} cannot run on {options.device!r}: {str(error).splitlines()[0]}")
    try:
        surveyed = survey(network, size, measure=True)
    except RuntimeError as error:  # too little memory
        raise ValueError(f"{options.backbone} cannot run on an image of {options.input_size}: {one_line(error)}") from error
    chosen: list[int] = []
    if options.exits:
        surveyed, chosen = place_exits(surveyed, options.exits, options.spread, options.first)
    end = surveyed.end
    rows = [
        {
            "exit": "*" if i in chosen else "",
            "name": cut.name,
            "macs": cut.macs,
            "share": cut.macs / end.macs,
            "seconds": cut.seconds,
            "time": (cut.seconds or 0) / (end.seconds or 1),
            "shape": " x ".join(map(str, cut.shape)) + (" (channels last)" if cut.channels_last else ""),
        }
        for i, cut in enumerate((*surveyed.cuts, end))
    ]
    print(f"{printable(options.backbone)}, one image of {' x '.join(map(str, size))}, on {hardware(device)}:")
    print(format_table(rows, COLUMNS if chosen else COLUMNS[1:]))
    return 0
