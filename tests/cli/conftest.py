"""A small trained run for the commands, and the form of their errors."""

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from anytime.cli import main

TINY = [
    *("--model", "anytimenet", "--model.blocks", "[1,2,1]", "--model.scheme", "[[1,1,1],[0,1,0]]", "--model.width", "4"),
    *("--data", "digits", "--data.limit", "128", "--epochs", "1", "--progress", "false"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run trained under bf16 autocast and evaluated."""
    run = tmp_path_factory.mktemp("cli") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.parent)
        assert main(["train", *TINY, "--precision", "bf16-mixed", "--run", str(run)]) == 0
        assert main(["evaluate", str(run)]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> str:
    """A copy of the trained run in the current folder."""
    shutil.copytree(trained, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    return "tiny"


@pytest.fixture
def images(run) -> list[str]:
    """A grey, a wide colour and a palette image with transparency, none of the model's size."""
    Image.linear_gradient("L").resize((20, 30)).save("grey.png")
    Image.new("RGB", (200, 30), (200, 10, 90)).save("wide.jpg")
    Image.new("RGBA", (8, 8), (200, 10, 90, 0)).quantize().save("palette.gif")
    return ["grey.png", "wide.jpg", "palette.gif"]


@pytest.fixture
def refused(capsys) -> Callable[[list[str], int], str]:
    """Maps `(arguments, code)` to the single line on stderr of a command that fails with `code`."""

    def line(arguments: list[str], code: int) -> str:
        capsys.readouterr()
        assert main(arguments) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith(f"anytime {arguments[0]}: error: ")
        return err

    return line


@pytest.fixture
def threads():
    """Restores the number of threads, which `--threads` sets for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ordinary(run, capfd) -> Callable[[list[str]], tuple[int, str]]:
    """Exit code and stderr of a command in a child that heeds the modes of files, even if the tests run as root."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")

    def call(arguments: list[str]) -> tuple[int, str]:
        capfd.readouterr()
        if not (child := os.fork()):
            code = 99
            try:
                if sys.platform == "linux" and os.geteuid() == 0:
                    _lose_capabilities()
                code = 98 if os.access(run, os.W_OK) else main(arguments)
                sys.stderr.flush()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 98:
            pytest.skip("this user may write to any folder")
        return code, capfd.readouterr().err

    return call


def _lose_capabilities() -> None:
    """Takes from this process what lets root read and write whatever a file's mode says."""
    system = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable
    system.capget(header, sets)
    for place in range(3):
        sets[place] &= ~0b110
    system.capset(header, sets)
