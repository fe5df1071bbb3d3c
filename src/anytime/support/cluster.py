"""The Ray cluster on which trainings or a server run."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import Any

from anytime.support.text import one_line

_PATIENCE = 5.0  # seconds for a cluster to answer


def connect(address: str | None = None, **options: Any) -> Any:
    """The module `ray`, connected to a cluster; one that this starts sends no usage statistics.

    Args:
        address: That of the cluster, as for `ray.init`; None: the running one, or else a new one on this machine.
        options: Options of `ray.init`.

    Raises:
        ImportError: Ray is not installed.
        ValueError: The cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("a cluster needs Ray: pip install 'anytime-nets[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if not ray.is_initialized():
            _check_there(address or os.environ.get("RAY_ADDRESS", ""))
            # Workers put the directory in which this is called on their path. Here it is where this library was imported from.
            with contextlib.chdir(Path(__file__).parents[2]):
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "here"
        raise ValueError(f"the Ray cluster {where} cannot be reached: {one_line(error)}") from error
    return ray


def _check_there(address: str) -> None:
    """Raises OSError if nothing answers at `host:port`: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isascii() and port.isdigit()):
        return  # "auto", "local", or what Ray knows better
    socket.create_connection((host.strip("[]"), min(int(port), 2**16 - 1)), timeout=_PATIENCE).close()
