"""What appears while a command runs is not replaced, as if it had been there from the beginning."""

import threading
import time
from pathlib import Path

import pytest

from anytime.cli import main
from anytime.support.locks import LOCK, only_writer

COMMANDS = {  # and the function that each calls after its first check of the file
    "predict": (["predict", "tiny", "grey.png", "--plot", "mine.png"], "anytime.reporting.dynamics.time_course"),
    "compare": (["compare", "tiny", "--out", "mine.png"], "anytime.reporting.plots.compare"),
    "default": (["compare", "tiny"], "anytime.reporting.plots.compare"),
    "profile": (["profile", "tiny", "--repeats", "1", "--out", "mine.json"], "anytime.commands.profile.profile"),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_file_that_appears_is_not_replaced(kind, run, images, capsys, monkeypatch):
    arguments, function = COMMANDS[kind]
    mine = Path("runs/compare.png" if kind == "default" else arguments[-1])
    module, _, name = function.rpartition(".")
    called = getattr(__import__(module, fromlist=[name]), name)

    def meanwhile(*given, **more):
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        return called(*given, **more)

    monkeypatch.setattr(function, meanwhile)
    assert main(arguments) == (2 if kind == "profile" else 1)
    assert mine.read_text() == "mine"
    assert "so it is not replaced" in capsys.readouterr().err
    if kind in ("predict", "compare"):
        assert main([*arguments, "--overwrite"]) == 0
        assert mine.read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_waits_and_then_looks_again(run, capsys):
    codes = []
    with only_writer("there", "an evaluation"):
        thread = threading.Thread(target=lambda: codes.append(main(["evaluate", run, "--out", "there"])))
        thread.start()
        while "waiting for an evaluation" not in capsys.readouterr().err:
            time.sleep(0.01)
        Path("there/metrics-test.json").write_text('{"steps": [], "average_error": 0}')
    thread.join()
    assert codes == [2]
    assert [path.name for path in Path("there").iterdir() if path.name != LOCK] == ["metrics-test.json"]
    assert "there/metrics-test.json exists; give another --out, or --overwrite to replace it" in capsys.readouterr().err
