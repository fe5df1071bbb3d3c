"""What all tests share.

Every process uses one thread: the kernels are too small to gain from more, and would lose much to whatever else runs. Ctrl-C
works even where a shell has started the tests in the background and disabled it, because some tests interrupt themselves.
"""

import os
import signal
from pathlib import Path

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
