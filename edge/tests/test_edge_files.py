"""Files that the edge run-time writes and reads: nothing of the user is replaced, and nothing is left half written."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import anytime_edge  # noqa: E402
from anytime_edge import Predictor, Profile  # noqa: E402
from anytime_edge.profile import check_replaceable  # noqa: E402
from anytime_edge.recorder import FlightRecorder  # noqa: E402
from written_by_hand import graph, written  # noqa: E402

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


def at_work(folder: Path, file: Path, *, answers: int = 0) -> Predictor:
    """A predictor that has recorded some answers."""
    predictor = Predictor(folder, record=file)
    for _ in range(answers):
        predictor(np.zeros((8, 8, 3), np.uint8))
    predictor.recorder.flush()
    return predictor


def lines(file: Path) -> list[str]:
    """What each line of a flight is: "head", "answer", or "damaged"."""
    kinds = []
    for line in file.read_bytes().splitlines():
        try:
            kinds.append("head" if "kind" in json.loads(line) else "answer")
        except ValueError:
            kinds.append("damaged")
    return kinds


def test_a_flight_has_one_recorder_at_a_time(folder: Path, tmp_path: Path) -> None:
    first = at_work(folder, tmp_path / "flight.jsonl", answers=1)
    with pytest.raises(ValueError, match=r"another recorder writes to .*flight.jsonl; close\(\) that one, or give another"):
        Predictor(folder, record=tmp_path / "flight.jsonl")
    with pytest.raises(ValueError, match="another recorder writes to"):  # the lock is the same one in both run-times
        pytest.importorskip("anytime.runtime.recorder").FlightRecorder(tmp_path / "flight.jsonl", {})
    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            time.sleep(20)
        first.recorder.close()  # a forked process does not hold the lock
        at_work(folder, tmp_path / "flight.jsonl").recorder.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    first.recorder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "flight.jsonl"]
    at_work(folder, tmp_path / "flight.jsonl", answers=1).recorder.close()
    assert lines(tmp_path / "flight.jsonl") == ["head", "answer"] * 2


def test_no_later_page_is_lost_with_one_that_could_not_be_written(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "flights" / "flight.jsonl"
    with pytest.warns(UserWarning, match="2 answers were not recorded: "):
        predictor = at_work(folder, file, answers=2)  # there is no such folder
    file.parent.mkdir()
    predictor(np.zeros((8, 8, 3), np.uint8))
    predictor.recorder.close()
    assert lines(file) == ["head", "answer"]
    file.write_bytes(file.read_bytes()[:-50])  # as a kill leaves it
    at_work(folder, file, answers=2).recorder.close()
    assert lines(file) == ["head", "damaged", "head", "answer", "answer"]


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


def test_a_number_of_runs_that_is_none_is_answered_with_the_usage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ([], [str(folder), "x"], [str(folder), "-1"], [str(folder), "1", "2"]):
        monkeypatch.setattr(sys, "argv", ["anytime_edge", *words])
        with pytest.raises(SystemExit, match=r"`python -m anytime_edge DIR \[REPEATS\]` measures"):
            runpy.run_module("anytime_edge", run_name="__main__")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"batches": {"1": {"steps": [[1, 1' + "0" * 400 + ", 0, 0, 0, 0]]}}}"])
def test_a_hostile_profile_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(ValueError, match=r"profile\.json is not a profile of one image: "):
        Profile.load(tmp_path / "profile.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe is a folder, a pipe or a device, not a profile"):
        Profile.load(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe exists and is no flight of this library"):
        FlightRecorder(tmp_path / "pipe", {})
    with pytest.raises(FileNotFoundError):
        Profile.load(tmp_path / "missing")


def test_as_a_module_nothing_of_the_working_directory_runs(folder: Path, tmp_path: Path) -> None:
    for name in ("numpy", "json", "onnxruntime", "difflib"):
        (tmp_path / f"{name}.py").write_text("open('executed', 'w')\nraise ImportError('payload')\n")
    source = Path(anytime_edge.__file__).parents[1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(source)}
    command = [sys.executable, "-m", "anytime_edge", str(folder), "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("step 1: "), done.stderr
    assert not (tmp_path / "executed").exists()
