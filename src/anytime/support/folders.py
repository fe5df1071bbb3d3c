"""A run or model directory may come from a stranger: its links lead nowhere else, and nobody waits for its pipes."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

LOCK = ".lock"
REPLACEMENT = "replacement"
CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of a model
STATE = "run.json"  # of a training
MANIFEST = "manifest.json"  # of an export
LOSSES = "training-losses.json"  # of a study
REPORTS = ("report.html", "report-validation.html")
PAGE = "live.html"  # of a demo
FIGURES = ("steps.png", "speed_accuracy.png", "calibration.png", "per_class.png")
OWN = (  # what this library writes into a run directory; `trace-PART-NETWORK.safetensors` is a study's
    *("run.json", "config.yaml", "config.json", "model.safetensors", "images.safetensors", "profile.json"),
    *("checkpoints/last.ckpt", "metrics/metrics.csv", "tensorboard/events.out.tfevents.*", "tensorboard/hparams.yaml"),
    *("trace-test.safetensors", "metrics-test.json", "report.html", *(f"figures/{name}" for name in FIGURES)),
    *("trace-validation.safetensors", "metrics-validation.json", "report-validation.html", ".config.json.*.next"),
    *(f"figures/validation/{name}" for name in FIGURES),
    *(LOSSES, PAGE),
)
STUDY_TRACES = ("trace-test-*.safetensors", "trace-validation-*.safetensors", "trace-unknown-*.safetensors")
EXPORTED = (MANIFEST, "step_*.onnx", "step_*.pt2", "step_*.pte")  # what it writes into an exported folder
FOLDERS = (REPLACEMENT, *{Path(pattern).parts[0] for pattern in OWN if len(Path(pattern).parts) > 1})
_FILES = (LOCK, *(pattern for pattern in OWN if len(Path(pattern).parts) == 1), *STUDY_TRACES)
PART = re.compile(r"\..+\.anytime-([0-9a-f]{8})-(\d+)-\d+\.part")  # host and process, see support.files.part_of
_MOST = 10_000  # entries that are looked at


def check_folder(folder: Path) -> None:
    """Raises ValueError if `check_file` does for an entry of this library, or one of its folders is a link or holds any."""
    for entry, inside in _own_entries(folder):
        if inside or entry.name in (LOCK, *FOLDERS):  # others than this library write there
            check_no_link(entry.path)
        check_file(entry.path)
        if not inside and entry.name not in FOLDERS and entry.is_dir():
            raise ValueError(f"{entry.path} is a folder, where this library has a file; move it away")


def check_no_link(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if `path` is a link: nothing is written through links."""
    if os.path.islink(path):
        raise ValueError(f"{path} is a link, and nothing is written through links; put there what it leads to")


def check_file(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if a file is a link that leads out of its folder, or a pipe, a socket or a device.

    Links in the hub's cache are followed, whose `snapshots/REVISION/FILE` lead to `blobs`.
    """
    if os.path.islink(path):
        root, target = Path(os.path.realpath(Path(path).parent)), Path(os.path.realpath(path))
        hub = root.parent.name == "snapshots" and target.parent == root.parents[1] / "blobs"
        if not (target.is_relative_to(root) or hub):
            raise ValueError(f"{path} is a link that leads out of its folder; put there what it leads to")
    check_ordinary(path)


def check_ordinary(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if `path` is a pipe, a socket or a device, on which a reader may wait for ever."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError:  # missing or unreadable, which whoever opens it says
        return
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"{path} is a pipe, a socket or a device, not an ordinary file")


def holds_only_own(folder: Path, more: Iterable[str] = ()) -> bool:
    """Whether all files in a folder, at any depth, have names of this library, as in a run directory, or those of `more`."""
    patterns = (*OWN, *STUDY_TRACES, LOCK, *more)
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name).relative_to(folder).as_posix()
            if not (PART.fullmatch(name) or any(fnmatch(file, pattern) for pattern in patterns)):
                return False
    return True


def _own_entries(folder: Path) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """The entries that are this library's, and whether they lie in one of its folders."""
    left = _MOST
    pending = [(os.fspath(folder), False)]
    while pending:
        path, inside = pending.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                own_folder = inside or entry.name in FOLDERS
                if not own_folder and not any(fnmatch(entry.name, pattern) for pattern in _FILES):
                    continue
                left -= 1
                if left < 0:
                    raise ValueError(f"{folder} holds more than {_MOST:,} files of a run; move some away")
                yield entry, inside
                if own_folder and entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, True))
