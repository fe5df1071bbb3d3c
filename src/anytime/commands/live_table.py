"""What `anytime predict DIR --camera-like` prints: a live table of how a folder's images, as frames, are answered."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path

from torch import Tensor

from anytime.combine import Combiner
from anytime.data import read_image
from anytime.data.decoding import is_image
from anytime.data.names import composed
from anytime.model import AnytimeModel
from anytime.reporting.tables import Column, format_table
from anytime.runtime import Frame, Predictor, frames, profile
from anytime.stopping import Rule
from anytime.support.names import nearest
from anytime.support.units import ms_text

AHEAD = 16  # images read before their turn, because a camera has them ready
REDRAW = 0.2  # seconds between two tables on a terminal
COLUMNS = (
    Column("by", "answered by"),
    Column("frames", "frames"),
    Column("share", "share", ".1%"),
    Column("accuracy", "accuracy", ".1%"),
    Column("seconds", "mean ms", ms_text),
)


def show_frames(
    model: AnytimeModel,
    folder: Path,
    size: tuple[int, int, int],
    fps: float,
    stop: Rule | None = None,
    combine: Combiner | None = None,
) -> None:
    """Answers the images of a folder as frames and prints a table: live on a terminal, else at the end with a line a second.

    Args:
        model: On its device.
        folder: Images in the order of their names, or folders of images named like classes, which take turns.
        size: (channels, height, width) of the model's images.
        fps: Frames per second.
        stop: A stopping rule in addition to the next frame.
        combine: Makes answers from the outputs of several steps.
    """
    files, labels = list_frames(folder, model.info.class_names[: model.levels[0]])
    device = next(model.parameters()).device
    measured = profile(model, size, repeats=200, progress=sys.stderr.isatty(), contract=False)
    predictor = Predictor(model, measured, combine, stop)
    board = Board(model.num_steps, fps, labels)
    live, erase, last = sys.stdout.isatty(), "", 0.0
    read = partial(read_image, input_size=size, resize_ratio=model.info.resize_ratio, stretched=model.info.stretched)
    for frame in frames(predictor, (image.to(device) for image in read_ahead(files, read)), fps):
        board.add(frame)
        if live and (now := time.monotonic()) - last >= REDRAW:
            text, last = board.text(), now
            print(f"{erase}{text}", flush=True)
            erase = f"\x1b[{len(text.splitlines())}F\x1b[J"  # up to the table's first line, and clear
        elif not live and len(board) % max(round(fps), 1) == 0:
            print(board.line(), flush=True)
    print(f"{erase}{board.text()}")


def list_frames(folder: Path, class_names: Sequence[str] = ()) -> tuple[list[Path], list[int] | None]:
    """The images of a folder in order, and their labels if they lie in folders named like classes.

    Such folders take turns, one image each: they are not a film, and neighbouring frames should differ.

    Raises:
        ValueError: A folder inside is not named like a class of the model.
        FileNotFoundError: There are no images.
    """
    inside = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    classes = [entry for entry in inside if entry.is_dir()]
    class_names = [composed(name) for name in class_names]
    for entry in classes:
        if composed(entry.name) not in class_names:
            hint = nearest(entry.name, class_names) if class_names else ", which has no class names"
            raise ValueError(f"the folder {entry} is not a class of the model{hint}")
    labelled = [[(path, class_names.index(composed(entry.name))) for path in _images(entry)] for entry in classes]
    turns = [pair for pair in chain(*zip_longest(*labelled)) if pair is not None]
    files = [path for path, _ in turns] if classes else _images(folder)
    if not files:
        raise FileNotFoundError(f"there are no images in {folder}")
    return files, [label for _, label in turns] if classes else None


def _images(folder: Path) -> list[Path]:
    inside = (path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    return sorted(path for path in inside if is_image(str(path)))


def read_ahead(files: Sequence[Path], read: Callable[[Path], Tensor]) -> Iterator[Tensor]:
    """The images of some files, read by another thread before their turn."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[Tensor]] = deque()
        for path in files:
            waiting.append(reader.submit(read, path))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Board:
    """Counts frames by the step that answered them. A frame is correct if the answer in hand at the next frame is.

    Args:
        num_steps: T.
        fps: Frames per second.
        labels: Labels of the frames, if known.
    """

    def __init__(self, num_steps: int, fps: float, labels: Sequence[int] | None = None) -> None:
        self._fps, self._labels = fps, labels
        self._counts: dict[int, int] = dict.fromkeys([-1, *range(1, num_steps + 1)], 0)
        self._correct = dict.fromkeys(self._counts, 0)
        self._seconds = dict.fromkeys(self._counts, 0.0)
        self._missed = 0

    def __len__(self) -> int:
        """Number of frames so far."""
        return sum(self._counts.values())

    def add(self, frame: Frame) -> None:
        """Counts one frame."""
        step = -1 if frame.missed else frame.answer.step
        self._counts[step] += 1
        self._missed += frame.missed
        self._seconds[step] += frame.answer.elapsed
        if self._labels is not None and frame.held is not None:
            self._correct[step] += int(frame.held.label) == self._labels[frame.number]

    def line(self) -> str:
        """One line: frames, misses, mean step, accuracy."""
        answered = len(self) - self._missed
        steps = sum(step * count for step, count in self._counts.items() if step > 0)
        mean = f"{steps / answered:.2f}" if answered else "–"
        accuracy = "" if self._labels is None else f", accuracy {sum(self._correct.values()) / len(self):.1%}"
        return f"{len(self)} frames at {self._fps:g} per second: {self._missed} missed, mean step {mean}{accuracy}"

    def text(self) -> str:
        """The line, and a table with a row for each step that answered a frame."""
        rows = [
            {
                "by": f"step {step}" if step > 0 else "no step in time: the previous frame's answer",
                "frames": count,
                "share": count / len(self),
                "accuracy": self._correct[step] / count if self._labels is not None else None,
                "seconds": self._seconds[step] / count if step > 0 else None,
            }
            for step, count in self._counts.items()
            if count
        ]
        return f"{self.line()}\n{format_table(rows, COLUMNS)}"
