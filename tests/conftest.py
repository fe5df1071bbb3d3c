"""What all tests share.

Every process uses one thread: the kernels are too small to gain from more, and would lose much to whatever else runs. Ctrl-C
works even where a shell has started the tests in the background and disabled it, because some tests interrupt themselves.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("anytime", deadline=None)  # a test's time depends on what else runs
settings.load_profile("anytime")

LONGEST = (
    "test_readme",
    "test_contract",
    "test_contributing",
    "test_untrusted",
    "test_command",
)  # files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts the longest files first, so that no process ends long after the other."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True, scope="session")
def state_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Which runs were trained with consent is remembered here, not among the user's own."""
    folder = tmp_path_factory.mktemp("state")
    os.environ["XDG_STATE_HOME"] = str(folder)
    return folder


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """`threads(2)`: torch, and what is loaded from then on, computes with two threads until the test ends."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}  # events of the interpreter


@pytest.fixture(scope="session")
def killed() -> Callable[[int, Path, Callable[[], object]], bool]:
    """`killed(number, folder, action)`: whether a child was killed (SIGKILL) before its change `number` of a file in `folder`.

    If `action` makes fewer changes, the child ends and it is false.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")

    def run(number: int, folder: Path, action: Callable[[], object]) -> bool:
        if child := os.fork():
            return os.WIFSIGNALED(os.waitpid(child, 0)[1])
        left = [number]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            opened = event == "open" and isinstance(arguments[2], int)
            writes = opened and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            from_rmtree = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # relative to a descriptor
            if from_rmtree or ((event in _CHANGES or writes) and str(arguments[0]).startswith(str(folder))):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            action()
        finally:
            os._exit(0)

    return run
