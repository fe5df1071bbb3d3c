"""A training in a subprocess: its output, its interruption and its lock."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from anytime.studies import TrainingStopped
from anytime.studies.executors.subprocess import CHILD, explaining_stops, log_end, train_in_subprocess, wait_until_free


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
    start = f"['-P', {str(CHILD)!r}, '{os.getpid()}', 'train', "
    first, second = (f"{start}{rest}]" for rest in ("'--epochs', '2'", "'--resume', 'a'"))
    assert log_end(log) == [first, "2/2", second, "2/2"]
    assert log_end(log, 1) == ["2/2"]


def test_a_command_says_why_a_training_stopped(tmp_path, capsys):
    log = tmp_path / "a.log"
    log.write_text("first\nthe loss is nan\n")
    with pytest.raises(TrainingStopped, match="broke"), explaining_stops():
        raise TrainingStopped("broke", log)
    assert capsys.readouterr().err == "first\nthe loss is nan\n"
    with pytest.raises(TrainingStopped, match="broke"), explaining_stops():
        raise TrainingStopped("broke", tmp_path / "none.log")
    assert capsys.readouterr().err == ""
    with pytest.raises(KeyboardInterrupt), explaining_stops():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopped; the same command continues from here\n"


def test_a_log_is_an_ordinary_file_in_an_ordinary_folder(program, tmp_path):
    program("print('trained')")
    (tmp_path / "logs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "precious.txt").write_text("mine")
    link, pipe, zeros, through = (tmp_path / name for name in ("logs/a.log", "logs/b.log", "logs/c.log", "links/d.log"))
    link.symlink_to(tmp_path / "precious.txt")
    os.mkfifo(pipe)
    zeros.symlink_to("/dev/zero")
    (tmp_path / "links").symlink_to(tmp_path / "elsewhere")
    for log, says in ((link, r"a\.log is a link"), (pipe, "is a pipe"), (zeros, "is a link"), (through, r"links is a link")):
        with pytest.raises(ValueError, match=says):
            train_in_subprocess([], log)
        with pytest.raises(ValueError, match=says):
            wait_until_free(log)
        assert log_end(log) == [""]
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert not any((tmp_path / "elsewhere").iterdir())


def test_only_the_end_of_a_log_is_read_and_it_commands_no_terminal(tmp_path):
    log = tmp_path / "a.log"
    with log.open("wb") as file:
        file.truncate(6 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\nline\n\x1b[2Jcleared\n")
    assert log_end(log, 2) == ["line", "\\x1b[2Jcleared"]


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


def test_whoever_waits_for_a_training_may_interrupt_it(program, tmp_path):
    program(
        "signal.signal(signal.SIGINT, lambda *_: (print('checkpoint', flush=True), sys.exit(130)))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    log = tmp_path / "a.log"
    assert train_in_subprocess([], log, lambda: bool(log.read_text())) == 130
    assert log.read_text() == "ready\ncheckpoint\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a process keeps the number of its parent")
def test_a_training_ends_when_its_parent_is_killed(tmp_path):
    """`child.py` watches the process that started it; before, a training went on for hours without anyone to read it."""
    child = f"import os, runpy, time; runpy.run_path({str(CHILD)!r})['follow'](os.getppid()); print(1); time.sleep(60)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-uSc', {child!r}])"
    with subprocess.Popen([sys.executable, "-Sc", start], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline()
        begin = time.monotonic()
        parent.kill()
        assert parent.stdout.read() == ""  # the pipe closes when the child has ended, which holds it as well
    assert time.monotonic() - begin < 30


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
def test_what_a_killed_training_leaves_is_ended_and_holds_no_lock(program, tmp_path):
    program(
        "import os\nif not (reader := os.fork()):\n    time.sleep(60)\n"
        "print(reader, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    log = tmp_path / "a.log"
    for _ in range(2):  # the second would find the lock of the first one's reader
        assert train_in_subprocess([], log) == -signal.SIGKILL
    for reader in map(int, log.read_text().split()):
        state = Path(f"/proc/{reader}/stat")
        while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind")
def test_two_processes_do_not_train_the_same_run(program, tmp_path):
    program("print('ready', flush=True); time.sleep(60)")
    log = tmp_path / "a.log"
    with log.open("ab") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TrainingStopped, match=r"another process is running this training and writes .*a\.log"):
            train_in_subprocess([], log)
