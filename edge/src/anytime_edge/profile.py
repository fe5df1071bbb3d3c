"""How long each step takes on this machine: read from what `anytime profile` wrote, or measured here, in the same format."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from anytime_edge.network import Network

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}


def _facts(network: Network) -> tuple[str, dict[str, Any]]:
    """What `anytime` calls the architecture of this export, and what its seconds depend on."""
    known, channels = network.manifest, network.manifest.input_size[0]
    shapes = [("reference", [0]), ("mean", [channels]), ("std", [channels]), ("digest", [32])]
    text = json.dumps(["ExportedModel", len(known.steps), {"export": "onnx", "digest": known.digest}, shapes])
    fingerprint = {"cores": os.cpu_count(), "threads": network.threads, "dtype": known.precision}
    fingerprint["engine"] = f"onnxruntime {onnxruntime.__version__}"
    return hashlib.sha256(text.encode()).hexdigest()[:16], fingerprint


class Profile(NamedTuple):
    """Seconds of each step, by the quantiles of `QUANTILES`, of one image; `data` is the whole document."""

    steps: list[dict[str, float]]
    data: dict[str, Any]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Reads a profile; ValueError if it is damaged, has none of one image, or is no ordinary file."""
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError(f"{path} is a folder, a pipe or a device, not a profile")
        try:
            return cls.of(json.loads(Path(path).read_bytes()))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is not a profile of one image: {error!r}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the profile; the file appears whole or not at all. Raises ValueError as `check_replaceable` does."""
        check_replaceable(path)
        part = Path(f"{path}.{os.getpid()}.part")
        try:
            with part.open("x", encoding="utf-8") as file:
                file.write(json.dumps(self.data, indent=1) + "\n")
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
        return cls(steps, {**data, "fingerprint": dict(data.get("fingerprint", {}))})

    def check(self, network: Network, foreign: bool = False) -> None:
        """Raises ValueError if it is of another network, or (unless `foreign`) was measured elsewhere."""
        architecture, here = _facts(network)
        if self.data.get("model") != architecture or len(self.steps) != len(network.manifest.steps):
            raise ValueError("the profile is of another network; measure again: python -m anytime_edge DIR")
        there = {key: self.data["fingerprint"].get(key) for key in here}
        differing = "; ".join(f"{key} {there[key]!r}, here {here[key]!r}" for key in here if there[key] != here[key])
        if differing and not foreign:
            raise ValueError(f"the profile was measured elsewhere ({differing}); measure again, or pass foreign=True")


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if a file is a link or something else than a profile or an empty file: then it is not replaced."""
    kept, link = os.path.lexists(path), os.path.islink(path)
    what = "a link, and nothing is written through links" if link else "no profile of this library, so it is not replaced"
    with suppress(ValueError, AttributeError, RecursionError):
        if os.path.isfile(path) and not link:
            text = Path(path).read_bytes()
            kept = bool(text) and not {"format", "model", "macs", "batches"} <= json.loads(text).keys()
    if kept:
        raise ValueError(f"{path} is {what}; move it away")


def profile(network: Network, repeats: int = 200, warmup: int = 10) -> Profile:
    """Measures every step of a network as a predictor runs it, with what it does to make an answer of the logits."""
    from anytime_edge.predictor import Predictor  # which reads profiles itself

    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    known, predictor = network.manifest, Predictor(network, interrupt="step")
    x = np.random.default_rng(0).random((1, *known.input_size), np.float32)

    def once() -> list[float]:
        with predictor.session(x) as session:
            session.wait()
        return [seconds for seconds, _ in session.steps]

    seconds = np.array([once() for _ in range(warmup + repeats)][warmup:])
    own, reached = _quantiles(seconds), _quantiles(seconds.cumsum(1))
    macs, (architecture, fingerprint) = [step.macs for step in known.steps], _facts(network)
    where = {"hardware": platform.processor() or platform.machine(), "compiled": False, **fingerprint}
    batch = {"steps": own, "reached": reached, "contract": reached, "operators": [], "memory": []}
    data = {"format": 1, "model": architecture, "input_size": known.input_size, "fingerprint": where, "macs": macs}
    return Profile.of({**data, "batches": {"1": batch}, "contract_macs": macs, "interrupt": "operator"})


def _quantiles(seconds: np.ndarray) -> list[list[float]]:
    """Each column's number of rows and the smallest measured value not below each quantile."""
    found = np.quantile(seconds, [*QUANTILES.values()], axis=0, method="inverted_cdf")
    return [[len(seconds), *column] for column in found.T.tolist()]
