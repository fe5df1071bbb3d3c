"""The application on a Ray cluster: replicas on many machines, more of them while many requests are live."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import torch

from anytime.pretrained import load
from anytime.server.scheduler import POLICIES, Limits
from anytime.support.cluster import connect
from anytime.support.text import printable

if TYPE_CHECKING:
    from ray.serve import Application

    from anytime.server.app import ServerSettings

APPLICATION = "anytime"  # its name on the cluster


def ray_app(
    models: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    replicas: int | tuple[int, int] = 1,
    target: float | None = None,
    threads: int = 1,
    device: str = "cpu",
    limits: Limits | None = None,
    settings: ServerSettings | None = None,
    policy: str = "greedy",
    stop: str | None = None,
    trust: bool = False,
) -> Application:
    """What `anytime serve` runs, as a Ray Serve application: `serve.run(ray_app("runs/demo"))`.

    Each replica loads the models, measures them on its machine, and schedules its own requests. Ray's proxy hands a request to
    a replica, and `Anytime-Deadline` counts from its arrival there. `Anytime-Due`, an absolute time, counts the way there too.

    Args:
        models: A run directory, an exported folder or the name of a pretrained model; or several by the names under which they
            are served. Each machine of the cluster must have the folders at the same place.
        replicas: How many, or the least and the most, between which Ray chooses by the number of live requests.
        target: The live requests of a replica above which there shall be more replicas; None: the largest batch.
        threads: Threads of a replica, and the CPUs that Ray keeps for it.
        device: `"cpu"`, or `"cuda"`, for which Ray keeps a GPU.
        limits: See `make_worker`; so are `policy` and `stop`.
        settings: See `Server`.
        policy: What the scheduler does.
        stop: A stopping rule.
        trust: As for `anytime.load`.

    Raises:
        ImportError: Ray Serve is not installed.
        ValueError: There is no such policy, or the numbers of replicas make no sense.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError("replicas on a cluster need Ray Serve: pip install 'anytime-nets[ray]'") from error
    from anytime.server.app import ServerSettings  # late, because the reference is made without the extra `serve`
    from anytime.server.launch import application, make_worker, shorten_collections

    limits, settings = limits or Limits(), settings or ServerSettings()
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 1 <= least <= most:
        raise ValueError(f"replicas must be a number of at least 1, or (least, most) of them, got {replicas}")
    found = dict(models) if isinstance(models, Mapping) else {Path(models).name: models}
    paths = {name: str(Path(path).resolve()) if Path(path).exists() else str(path) for name, path in found.items()}

    def build() -> Any:
        torch.set_num_threads(threads)
        loaded = {name: load(path, trust).to(device) for name, path in paths.items()}
        workers = {name: make_worker(model, limits, policy, stop) for name, model in loaded.items()}
        shorten_collections()
        return application(workers, settings).app

    options: dict[str, Any] = {"num_replicas": least}
    if most > least:
        wanted = float(limits.max_batch if target is None else target)
        options = {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": wanted}}
    deployment: Any = serve.deployment(
        serve.ingress(build)(),
        name=APPLICATION,
        max_ongoing_requests=settings.max_live,
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": threads, "num_gpus": int(device.startswith("cuda"))},
        graceful_shutdown_timeout_s=settings.max_deadline + 1,
        **options,
    )
    bound: Application = deployment.bind()
    return bound


def serve_on_ray(app: Application, host: str, port: int, threads: int, ended: Event, say: Callable[[], None]) -> None:
    """Serves an application on the running cluster, or on a new one on this machine, until a signal or `ended` ends it.

    Live requests are answered before it ends. A cluster that ran before runs on, with what else it serves. This replaces the
    handlers of SIGTERM and SIGINT, so it runs in the main thread.

    Args:
        app: What `ray_app` returned.
        host: Where Ray's proxies listen, if they do not yet.
        port: See `host`.
        threads: Those of a replica.
        ended: Ends it when it is set.
        say: Called when it is ready.

    Raises:
        ImportError: Ray Serve is not installed.
        ValueError: The cluster cannot be reached or has too few CPUs, or a replica cannot load or measure a model.
    """
    ray = connect(include_dashboard=False)
    from ray import serve

    for number in (signal.SIGTERM, signal.SIGINT):  # after connecting, because Ray sets handlers of its own
        signal.signal(number, lambda *_: ended.set())
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus < threads:
            raise ValueError(f"a replica has {threads} threads, and the Ray cluster has {cpus} CPUs")
        if APPLICATION in serve.status().applications:
            raise ValueError(f"the Ray cluster serves an application {APPLICATION!r} already: serve delete {APPLICATION}")
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(app, name=APPLICATION, route_prefix="/")
            say()
            ended.wait()
        except RuntimeError as error:
            message = serve.status().applications[APPLICATION].deployments[APPLICATION].message  # ends with a traceback
            last = next(reversed([line for line in message.splitlines() if line.strip()]), str(error))
            raise ValueError(f"a replica cannot start: {printable(last.strip())}") from error
        finally:
            serve.delete(APPLICATION)
    finally:
        ray.shutdown()
