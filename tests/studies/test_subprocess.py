"""A training in a subprocess: its output, its interruption and its lock."""

import os
import signal
import stat
import sys
import threading
import time

import pytest

from anytime.studies import TrainingStopped
from anytime.studies.executors.subprocess import log_end, train_in_subprocess


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Replaces Python with `anytime` by a small program."""

    def put(text: str) -> None:
        path = tmp_path / "program"
        path.write_text(f"#!{sys.executable}\nimport signal, sys, time\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr("anytime.studies.executors.subprocess.sys.executable", str(path))

    return put


def test_output_goes_to_the_log_and_the_exit_code_comes_back(program, tmp_path):
    program("print(sys.argv[1:], flush=True); print('1/2\\r2/2', file=sys.stderr); sys.exit(3)")
    log = tmp_path / "logs" / "a.log"
    assert train_in_subprocess(["--epochs", "2"], log) == 3
    assert train_in_subprocess(["--resume", "a"], log) == 3  # appends
    first, second = (f"['-P', '-m', 'anytime', 'train', {rest}]" for rest in ("'--epochs', '2'", "'--resume', 'a'"))
    assert log_end(log) == [first, "2/2", second, "2/2"]
    assert log_end(log, 1) == ["2/2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_forwarded_and_awaited(program, tmp_path, number):
    program(
        "def end(*_):\n    time.sleep(0.2); print('checkpoint', flush=True); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, end); print('ready', flush=True); time.sleep(60)"
    )
    log = tmp_path / "a.log"

    def interrupt() -> None:
        while not (log.is_file() and log.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        train_in_subprocess([], log)
    thread.join()
    assert log.read_text() == "ready\ncheckpoint\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind")
def test_two_processes_do_not_train_the_same_run(program, tmp_path):
    program("print('ready', flush=True); time.sleep(60)")
    log = tmp_path / "a.log"
    with log.open("ab") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TrainingStopped, match=r"another process is running this training and writes .*a\.log"):
            train_in_subprocess([], log)
