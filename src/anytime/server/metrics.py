"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from anytime.server.worker import Worker

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
OUTCOMES = ("answered", "prior", "late", "no_answer", "refused", "full", "failed", "disconnected")
"""How a request ended: answered in time, with the prior, too late; not answered in time; a wrong request; too many live ones;
an error of the model; the client has gone."""


class Metrics:
    """Counters, gauges and histograms of all models of one server."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._registry, self._workers = CollectorRegistry(), workers
        registry, label = self._registry, ["model"]
        self.requests = Counter("anytime_requests", "Requests by outcome", ["model", "outcome"], registry=registry)
        self.steps = Counter(
            "anytime_answers", "Images by the step of their answer; 0 if there was none", ["model", "step"], registry=registry
        )
        self.seconds = Histogram(
            "anytime_request_seconds", "Seconds from arrival to answer", label, buckets=_SECONDS, registry=registry
        )
        self.overshoot = Histogram(
            "anytime_overshoot_seconds", "Seconds from the deadline to the answer", label, buckets=_SECONDS, registry=registry
        )
        self.hopeless = Counter(
            "anytime_hopeless", "Requests whose deadline is below the first answer's time", label, registry=registry
        )
        self._queue = Histogram(
            "anytime_queue_seconds", "Seconds from arrival to the first batch", label, buckets=_SECONDS, registry=registry
        )
        self._batch = Histogram("anytime_batch_size", "Images in a batch", label, buckets=_SIZES, registry=registry)
        steps = ["model", "first", "last"]
        self._step = Histogram(
            "anytime_batch_seconds", "Seconds of a batch, by the steps it runs", steps, buckets=_SECONDS, registry=registry
        )
        self._live = Gauge("anytime_live", "Live images", label, registry=registry)
        self._slowdown = Gauge("anytime_slowdown", "How much slower than measured at the start", label, registry=registry)
        self._ready = Gauge("anytime_ready", "Whether the model takes requests", label, registry=registry)
        self._restarts = Counter("anytime_worker_restarts", "Restarts of the thread that computes", label, registry=registry)
        self._restarted = dict.fromkeys(workers, 0)
        for name in workers:
            for outcome in OUTCOMES:
                self.requests.labels(name, outcome)

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        for name, worker in self._workers.items():
            for batch, seconds in worker.take_batches():
                self._batch.labels(name).observe(len(batch.keys))
                self._step.labels(name, batch.first, batch.last).observe(seconds)
            for seconds in worker.take_waits():
                self._queue.labels(name).observe(seconds)
            self._live.labels(name).set(worker.live)
            self._slowdown.labels(name).set(worker.drift.ratio)
            self._ready.labels(name).set(worker.ready)
            self._restarts.labels(name).inc(worker.restarts - self._restarted[name])
            self._restarted[name] = worker.restarts
        return generate_latest(self._registry)
