"""Files that the edge run-time writes and reads: nothing of the user is replaced, and nothing is left half written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import anytime_edge
from anytime_edge import Profile
from anytime_edge.profile import check_replaceable
from written_by_hand import graph, written

FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))
"""
MEASURE = """
import runpy, sys
sys.argv = ["", DIR, "1"]
runpy.run_module("anytime_edge", run_name="__main__")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "export", [graph(1).SerializeToString(), graph(2).SerializeToString()])


def measured_in(folder: Path, prelude: str = "") -> subprocess.CompletedProcess:
    """`python -m anytime_edge FOLDER 1`, after lines of Python."""
    where = {**os.environ, "PYTHONPATH": str(Path(anytime_edge.__file__).parents[1])}
    code = prelude + MEASURE.replace("DIR", repr(str(folder)))
    return subprocess.run([sys.executable, "-c", code], env=where, capture_output=True, text=True, timeout=60)


def test_measuring_replaces_only_profiles_and_writes_them_whole(folder: Path, tmp_path: Path) -> None:
    file, mine = folder / "profile.json", tmp_path / "mine.txt"
    mine.write_text("notes")
    file.symlink_to(mine)
    done = measured_in(folder)
    assert (done.returncode, mine.read_text()) == (1, "notes")
    assert done.stderr == f"{file} is a link, and nothing is written through links; move it away\n"
    for text in ('{"my": "own"}', "[" * 100_000, "\xff"):
        file.unlink()
        file.write_text(text)
        with pytest.raises(ValueError, match=r"profile\.json is no profile of this library, so it is not replaced"):
            check_replaceable(file)
    file.write_text("")  # what a full disk left to an earlier version
    assert measured_in(folder).returncode == 0
    before = file.read_bytes()
    assert len(Profile.load(file).steps) == 2
    if sys.platform != "win32":
        done = measured_in(folder, FULL_DISK)
        assert (done.returncode, done.stderr) == (1, f"[Errno 27] File too large: '{file}'\n")
        assert (file.read_bytes(), min(path.name for path in folder.iterdir())) == (before, "manifest.json")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"batches": {"1": {"steps": [[1, 1' + "0" * 400 + ", 0, 0, 0, 0]]}}}"])
def test_a_hostile_profile_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(ValueError, match=r"profile\.json is not a profile of one image: "):
        Profile.load(tmp_path / "profile.json")
