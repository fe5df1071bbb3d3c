"""List the places where a backbone can be cut into stages: cumulative MACs and measured milliseconds of one image,
and the shape of the features there. A * marks the exits that --exits would take.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anytime.commands.parser import Parser
from anytime.cost import hardware
from anytime.models.surgery.attach.cut_points import choose_cuts, survey
from anytime.models.surgery.backbones import build_backbone
from anytime.reporting.tables import Column, format_table
from anytime.support.units import macs_text, ms_text

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
    parser.add_argument("backbone", metavar="BACKBONE", help="torchvision:NAME, timm:NAME or the import path of a class")
    parser.add_argument("--exits", type=int, metavar="N", help="mark the places of N answers, the network's own included")
    parser.add_argument("--spread", choices=["macs", "latency"], default="macs", help="even shares of what (default: macs)")
    parser.add_argument("--first", type=float, metavar="SHARE", help="share of the cost at the first exit, e.g. 0.15")
    parser.add_argument("--input-size", default="3,224,224", metavar="C,H,W", help="size of the images (default: 3,224,224)")
    parser.add_argument("--classes", type=int, default=1000, help="classes of the network's own answer (default: 1000)")
    parser.add_device("where to measure")
    options = parser.parse_args(arguments)
    size = options.input_size.split(",")
    if len(size) != 3 or not all(number.isdigit() and int(number) > 0 for number in size):
        parser.error(f"--input-size must be channels,height,width like 3,224,224, got {options.input_size!r}")
    if options.classes < 1:
        parser.error(f"--classes must be at least 1, got {options.classes}")
    sizes = [int(number) for number in size]
    try:
        device = torch.device(options.device)
        network = build_backbone(options.backbone, options.classes, sizes).network.to(device)
    except ValueError as error:
        parser.error(str(error))
    except (RuntimeError, AssertionError) as error:
        parser.error(f"{options.backbone} cannot run on {options.device!r}: {str(error).splitlines()[0]}")
    surveyed = survey(network, sizes, measure=True)
    end = surveyed.end
    chosen = choose_cuts(surveyed, options.exits, options.spread, options.first) if options.exits else []
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
    print(f"{options.backbone}, one image of {' x '.join(size)}, on {hardware(device)}:")
    print(format_table(rows, COLUMNS if chosen else COLUMNS[1:]))
    return 0
