"""What `anytime predict DIR --stream` prints: an answer to each frame, from a network that never starts anew."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from anytime.commands.live_table import list_frames, read_ahead
from anytime.data import read_image
from anytime.model import AnytimeModel
from anytime.runtime import Answer, Predictor
from anytime.stopping.levels import LevelChoice, answer_text
from anytime.support.text import printable
from anytime.support.units import ms_text


def frame_files(given: Sequence[Path]) -> list[Path]:
    """The frames of a film in order: the images of one folder by name, or several image files as they are named.

    Raises:
        ValueError: The folder holds folders, whose images are no film.
        FileNotFoundError: There are no images.
    """
    if not given[0].is_dir():
        return list(given)
    inside = sorted(entry.name for entry in given[0].iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if inside:
        raise ValueError(f"--stream needs the frames of one film in {given[0]}, and there are folders in it: {inside[0]}")
    return list_frames(given[0])[0]


def follow(predictor: Predictor, files: Sequence[Path], size: tuple[int, int, int], updates: int, top: int) -> list[Answer]:
    """Prints the answer to each frame as it comes, and at the end the mean time of a frame; returns the answers.

    Args:
        predictor: A predictor of a model that can follow frames, without a rule.
        files: The frames in order.
        size: (channels, height, width) of the model's images.
        updates: Steps for each frame.
        top: Classes to show.

    Raises:
        ValueError: As `Predictor.watch`.
    """
    model: AnytimeModel = predictor.model
    names = model.info.class_names or [str(k) for size in model.levels for k in range(size)]
    choice, device = LevelChoice.saved_in(model), next(model.parameters()).device
    read = partial(read_image, input_size=size, resize_ratio=model.info.resize_ratio, stretched=model.info.stretched)
    frames = (image.to(device) for image in read_ahead(files, read))
    answers = list[Answer]()
    for file, answer in zip(files, predictor.watch(frames, updates), strict=True):
        text = answer_text([level[0] for level in answer.levels], names, answer.step, choice, top)
        answers.append(answer)
        print(f"{len(answers):>6}  {ms_text(answer.elapsed):>6} ms  {printable(text)}  {printable(file.name)}", flush=True)
    changes = sum(bool(one.label != next.label) for one, next in pairwise(answers))
    mean = ms_text(sum(answer.elapsed for answer in answers) / len(answers))
    each = "1 update" if updates == 1 else f"{updates} updates"
    print(f"{len(answers)} frames, {each} each: mean {mean} ms a frame, {changes} changes of the answer")
    return answers
