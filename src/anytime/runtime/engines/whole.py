"""All steps of an export as one graph, whose finished answers can be read while it runs."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytime.runtime.engines.base import Cancelled
from anytime.runtime.engines.exported import ExportedModel
from anytime.runtime.engines.graph_check import Allowance
from anytime.runtime.engines.onnx import OnnxGraph

__all__ = ["WholeRun"]


class WholeRun:
    """Runs the graph of all steps, which an engine may compute faster than the steps one by one, on one image at a time.

    The engine writes each answer to memory that was full of NaN: an answer is there when none is left. (An answer that holds
    NaN itself is there at the end.) Every step waits for the answer before it.

    Args:
        export: A folder written by `export_model(..., one_graph=True)`, for ONNX Runtime.

    Raises:
        ValueError: It has no graph of all steps, or that is damaged.

    Example:
        >>> import anytime
        >>> from anytime.runtime.engines.whole import WholeRun
        >>> run = WholeRun(anytime.load("exported"))  # doctest: +SKIP
        >>> run.start(image)  # doctest: +SKIP
        >>> answers = run.wait(0.004)  # those that are there after 4 ms  # doctest: +SKIP
    """

    def __init__(self, export: ExportedModel) -> None:
        self._manifest, whole = export.manifest, export.manifest.whole
        if whole is None:
            raise ValueError("the export has no graph of all steps: make it with one_graph=True, or --one-graph")
        allowance = Allowance(whole.macs, math.prod(self._manifest.input_size))
        self._graph = OnnxGraph(export.directory, whole, torch.get_num_threads(), allowance)
        self._answers: list[np.ndarray] = []
        self._done = threading.Event()
        self._done.set()
        self._error: BaseException | None = None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the image."""
        return self._manifest.input_size

    def start(self, x: Tensor) -> None:
        """Begins with an image `[1, C, H, W]`; ValueError if it has another size, or the one before is not done."""
        if tuple(x.shape) != (1, *self.input_size) or not self._done.is_set():
            raise ValueError(f"one image of {[1, *self.input_size]} at a time, after the one before, got {list(x.shape)}")
        shapes = [(1, *map(int, step.outputs[0].shape[1:])) for step in self._manifest.steps]
        self._answers = [np.full(shape, np.nan, np.float32) for shape in shapes]
        self._call, self._done, self._error = self._graph.call(), threading.Event(), None
        image = np.array(x.detach().numpy(), np.float32, order="C")
        threading.Thread(target=self._run, args=(image, self._answers, self._call, self._done), daemon=True).start()

    def _run(self, image: np.ndarray, answers: list[np.ndarray], call: Any, done: threading.Event) -> None:
        try:
            self._graph.run_into(image, answers, call)
        except Cancelled:
            pass
        except BaseException as error:
            self._error = error
        finally:
            done.set()

    def answers(self) -> list[Tensor]:
        """The answers `[1, K]` that are there now, in order, in tensors of their own."""
        all_there, found = self._done.is_set() and not self._call.terminate, list[Tensor]()
        for answer in self._answers:
            made = answer.copy()
            if not all_there and np.isnan(made).any():
                break
            found.append(torch.from_numpy(made))
        return found

    def wait(self, seconds: float | None = None) -> list[Tensor]:
        """The answers that are there at the end, or after some seconds; raises what the engine raised."""
        self._done.wait(seconds)
        if self._error is not None:
            raise self._error
        return self.answers()

    def cancel(self) -> None:
        """Ends the run within one operator; `answers` still gives what was there."""
        self._graph.cancel(self._call)
