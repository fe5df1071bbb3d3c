"""Classify images with a trained model; the answer is shown as it improves, until the deadline.
With --camera-like, the images of a folder arrive as frames at a fixed rate, and each must be answered before the next.
With --stream, a cascaded network follows the frames of a folder: it keeps its state and never starts anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime import stopping
from anytime.combine import Combiner
from anytime.commands.parser import Parser
from anytime.cost import step_macs
from anytime.model import AnytimeModel, known_input_size, require_classifier
from anytime.pretrained import load
from anytime.runtime import Answer, Predictor, profile
from anytime.stopping import Rule
from anytime.stopping.levels import LevelChoice, answer_text
from anytime.support.files import atomic_write
from anytime.support.text import printable
from anytime.support.units import macs_text, ms_text, typed_seconds


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "predict",
        __doc__,
        "  anytime predict fast_cifar10 photo.png --deadline 5ms\n  anytime predict runs/demo a.png b.png --top 3\n"
        "  anytime predict runs/demo photo.png --stop confidence=0.9 --combine product\n"
        "  anytime predict runs/demo photo.png --plot course.png\n"
        "  anytime predict fast_cifar10 photos/ --camera-like --fps 30\n"
        "  anytime predict runs/cascade film/ --stream --updates 2\n"
        "  anytime predict fast_cifar10 photo.png --server http://127.0.0.1:8000 --deadline 20ms",
    )
    parser.add_model("model")
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image files; with --camera-like or --stream a folder"
    )
    parser.add_argument("--deadline", metavar="TIME", help="time for each image, e.g. 5ms, 0.2s, 0.005 (default: none)")
    parser.add_device()
    parser.add_argument("--top", type=int, default=1, help="classes to show per answer (default: 1)")
    parser.add_argument(
        "--combine",
        metavar="NAME",
        help="how steps' outputs become answers: last, caching, product, mixture, or a name given to `anytime fit` (default: "
        "the one fitted with the rule, or else last)",
    )
    stop = "stop early by a rule saved by `anytime fit`, or by e.g. confidence=0.9, margin=0.5, patience=3"
    parser.add_argument("--stop", metavar="RULE", help=stop)
    parser.add_argument("--camera-like", action="store_true", help="treat the images of a folder as frames at a fixed rate")
    parser.add_argument("--fps", type=float, help="frames per second (default: 30)")
    parser.add_argument(
        "--stream", action="store_true", help="follow the images of a folder, in alphabetical order (f1, f10, f2), as a film"
    )
    parser.add_argument("--updates", type=int, metavar="N", help="with --stream, steps of the network a frame (default: 1)")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the class probabilities of one image over steps, MACs and milliseconds"
    )
    parser.add_overwrite("the figure of --plot")
    parser.add_argument("--server", metavar="URL", help="ask a model of `anytime serve`, by the name that it has there")
    options = parser.parse_args(arguments)
    if options.server is not None:
        from anytime.commands.served_answers import show_served

        return show_served(parser, options)
    if options.top < 1:
        parser.error(f"--top must be at least 1, got {options.top}")
    if options.camera_like and options.deadline is not None:
        parser.error("with --camera-like the deadline of each frame is the next frame: give --fps instead of --deadline")
    if options.fps is not None and not options.camera_like:
        parser.error(f"--fps {options.fps:g} is the rate of --camera-like: give both, or neither")
    if options.fps is not None and not 0 < options.fps < 1e6:
        parser.error(f"--fps must be a number of frames per second above zero, got {options.fps:g}")
    if options.updates is not None and not options.stream:
        parser.error(f"--updates {options.updates} are the steps of --stream for each frame: give both, or neither")
    if options.updates is not None and options.updates < 1:
        parser.error(f"--updates must be at least 1 for each frame, got {options.updates}")
    for flag, given in (("--camera-like", options.camera_like), ("--deadline", options.deadline), ("--stop", options.stop)):
        if options.stream and given not in (None, False):
            parser.error(f"--stream answers every frame after the same number of steps: leave out {flag}")
    folders = [path for path in options.images if path.is_dir()]
    if options.stream and folders and len(options.images) > 1:
        parser.error(f"--stream needs one folder, or the images of one film, got {' '.join(map(str, options.images))}")
    if options.camera_like and (len(options.images) > 1 or not folders):
        parser.error(f"--camera-like needs one folder of images, got {' '.join(map(str, options.images))}")
    if folders and not options.camera_like and not options.stream:
        parser.error(f"{folders[0]} is a folder: name its images, or add --camera-like or --stream")
    if options.plot is not None:
        _check_plot(parser, options)
    parser.check_model(options.model)
    parser.check_device(options.device)
    model = load(options.model, options.trust)
    require_classifier(model, "anytime predict")
    size = known_input_size(model) or (model.in_channels, 32, 32)
    macs = step_macs(model, size, progress=sys.stderr.isatty()) if options.combine == "mixture" else None
    try:
        deadline = None if options.deadline is None else typed_seconds(options.deadline)
        rule, combine = stopping.resolve(model, options.stop, options.combine, macs)
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    model.to(options.device)
    if options.stream:
        from anytime.commands.followed import follow, frame_files

        predictor = Predictor(model, combine=combine, stop=rule)
        follow(predictor, frame_files(options.images), size, options.updates or 1, options.top)
        return 0
    if options.camera_like:
        from anytime.commands.live_table import show_frames

        show_frames(model, options.images[0], size, options.fps or 30.0, rule, combine)
        return 0
    from anytime.data import read_image

    view = model.info.resize_ratio, model.info.stretched
    images = [read_image(path, size, *view) for path in options.images]  # all first: one may be damaged
    answers = _predict(model, list(zip(options.images, images, strict=True)), deadline, options.top, combine, rule)
    if options.plot is not None:
        _draw(model, answers, options.plot, options.images[0].name, options.overwrite)
    return 0


def _check_plot(parser: Parser, options: Any) -> None:
    """Ends the command unless the figure of `--plot` can be drawn and written."""
    from anytime.reporting.plots import file_kind, file_kinds

    if options.camera_like or options.stream or len(options.images) > 1:
        what = "a folder" if options.images[0].is_dir() else f"{len(options.images)} images"
        parser.error(f"--plot draws the time course of one image, got {what}")
    kinds = file_kinds()
    if file_kind(options.plot) not in kinds:
        parser.error(f"--plot needs the name of a figure, ending with one of {', '.join(kinds)}; got {str(options.plot)!r}")
    parser.check_free(options.plot, "--plot", options.overwrite)


def _draw(model: AnytimeModel, answers: Sequence[Answer], path: Path, title: str, replace: bool) -> None:
    """Writes the figure of the time course of one image; raises ValueError if it is there meanwhile, unless `replace`."""
    from anytime.reporting.dynamics import time_course
    from anytime.reporting.plots import file_kind

    if not answers:
        raise ValueError("no step answered before the deadline, so there is no time course to draw")
    names = model.info.class_names or [str(k) for k in range(model.num_classes)]
    figure = time_course(
        torch.stack([answer.probabilities[0].cpu() for answer in answers]),
        names[: model.levels[0]],
        macs=[int(answer.macs[0]) for answer in answers],
        seconds=[answer.elapsed for answer in answers],
        steps=[answer.step for answer in answers],
        title=title,
    )
    with atomic_write(path, replace) as part:
        figure.savefig(part, format=file_kind(path), dpi=150)
    print(printable(f"wrote {path}"))


def _predict(
    model: AnytimeModel,
    images: Sequence[tuple[Path, Tensor]],
    deadline: float | None,
    top: int,
    combine: Combiner,
    stop: Rule | None,
) -> list[Answer]:
    """Prints the answers about each image as they come; returns those of steps."""
    names = model.info.class_names or [str(k) for size in model.levels for k in range(size)]
    choice = LevelChoice.saved_in(model)
    measured = profile(model, images[0][1][None], repeats=50, progress=sys.stderr.isatty(), contract=False)
    predictor = Predictor(model, measured, combine, stop, quantile="p50")
    device = next(model.parameters()).device
    passed = deadline is not None and deadline <= 0
    given = "no deadline" if deadline is None else "deadline passed" if passed else f"deadline {ms_text(deadline)} ms"
    answers: list[Answer] = []
    for path, image in images:
        print(f"{printable(str(path))} ({given})")
        for answer in predictor.stream(image[None].to(device), deadline):
            if answer.step < 1:
                first = ms_text(measured.at(1).steps[0].p50)
                why = "the deadline has passed" if passed else f"no step fits: the first takes about {first} ms here"
                print(f"  {why}, so the answer is the prior: all classes are equally likely")
                continue
            answers.append(answer)
            text = answer_text([level[0] for level in answer.levels], names, answer.step, choice, top)
            cost = f"{macs_text(int(answer.macs[0])):>8} MACs {ms_text(answer.elapsed):>6} ms"
            missed = "  (after the deadline)" if answer.missed else ""
            print(f"  step {answer.step}/{model.num_steps}  {cost}  {printable(text)}{missed}", flush=True)
    return answers
