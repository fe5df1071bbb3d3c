"""Answer images over HTTP; under overload everyone gets an answer by the deadline, a shallower one.
Speaks the Open Inference Protocol, and takes JPEG, PNG or raw pixels.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from anytime import stopping
from anytime.commands.parser import Parser
from anytime.pretrained import load
from anytime.support.text import printable
from anytime.support.units import typed_seconds

if TYPE_CHECKING:
    from anytime.server.app import ServerSettings
    from anytime.server.scheduler import Limits

INSTALL = "pip install 'anytime-nets[serve]'"


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "serve",
        __doc__,
        "  anytime serve fast_cifar10\n  anytime serve runs/demo --deadline 50ms --threads 1\n"
        "  anytime serve cat=runs/cats dog=runs/dogs --port 9000 --stop confidence=0.9\n"
        "  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' -H 'Anytime-Deadline: 20ms' \\\n"
        "       http://127.0.0.1:8000/v2/models/fast_cifar10/predict",
    )
    text = "a run directory, an exported folder or the name of a pretrained model; NAME=RUN serves it under another name"
    parser.add_argument("models", nargs="+", metavar="RUN|NAME", help=text)
    parser.add_trust()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: 8000)")
    parser.add_argument("--deadline", default="1s", metavar="TIME", help="for requests that name none (default: 1s)")
    parser.add_argument("--max-deadline", default="10s", metavar="TIME", help="the longest of a request (default: 10s)")
    parser.add_argument("--margin", default="2ms", metavar="TIME", help="kept free before each deadline (default: 2ms)")
    parser.add_argument("--max-batch", type=int, default=16, help="most images in a batch (default: 16)")
    parser.add_argument("--max-live", type=int, default=1000, help="most live images; more get a 503 (default: 1000)")
    parser.add_argument("--policy", default="greedy", help="of the scheduler: greedy, edf, slackfit, full (default: greedy)")
    parser.add_argument("--stop", metavar="RULE", help="answer early by a rule, e.g. confidence=0.9, or one of `anytime fit`")
    parser.add_argument("--threads", type=int, help="threads to compute with (default: torch's)")
    parser.add_argument("--drain", default="0s", metavar="TIME", help="listen so long after SIGTERM, not ready (default: 0s)")
    text = "run on the Ray cluster that runs here or that RAY_ADDRESS names, or on a new one here (extra ray)"
    parser.add_argument("--ray", action="store_true", help=text)
    text = "with --ray: how many, or LEAST:MOST, chosen by the live requests (default: 1)"
    parser.add_argument("--replicas", default="1", metavar="N|LEAST:MOST", help=text)
    parser.add_device()
    options = parser.parse_args(arguments)
    needed = ("starlette", "uvicorn", "httptools", "prometheus_client")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"a server needs {' and '.join(missing)}: {INSTALL}")
    seconds, replicas = _checked(parser, options), _replicas(parser, options)
    parser.check_device(options.device)
    from anytime.server.app import ServerSettings
    from anytime.server.launch import Runner, announce, application, listen, make_worker, names, shorten_collections
    from anytime.server.scheduler import POLICIES, Limits

    if options.policy not in POLICIES:
        parser.error(f"--policy must be one of {', '.join(POLICIES)}, got {options.policy!r}")
    try:
        found = names(options.models)
    except ValueError as error:
        parser.error(str(error))
    for path in found.values():
        parser.check_model(path)
    limits = Limits(options.max_batch, seconds["margin"])
    settings = ServerSettings(seconds["deadline"], seconds["max_deadline"], options.max_live)
    if options.ray:
        return _serve_on_ray(options, found, replicas, limits, settings)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with listen(options.host, options.port) as sock:  # before the models are measured, which takes a while
        workers = {}
        for name, path in found.items():
            model = load(path, options.trust).to(options.device)
            try:
                stopping.resolve(model, options.stop)
            except ValueError as error:
                parser.error(str(error))
            print(printable(f"measuring {path} for batches of up to {options.max_batch} images"), file=sys.stderr, flush=True)
            workers[name] = make_worker(model, limits, options.policy, options.stop)
        server = application(workers, settings)
        shorten_collections()
        announce(server, sock)
        Runner(server, seconds["drain"]).run(sockets=[sock])
    return 0


def _serve_on_ray(
    options: Any, found: dict[str, str], replicas: tuple[int, int], limits: Limits, settings: ServerSettings
) -> int:
    from anytime.server.launch import listen, served_size
    from anytime.server.ray import ray_app, serve_on_ray

    for path in found.values():
        served_size(load(path, options.trust))  # what is wrong with a model is said here, before Ray starts
    with listen(options.host, options.port) as sock:
        host, port = sock.getsockname()[:2]
    app = ray_app(
        found,
        replicas=replicas,
        threads=options.threads or 1,
        device=options.device,
        limits=limits,
        settings=settings,
        policy=options.policy,
        stop=options.stop,
        trust=options.trust,
    )
    print(printable(f"starting {options.replicas} replicas on Ray"), file=sys.stderr, flush=True)

    def say() -> None:
        for name in found:
            print(printable(f"http://{host}:{port}/v2/models/{name}: ready on Ray"), flush=True)

    serve_on_ray(app, host, port, options.threads or 1, threading.Event(), say)
    return 0


def _replicas(parser: Parser, options: Any) -> tuple[int, int]:
    """The least and the most replicas that were typed."""
    least, colon, most = options.replicas.partition(":")
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in ((least, most) if colon else (least, least))]
    if not 1 <= numbers[0] <= numbers[1] <= 10_000:
        parser.error(f"--replicas must be a number of at least 1, or LEAST:MOST such as 1:4, got {options.replicas!r}")
    if not options.ray and options.replicas != "1":
        parser.error("--replicas needs --ray")
    return numbers[0], numbers[1]


def _checked(parser: Parser, options: Any) -> dict[str, float]:
    """The times that were typed; ends the command where one, or a number, makes no sense."""
    seconds = {}
    for name, least in (("deadline", 0.0), ("max_deadline", 0.0), ("margin", 0.0), ("drain", 0.0)):
        option, text = "--" + name.replace("_", "-"), getattr(options, name)
        try:
            given = typed_seconds(text, option)
        except (ValueError, TypeError) as error:
            parser.error(str(error))
        if given is None or given < least or (given == 0 and "deadline" in name):
            parser.error(f"{option} must be a time {'above' if 'deadline' in name else 'of at least'} 0, got {text!r}")
        seconds[name] = given
    if seconds["margin"] >= min(seconds["deadline"], seconds["max_deadline"]):
        parser.error(
            f"--margin must be shorter than --deadline and --max-deadline, or no answer is in time, got {options.margin}"
        )
    if not 0 <= options.port < 2**16:
        parser.error(f"--port must lie in 0..65535, got {options.port}")
    for name in ("max_batch", "max_live", "threads"):
        number = getattr(options, name)
        if number is not None and number < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {number}")
    if options.max_batch > 1024:
        parser.error(f"--max-batch must be at most 1024, got {options.max_batch}")
    return seconds
