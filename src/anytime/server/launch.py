"""Loads models, measures them, and runs the application until a signal ends it."""

from __future__ import annotations

import asyncio
import atexit
import gc
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

import uvicorn

from anytime import stopping
from anytime.cost import step_macs
from anytime.model import AnytimeModel, known_input_size, require_classifier
from anytime.server.app import Server, ServerSettings
from anytime.server.costs import measure
from anytime.server.http import BoundedHttp
from anytime.server.scheduler import Limits
from anytime.server.worker import Worker, check_combiner
from anytime.support.text import printable


def make_worker(model: AnytimeModel, limits: Limits | None = None, policy: str = "greedy", stop: str | None = None) -> Worker:
    """A worker for a trained model: its costs and seconds are measured now, which takes some seconds.

    Args:
        model: A classifier, on its device.
        limits: The largest batch, and the time in which an answer is handed over.
        policy: What the scheduler does, a name in `anytime.server.scheduler.POLICIES`.
        stop: A stopping rule that looks at the last answer, as for `Predictor`.

    Raises:
        ValueError: The model is no classifier, does not know the size of its images, or has weights that are not finite; or
            the rule is unknown or needs a combiner.
    """
    require_classifier(model, "a server")
    size = served_size(model)
    if broken := next((name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()), None):
        raise ValueError(f"the weights of the model are not finite: {broken} holds NaN or infinity")
    macs = step_macs(model, size), step_macs(model, size, contract=True)
    limits = limits or Limits()
    rule = None
    if stop is not None:
        rule, combiner = stopping.resolve(model, stop, None, macs[0])
        check_combiner(combiner)
    costs = measure(model.eval(), size, limits.max_batch)
    return Worker(model, costs, macs, limits, policy, rule)


def served_size(model: AnytimeModel) -> tuple[int, int, int]:
    """(channels, height, width) of the images of a model; raises ValueError if it does not know them."""
    size = known_input_size(model)
    if size is None:
        raise ValueError("the model does not know the size of its images; say it: model.info.input_size = (3, 224, 224)")
    return size


def application(workers: Mapping[str, Worker], settings: ServerSettings | None = None) -> Server:
    """The application that serves workers by name; `application(...).app` runs under any ASGI server."""
    return Server(workers, {name: served_size(worker.model) for name, worker in workers.items()}, settings)


def shorten_collections() -> None:
    """Leaves what is loaded out of later garbage collections: one of them stops all threads for 0.3 s with torch."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # some libraries count what is left at the end


class Runner(uvicorn.Server):
    """Serves until SIGTERM or SIGINT. Then the application is not ready any more; it listens on for `drain` seconds, answers
    what is live, within the longest deadline, and ends. A second SIGINT ends it at once.
    """

    def __init__(self, server: Server, drain: float = 0.0) -> None:
        longest = max(server.settings.max_deadline, server.settings.body_seconds)
        config = uvicorn.Config(
            server.app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=int(longest) + 1,
            server_header=False,
            proxy_headers=False,  # nothing depends on the address of a client
            http=BoundedHttp,
        )
        super().__init__(config)
        self._server, self._drain = server, drain
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._server.draining or self._loop is None:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
            return
        self._server.draining = True
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain, self._end)

    def _end(self) -> None:
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ValueError: The port is in use, or the address is not this machine's.
    """
    try:
        return socket.create_server((host, port), backlog=1024)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"cannot listen on {host}:{port}: {reason}") from None


def announce(server: Server, sock: socket.socket) -> None:
    """Says where the models are served and what their answers take."""
    host, port = sock.getsockname()[:2]
    for name, worker in server.workers.items():
        first, last = (1e3 * worker.costs.run(0, t, 1) for t in (1, worker.model.num_steps))
        where = f"http://{host}:{port}/v2/models/{name}"
        print(printable(f"{where}: first answer {first:.3g} ms, full answer {last:.3g} ms, one image at a time"), flush=True)
    sys.stdout.flush()


def names(models: Sequence[str]) -> dict[str, str]:
    """The models by the names under which they are served: `NAME=RUN`, or the last part of the path.

    Raises:
        ValueError: Two have the same name, a name has no letter or digit, or one that does not fit in an address, or a path
            is missing.
    """
    found: dict[str, str] = {}
    for given in models:
        name, equals, path = given.partition("=")
        if not equals:
            name, path = given.rstrip("/").rpartition("/")[2], given
        if not path:
            raise ValueError(f"a served model is NAME=RUN, and {given!r} names no run")
        if not name or not all(letter.isalnum() or letter in "._-" for letter in name):
            raise ValueError(f"a served model needs a name of letters, digits, '.', '_' or '-': NAME={path}, got {name!r}")
        if name in found:
            raise ValueError(f"two models would be served as {name!r}; name one of them: NAME={path}")
        found[name] = path
    return found
