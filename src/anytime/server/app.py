"""The application: the Open Inference Protocol, images as bodies, answers that improve, health and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from torch import Tensor

from anytime.runtime.door import admit
from anytime.server import protocol
from anytime.server.answers import answered, described, facts
from anytime.server.metrics import Metrics
from anytime.server.reading import GONE, Refused, Wishes, decoded, raw_frame, read_body, wishes
from anytime.server.scheduler import DEADLINE
from anytime.server.tickets import Ticket
from anytime.server.worker import FAILED, RESERVE, Served, Worker
from anytime.support.text import one_line
from anytime.version import __version__

NDJSON = "application/x-ndjson"
_OUTCOMES = {503: "full", 504: "no_answer", 500: "failed", GONE: "disconnected"}
_SMALL = 2**18  # bytes that are read without a thread, which would take longer
_Made = TypeVar("_Made")
_WATCH = 0.2  # seconds between looks at the workers


@dataclass(frozen=True)
class ServerSettings:
    """What the operator sets, besides what the scheduler needs.

    Attributes:
        deadline: Seconds of a request that names none.
        max_deadline: The most seconds that a request may have.
        max_live: The most live images of a model.
        max_body: The most bytes of a body.
        body_seconds: How long a body may take to arrive.
    """

    deadline: float = 1.0
    max_deadline: float = 10.0
    max_live: int = 1000
    max_body: int = 2**24
    body_seconds: float = 10.0


class Server:
    """The application and what it serves.

    Args:
        workers: One for each model, by name; they start and close with the application.
        sizes: (channels, height, width) of the images of each model.
        settings: What the operator sets.

    Attributes:
        app: The ASGI application.
        draining: Whether new requests are turned away because the server is about to end.
    """

    def __init__(
        self, workers: Mapping[str, Worker], sizes: Mapping[str, tuple[int, int, int]], settings: ServerSettings | None = None
    ) -> None:
        self.workers, self._sizes, self.settings = dict(workers), sizes, settings or ServerSettings()
        self.draining, self.metrics = False, Metrics(self.workers)
        model, only = "/v2/models/{model}", "/v2/models/{model}/versions/1"
        routes = [  # the most frequent first, because they are tried in turn
            Route(f"{model}/predict", self._counted(self._predict), methods=["POST"]),
            *(Route(f"{at}/infer", self._counted(self._infer), methods=["POST"]) for at in (model, only)),
            Route("/v2", self._about),
            Route("/v2/health/live", self._is_live),
            Route("/v2/health/ready", self._is_ready),
            *(Route(at, self._metadata) for at in (model, only)),
            *(Route(f"{at}/ready", self._is_model_ready) for at in (model, only)),
            Route("/metrics", self._metrics),
        ]
        self.app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _error})

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        for worker in self.workers.values():
            worker.start()
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            for worker in self.workers.values():
                await asyncio.to_thread(worker.close, self.settings.max_deadline)

    async def _watch(self) -> None:
        """Starts workers again that have died."""
        while True:
            await asyncio.sleep(_WATCH)
            for worker in self.workers.values():
                if not worker.ready:
                    worker.start()

    # -- health and metadata -------------------------------------------------------------------------------------------

    async def _about(self, request: Request) -> Response:
        return JSONResponse({"name": "anytime", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def _is_live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _is_ready(self, request: Request) -> Response:
        ready = not self.draining and all(worker.ready for worker in self.workers.values())
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def _is_model_ready(self, request: Request) -> Response:
        name, worker = self._model(request)
        ready = not self.draining and worker.ready
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503)

    async def _metadata(self, request: Request) -> Response:
        name, worker = self._model(request)
        return JSONResponse(protocol.metadata(name, worker.model, self._sizes[name]))

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def _model(self, request: Request) -> tuple[str, Worker]:
        name = request.path_params["model"]
        if name not in self.workers:
            raise HTTPException(404, f"there is no model of this name here; the models are {', '.join(self.workers)}")
        return name, self.workers[name]

    # -- inference -----------------------------------------------------------------------------------------------------

    def _counted(self, handler: Callable[[Request, float], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The handler, given the arrival of the request; what it refuses becomes a status code and a sentence."""

        async def handle(request: Request) -> Response:
            name, worker = self._model(request)
            try:
                if self.draining:
                    raise Refused(503, "the server is about to end and takes no more requests")
                return await handler(request, worker.clock())
            except Refused as refused:
                self.metrics.requests.labels(name, _OUTCOMES.get(refused.status, "refused")).inc()
                headers = {"retry-after": "1"} if refused.status == 503 else {}
                if refused.status in (408, 413, 503):
                    headers["connection"] = "close"  # the rest of the body is not read
                return JSONResponse({"error": refused.sentence}, refused.status, headers)

        return handle

    async def _predict(self, request: Request, arrival: float) -> Response:
        (name, worker), settings = self._model(request), self.settings
        wished = wishes(request.headers, settings.deadline, settings.max_deadline)
        kind = _media_type(request, "content-type") or "application/octet-stream"
        if kind not in ("image/jpeg", "image/png", "application/octet-stream"):
            raise Refused(415, "Content-Type must be image/jpeg, image/png or, for raw pixels, application/octet-stream")
        body = await read_body(request, settings.max_body, settings.body_seconds)
        if kind == "application/octet-stream":
            shape = request.headers.get("anytime-shape")
            image = await _aside(len(body) > _SMALL, raw_frame, body, shape, worker.model, self._sizes[name])
        else:
            image = await _aside(True, decoded, body, worker.model, self._sizes[name])
        improves = NDJSON in (part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(","))
        ticket = self._enter(name, image.to(worker.reference), arrival, wished, improves)
        if improves:
            await _wait(request, ticket, ticket.first)
            if ticket.answers[0] is None:
                (answer,) = self._collect(name, ticket, wished)
                return Response(_line(described(name, worker.model, answer, ticket)), media_type=NDJSON)
            return StreamingResponse(self._lines(name, ticket, wished), media_type=NDJSON)
        await _wait(request, ticket, ticket.done)
        (answer,) = self._collect(name, ticket, wished)
        return JSONResponse(described(name, worker.model, answer, ticket))

    async def _infer(self, request: Request, arrival: float) -> Response:
        (name, worker), settings = self._model(request), self.settings
        wished = wishes(request.headers, settings.deadline, settings.max_deadline)
        body = await read_body(request, settings.max_body, settings.body_seconds)
        length = request.headers.get(protocol.LENGTH)
        call = body, length, worker.model, self._sizes[name], settings.max_deadline
        wanted = await _aside(not length or len(body) > _SMALL, protocol.parse, *call)
        deadline = wished.deadline if wanted.deadline is None else wanted.deadline
        wished = Wishes(deadline, wished.prior if wanted.prior is None else wanted.prior)
        try:
            images = admit(wanted.images.to(worker.reference), worker.model, None)
        except (ValueError, TypeError) as error:
            raise Refused(400, one_line(error)) from None
        ticket = self._enter(name, images, arrival, wished)
        await _wait(request, ticket, ticket.done)
        answers = self._collect(name, ticket, wished)
        content, headers = protocol.respond(name, wanted, answers, facts(worker.model, answers, ticket), worker.model.levels)
        return Response(content, headers=headers)

    def _enter(self, name: str, images: Tensor, arrival: float, wished: Wishes, improves: bool = False) -> Ticket:
        """Hands images to the worker; raises Refused if they are too many (413), or too many are live (503)."""
        worker = self.workers[name]
        if len(images) > self.settings.max_live:
            raise Refused(413, f"the request has {len(images)} images, and this server takes at most {self.settings.max_live}")
        if worker.live + len(images) > self.settings.max_live:
            raise Refused(503, f"{worker.live} images are live, and this server takes at most {self.settings.max_live}")
        if wished.deadline < worker.costs.run(0, 1, 1) + worker.limits.margin:
            self.metrics.hopeless.labels(name).inc()
        return Ticket(worker, images, arrival, arrival + wished.deadline, improves)

    def _collect(self, name: str, ticket: Ticket, wished: Wishes) -> list[Served]:
        """The answers of a ticket that is done, counted.

        Raises:
            Refused: 504 an image has no answer in time, and the prior is not wanted; 500 the model failed,
                or gave no finite answer.
        """
        worker, lacking = self.workers[name], None in ticket.answers
        for answer in ticket.answers:
            self.metrics.steps.labels(name, answer.step if answer else 0).inc()
        self.metrics.seconds.labels(name).observe(ticket.elapsed)
        self.metrics.overshoot.labels(name).observe(max(ticket.elapsed - wished.deadline, 0.0))
        if failed := [reason for reason in ticket.reasons if reason.startswith(FAILED)]:
            raise Refused(500, f"the model {failed[0]}")
        if lacking and not wished.prior:
            pairs = zip(ticket.answers, ticket.reasons, strict=True)
            if any(answer is None and reason != DEADLINE for answer, reason in pairs):
                raise Refused(
                    500, "the model gave no finite answer: its weights hold NaN or infinity, or are too large for this image"
                )
            seconds = RESERVE * worker.drift.ratio * worker.costs.run(0, 1, 1) + worker.limits.margin
            first = f"with no other request the first takes about {1e3 * seconds:.3g} ms here now"
            raise Refused(504, f"there was no answer within {1e3 * wished.deadline:.4g} ms; {first}")
        self.metrics.requests.labels(name, "prior" if lacking else "late" if ticket.missed else "answered").inc()
        return answered(worker.model, ticket)

    async def _lines(self, name: str, ticket: Ticket, wished: Wishes) -> AsyncIterator[bytes]:
        """Each better answer as a line of JSON; the reason of the last one says why it is the last."""
        model = self.workers[name].model
        try:
            while (answer := await ticket.better.get()) is not None:
                yield _line(described(name, model, answer, ticket))
            with suppress(Refused):  # the last line has said what failed
                self._collect(name, ticket, wished)
        finally:
            if not ticket.done.is_set():
                ticket.drop()
                self.metrics.requests.labels(name, "disconnected").inc()


async def _aside(long: bool, function: Callable[..., _Made], *arguments: Any) -> _Made:
    """The value of a function; one that takes long runs in a thread, so that it holds up no other request."""
    return await asyncio.to_thread(function, *arguments) if long else function(*arguments)


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _media_type(request: Request, header: str) -> str:
    return request.headers.get(header, "").partition(";")[0].strip().lower()


async def _wait(request: Request, ticket: Ticket, event: asyncio.Event) -> None:
    """Waits for the event; a client that disconnects meanwhile frees its place.

    Raises:
        Refused: 499, the client has gone.
    """
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = not event.is_set()
        event.set()

    watching, answered = asyncio.ensure_future(watch()), False
    try:
        await event.wait()
        answered = not gone
    finally:
        watching.cancel()
        if not answered:
            ticket.drop()
    if gone:
        raise Refused(GONE, "the client has gone")


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
