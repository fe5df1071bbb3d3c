"""Processes that read images and the signals that a scheduler sends to all processes of a job."""

import multiprocessing
import signal
import subprocess

import pytest
import torch
from PIL import Image

from anytime.data.stream import LazyImages, StreamedBatches

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sends a signal")


def picture(row):
    return Image.new("RGB", (4, 4), (row, 0, 0))


def batches(workers=2):
    return StreamedBatches(LazyImages(picture, torch.arange(24)), torch.arange(24), 2, (3, 4, 4), workers=workers)


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_readers_survive_a_signal_to_the_whole_group(name):
    loader = iter(batches())
    seen = [next(loader)[1]]
    readers = multiprocessing.active_children()
    assert len(readers) == 2
    subprocess.run(["kill", f"-{name}", *(str(reader.pid) for reader in readers)], check=True)  # from another process
    seen += [targets for _, targets in loader]
    assert torch.cat(seen).tolist() == list(range(24))
    assert not multiprocessing.active_children()


def test_readers_end_when_their_parent_wants_it():
    loader = iter(batches())
    next(loader)
    reader = multiprocessing.active_children()[0]
    waiting = batches()  # whose readers are waiting for work
    other = iter(waiting)
    next(other)
    for reader in multiprocessing.active_children():
        reader.terminate()
        reader.join(5)
        assert not reader.is_alive()
    loader.close()
    other.close()


def test_the_signals_of_this_process_are_as_before():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    for _ in batches():
        assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
