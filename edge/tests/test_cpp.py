"""The example in C++, where g++ and the headers of ONNX Runtime are at hand (in `ONNXRUNTIME_DIR`, or from Debian)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from written_by_hand import graph, written

PLACES = [Path(place) for place in (os.environ.get("ONNXRUNTIME_DIR"), "/usr", "/usr/local") if place]
HEADER = "onnxruntime_cxx_api.h"
FOUND = [file.parent for place in PLACES for file in sorted((place / "include").rglob(HEADER))]


@pytest.mark.skipif(not FOUND or not shutil.which("g++"), reason="needs g++ and the headers of ONNX Runtime")
def test_the_example_answers_by_a_deadline(tmp_path: Path) -> None:
    source, program = Path(__file__).parents[1] / "cpp/deadline.cpp", tmp_path / "deadline"
    folders = [f"-L{place}/lib" for place in PLACES if (place / "lib").is_dir()]
    subprocess.run(
        ["g++", "-std=c++17", "-O1", f"-I{FOUND[0]}", str(source), "-o", str(program), *folders, "-lonnxruntime", "-pthread"],
        check=True,
    )
    folder = written(tmp_path / "export", [graph(1).SerializeToString(), graph(2).SerializeToString()])
    where = {**os.environ, "LD_LIBRARY_PATH": ":".join(f"{place}/lib" for place in PLACES)}
    answer = subprocess.run([str(program), str(folder), "10000"], env=where, capture_output=True, text=True)
    assert answer.stdout.startswith("step 2 of 2, class ")
    assert subprocess.run([str(program), str(folder), "0"], env=where, capture_output=True, text=True).stdout.startswith(
        "no step"
    )
