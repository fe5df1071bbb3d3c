"""A network whose answers name their image, and a client that speaks to the application without a network."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from anytime.model import AnytimeModel
from anytime.server.scheduler import Costs, Limits
from anytime.server.worker import Worker

K = 10


class Naming(AnytimeModel):
    """The class is ten times the mean of the image; step t is sure to 0.2 t. `gate` holds steps up, `errors` fails them."""

    num_steps = 3

    def __init__(self) -> None:
        super().__init__(K)
        self.bias = torch.nn.Parameter(torch.zeros(1))
        self.info.input_size = (3, 4, 4)
        self.gate, self.errors = threading.Event(), list[str]()
        self.gate.set()
        self.sizes: list[int] = []

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x)
        return 0, x.mean((1, 2, 3))

    def step(self, state: Any) -> tuple[Tensor, Any]:
        assert self.gate.wait(10)
        if self.errors:
            raise RuntimeError(self.errors[0])
        step, mean = state
        self.sizes.append(len(mean))
        sure = 0.2 * (step + 1)
        wrong = torch.full((len(mean), K), (1 - sure) / (K - 1))
        logits = wrong.scatter(1, (K * mean).long().clamp(0, K - 1)[:, None], sure).log() + self.bias
        return logits, (step + 1, mean)


COSTS = Costs({1: [1e-4] * 3, 8: [2e-4] * 3}, {1: [1e-4] * 3, 8: [2e-4] * 3})


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    parts: list[bytes]


class Client:
    """Calls an ASGI application; `read` counts the messages of a body that the application has asked for."""

    def __init__(self, app: Any) -> None:
        self.app, self.read = app, 0

    async def call(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes | None] = b"",
        headers: Mapping[str, str] | None = None,
        gone: asyncio.Event | None = None,
        pause: float = 0.0,
    ) -> Reply:
        """A request whose body comes in parts, `pause` seconds before each; None among them, or `gone`, disconnects."""
        parts = [body] if isinstance(body, bytes) else list(body)
        own = {"content-length": str(len(body))} if isinstance(body, bytes) else {"transfer-encoding": "chunked"}
        pairs = [(k.lower().encode(), v.encode("latin-1")) for k, v in ({**own, **(headers or {})}).items()]
        left, sent = [*parts], list[Any]()
        leaves = gone or asyncio.Event()

        async def receive() -> Any:
            if not left:
                await leaves.wait()
                return {"type": "http.disconnect"}
            self.read += 1
            await asyncio.sleep(pause)
            part = left.pop(0)
            if part is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": part, "more_body": bool(left)}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": pairs,
            "client": ("test", 1), "server": ("test", 80), "state": {},
        }  # fmt: skip
        await self.app(scope, receive, send)
        bodies = [message["body"] for message in sent if message["type"] == "http.response.body"]
        start = next(message for message in sent if message["type"] == "http.response.start")
        found = {key.decode(): value.decode() for key, value in start["headers"]}
        return Reply(start["status"], found, b"".join(bodies), [part for part in bodies if part])


@asynccontextmanager
async def running(server: Any) -> AsyncIterator[Client]:
    """A client of a server whose workers run."""
    async with server.app.router.lifespan_context(server.app):
        yield Client(server.app)


Scenario = Callable[[Client], Awaitable[None]]


@pytest.fixture
def naming() -> Naming:
    return Naming().eval()


@pytest.fixture
def worker(naming: Naming) -> Worker:
    return Worker(naming, COSTS, ([100, 200, 300], [100, 150, 180]), Limits(8, 1e-3))


@pytest.fixture
def play(worker: Worker) -> Callable[..., Any]:
    """`play(scenario, settings)` runs `scenario(client, server)` against a server of the worker, called `toy`."""
    from anytime.server.app import Server, ServerSettings

    def run(scenario: Callable[[Client, Any], Awaitable[None]], settings: ServerSettings | None = None) -> Any:
        server = Server({"toy": worker}, {"toy": (3, 4, 4)}, settings)

        async def scene() -> None:
            async with running(server) as client:
                await scenario(client, server)

        asyncio.run(asyncio.wait_for(scene(), 20))
        return server

    return run
