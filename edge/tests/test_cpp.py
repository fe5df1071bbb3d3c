"""The example in C++, where a compiler, the headers of ONNX Runtime and its library are at hand.

The headers come with Debian's libonnxruntime-dev or a release of ONNX Runtime, whose folder `ONNXRUNTIME_DIR` may name. The
library may be that of the Python package.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from anytime_edge import Predictor  # noqa: E402
from written_by_hand import SIZE, graph, written  # noqa: E402

PLACES = [Path(place) for place in (os.environ.get("ONNXRUNTIME_DIR"), "/usr", "/usr/local") if place]
HEADERS = [file.parent for place in PLACES for file in sorted((place / "include").rglob("onnxruntime_cxx_api.h"))]
FOLDERS = [folder for place in PLACES for folder in (place / "lib", *place.glob("lib/*-linux-gnu")) if folder.is_dir()]
PACKAGE = Path(onnxruntime.__file__).parent / "capi"
LIBRARIES = [file for folder in (*FOLDERS, PACKAGE) for file in sorted(folder.glob("libonnxruntime.so*")) if file.is_file()]
MISSING = [
    name
    for name, there in (("g++", shutil.which("g++")), ("headers", HEADERS), ("library of ONNX Runtime", LIBRARIES))
    if not there
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"has no {', no '.join(MISSING)}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export whose second step takes a tenth of a second or so."""
    return written(
        tmp_path_factory.mktemp("cpp") / "export", [graph(1).SerializeToString(), graph(2, 400).SerializeToString()]
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("program")
    (made / "libonnxruntime.so.1").symlink_to(LIBRARIES[0].resolve())  # the name under which the program looks for it
    source, flags = Path(__file__).parents[1] / "cpp/deadline.cpp", ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread"]
    linked = [str(made / "libonnxruntime.so.1"), f"-Wl,-rpath,{made}"]
    subprocess.run(["g++", *flags, f"-isystem{HEADERS[0]}", str(source), "-o", str(made / "deadline"), *linked], check=True)
    return made / "deadline"


def answer(*arguments: object) -> tuple[int, str]:
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_it_answers_as_the_edge_run_time(program: Path, folder: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((1, *SIZE), np.float32)
    image.tofile(tmp_path / "image.f32")
    expected = Predictor(folder)(image)
    code, text = answer(program, folder, 60_000, tmp_path / "image.f32")
    found = re.fullmatch(r"step 2 of 2, class (\d) \((.*) %\), .* ms\n", text)
    assert code == 0, text
    assert found, text
    assert int(found[1]) == expected.label
    assert float(found[2]) == pytest.approx(100 * float(expected.confidence[0]), abs=0.051)


def test_a_deadline_ends_the_step_in_progress(program: Path, folder: Path) -> None:
    assert re.fullmatch(r"no step in .* ms\n", answer(program, folder, 0)[1])
    code, text = answer(program, folder, 20)
    found = re.fullmatch(r"(step 1 of 2, class .*|no step in) (?P<ms>.*) ms\n", text)  # no step, where the machine is busy
    whole = re.fullmatch(r"step 2 of 2, .*, (.*) ms\n", answer(program, folder, 60_000)[1])
    assert code == 0, text
    assert found, text
    assert whole
    assert float(found["ms"]) < float(whole[1])


def test_errors_are_one_sentence(program: Path, folder: Path, tmp_path: Path) -> None:
    assert answer(program, folder, "soon") == (1, "usage: deadline FOLDER MILLISECONDS [IMAGE.f32]\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    for key, value, message in (
        ("format", 2, "not an ONNX export of format 1\n"),
        ("levels", None, "the manifest has no levels\n"),
        (
            "steps",
            [{**manifest["steps"][0], "file": "../step_1.onnx"}],
            "the manifest names a file that no export has: ../step_1.onnx\n",
        ),
    ):
        changed = {name: own for name, own in {**manifest, key: value}.items() if own is not None}
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        assert answer(program, tmp_path, 5) == (1, message)
    damaged = written(tmp_path / "damaged", [graph(1).SerializeToString(), graph(1).SerializeToString()])
    code, text = answer(program, damaged, 60_000)  # the second step has no input of the manifest's name
    assert code == 1
    assert "input_0" in text
