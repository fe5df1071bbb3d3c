"""How long each step takes on this machine: read from what `anytime profile` wrote, or measured here, in the same format."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from anytime_edge.network import Network

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}


def _architecture(network: Network) -> str:
    """What `anytime` calls the architecture of this export."""
    known = network.manifest
    c, arguments = known.input_size[0], {"export": "onnx", "digest": known.digest}
    shapes = [("reference", [0]), ("mean", [c]), ("std", [c]), ("digest", [32])]
    text = json.dumps(["ExportedModel", len(known.steps), arguments, shapes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fingerprint(network: Network) -> dict[str, Any]:
    engine = f"onnxruntime {onnxruntime.__version__}"
    return {"cores": os.cpu_count(), "threads": network.threads, "dtype": network.manifest.precision, "engine": engine}


@dataclass(frozen=True)
class Profile:
    """Seconds of each step, by the quantiles of `QUANTILES`, of one image; `data` is the whole document."""

    steps: list[dict[str, float]]
    data: dict[str, Any]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Reads a profile; ValueError if it is damaged, or has none of one image."""
        try:
            return cls.of(json.loads(Path(path).read_bytes()))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is not a profile of one image: {error!r}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the profile; the file appears whole or not at all. Raises ValueError as `check_replaceable` does."""
        host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # as `anytime` names what it is still writing
        part = Path(path).with_name(f".{Path(path).name}.anytime-{host}-{os.getpid()}-{threading.get_native_id()}.part")
        part.unlink(missing_ok=True)
        try:
            with part.open("x", encoding="utf-8") as file:
                file.write(json.dumps(self.data, indent=1) + "\n")
            check_replaceable(path)
            os.replace(part, path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Profile:
        """A profile from its document."""
        steps = [dict(zip(QUANTILES, map(float, row[1:]), strict=True)) for row in data["batches"]["1"]["steps"]]
        if not all(0 <= value < math.inf for row in steps for value in row.values()):
            raise ValueError("seconds must be finite and at least 0")
        if not isinstance(data.get("fingerprint", {}), dict):
            raise ValueError(f"fingerprint is {data['fingerprint']!r}")
        return cls(steps, data)

    def check(self, network: Network, foreign: bool = False) -> None:
        """Raises ValueError if it is of another network, or (unless `foreign`) was measured elsewhere."""
        if self.data.get("model") != _architecture(network) or len(self.steps) != len(network.manifest.steps):
            raise ValueError("the profile is of another network; measure again: python -m anytime_edge DIR")
        there, here = self.data.get("fingerprint", {}), _fingerprint(network)
        differing = "; ".join(
            f"{key} {there.get(key)!r}, here {value!r}" for key, value in here.items() if there.get(key) != value
        )
        if differing and not foreign:
            raise ValueError(f"the profile was measured elsewhere ({differing}); measure again, or pass foreign=True")


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if a file is a link or something else than a profile or an empty file: then it is not replaced."""
    if os.path.islink(path):
        raise ValueError(f"{path} is a link, and nothing is written through links; move it away")
    if os.path.lexists(path) and not (os.path.isfile(path) and (os.path.getsize(path) == 0 or _is_profile(path))):
        raise ValueError(f"{path} is no profile of this library, so it is not replaced; move it away")


def _is_profile(path: str | os.PathLike[str]) -> bool:
    try:
        return {"format", "model", "macs", "batches"} <= json.loads(Path(path).read_bytes()).keys()
    except (ValueError, AttributeError, RecursionError):
        return False


def profile(network: Network, repeats: int = 200, warmup: int = 10, clock: Callable[[], float] = time.perf_counter) -> Profile:
    """Measures every step of a network, the way a predictor runs them."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    steps = len(network.manifest.steps)
    x = np.random.default_rng(0).random((1, *network.manifest.input_size), np.float32)

    def once() -> list[float]:
        values, times = {(0, "images"): x}, [clock()]
        for step in range(1, steps + 1):
            _, values = network.step(step, values)
            times.append(clock())
        return times

    rows = [network.pool.submit(once).result() for _ in range(warmup + repeats)][warmup:]
    own = [_quantiles([row[t + 1] - row[t] for row in rows]) for t in range(steps)]
    reached = [_quantiles([row[t + 1] - row[0] for row in rows]) for t in range(steps)]
    macs = [step.macs for step in network.manifest.steps]
    batch = {"steps": own, "reached": reached, "contract": reached, "operators": [], "memory": []}
    where = {"hardware": platform.processor() or platform.machine(), "compiled": False, **_fingerprint(network)}
    known = {"format": 1, "model": _architecture(network), "input_size": network.manifest.input_size, "fingerprint": where}
    return Profile.of({**known, "batches": {"1": batch}, "macs": macs, "contract_macs": macs, "interrupt": "operator"})


def _quantiles(seconds: Sequence[float]) -> list[float]:
    """Their number, and the smallest measured value not below each quantile."""
    ranked = sorted(seconds)
    return [len(ranked), *(ranked[max(math.ceil(q * len(ranked)) - 1, 0)] for q in QUANTILES.values())]
