"""AOTInductor: a step as a library that torch has compiled. Loading it executes what the file holds."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from anytime.runtime.engines.base import WholeGraph
from anytime.runtime.engines.graph_check import Allowance
from anytime.runtime.engines.manifest import StepFile
from anytime.runtime.engines.step_file import read_file
from anytime.support.text import one_line

_INSTRUCTIONS = ("sse", "ssse", "avx", "amx", "fma", "f16c", "bmi", "gfni", "vaes", "vpclmul")  # beginnings of their names


def engine_version() -> str:
    """Name and version of the engine, which is a part of torch."""
    return f"AOTInductor of torch {torch.__version__}"


def made_for() -> dict[str, str]:
    """What a library is compiled for: torch, the system, and the instructions of the processor."""
    lines, cpu_info = list[str](), Path("/proc/cpuinfo")
    if cpu_info.is_file():
        lines = [line for line in cpu_info.read_text(errors="replace").splitlines() if line.startswith("flags")]
    names = sorted(name for name in set(lines[0].split()) if name.startswith(_INSTRUCTIONS)) if lines else []
    system = f"{sys.platform} {platform.machine()}"
    return {"anytime_torch": torch.__version__, "anytime_system": system, "anytime_instructions": " ".join(names)}


class AotiGraph(WholeGraph):
    """The library of one step, on the CPU; any number of threads may run it, one at a time. It cannot be cancelled.

    It computes with as many threads as torch has in the calling thread. Whoever makes this object executes the file.

    Args:
        directory: The exported folder.
        step: The step, as the manifest has it.
        threads: As for the other engines; the library follows torch.
        allowance: As for the other engines; nothing limits what a library does.
        uses: Steps that compute it.
        precision: What it computes in: the library says so itself.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged, or compiled for another version of torch, system or processor.
    """

    def __init__(
        self, directory: Path, step: StepFile, threads: int, allowance: Allowance, uses: int = 1, precision: str = "float32"
    ) -> None:
        self._path, self._step = directory / step.file, step
        data = read_file(self._path, step)
        with TemporaryDirectory() as place:  # the engine takes a file, which must be the one that was compared
            own = Path(place, "step.pt2")
            own.write_bytes(data)
            try:
                self._runner = torch._inductor.aoti_load_package(str(own)).loader
            except Exception as error:  # of several layers of the engine
                raise ValueError(f"{self._path} cannot be loaded by AOTInductor: {one_line(error)}") from error
        _check_place(self._path, self._runner.get_metadata())

    def run(self, inputs: Sequence[Tensor], call: Any = None) -> list[Tensor]:
        """The outputs, from the inputs in their order in the manifest."""
        outputs: list[Tensor] = self._runner.run([tensor.detach().contiguous() for tensor in inputs])
        return outputs

    def __reduce__(self) -> tuple[Any, ...]:
        return AotiGraph, (self._path.parent, self._step, 1, Allowance(0, 0))


def _check_place(path: Path, made: Mapping[str, str]) -> None:
    """Raises ValueError if a library was compiled for something else than what is here."""
    for key, here in made_for().items():
        there = made.get(key, "")
        if key == "anytime_instructions":
            if lacking := sorted(set(there.split()) - set(here.split())):
                raise ValueError(f"{path} needs a processor with {', '.join(lacking[:3])}; export the model again on this one")
        elif there != here:
            raise ValueError(f"{path} is compiled for {there or 'nothing known'}, and this is {here}; export the model again")
