"""A computation in the background whose best answer so far can be read at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from anytime.runtime.answer import Answer
from anytime.runtime.engines.base import Cancelled
from anytime.runtime.forks import renew_after_fork
from anytime.runtime.lazy import LazyAnswer, read
from anytime.runtime.threads import Threads
from anytime.support.units import deadline_seconds


class Session:
    """One run of a model in the background: `best()` never waits for it, `interrupt()` takes effect within one step, or within
    one operator where the engine can cancel a step (see `Predictor`).

    An exception in a step ends the run: `wait` and leaving the `with` block raise it, `best()` returns the last good answer.
    A forked process does not have the thread of an open session: there, such a session has ended with a `RuntimeError`.

    Example:
        >>> import anytime, torch
        >>> predictor = anytime.Predictor(anytime.create_model("anytimenet", width=4))
        >>> with predictor.session(torch.rand(1, 3, 32, 32)) as session:
        ...     answer = session.wait("10s")  # or session.best(), at any moment
        >>> answer.step
        7
    """

    def __init__(
        self,
        threads: Threads,
        answers: Callable[[], Iterator[Answer | LazyAnswer]],
        prior: Answer,
        cancel: Callable[[], None],
    ) -> None:
        self._best: Answer | LazyAnswer = prior  # replaced as a whole: readers need no lock
        self._cancel = cancel  # ends the step in progress, where the engine can
        self._stop = threading.Event()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._closed = False
        renew_after_fork(self)
        threads.submit(self._run, answers)

    def _run(self, answers: Callable[[], Iterator[Answer | LazyAnswer]]) -> None:
        try:
            for answer in answers():
                interrupted = self._stop.is_set() and not answer.reason
                self._best = answer.because("interrupted") if interrupted else answer
                if interrupted:
                    break
        except Cancelled:
            self._best = self._best.because("interrupted")
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def best(self) -> Answer:
        """The best answer so far, without waiting; the prior before the first step. Also works on a closed session.

        With lazy exits this runs the head of that answer, in the calling thread.
        """
        return read(self._best)

    @property
    def done(self) -> bool:
        """Whether the computation has ended: complete, stopped, interrupted or failed."""
        return self._done.is_set()

    def wait(self, seconds: float | str | None = None) -> Answer:
        """Waits for the end, at most `seconds` (a number, a scalar, or text like `"5ms"`), then returns the best answer.

        If `seconds` are 0 or below, the time has passed: the best answer is returned at once.

        Raises:
            ValueError: If seconds are NaN or text without a unit, or the session is closed.
            TypeError: If seconds are a bool or of another type.
            Exception: Whatever a step raised.
        """
        if self._closed:
            raise ValueError("this session is closed; best() still returns its last answer")
        longest = deadline_seconds(seconds, "seconds")
        self._done.wait(longest if longest is None else max(longest, 0.0))
        self._raise()
        return self.best()

    def interrupt(self) -> Answer:
        """Asks the computation to end, now or after the current step, and returns the best answer so far without waiting."""
        self._stop.set()
        self._cancel()
        return self.best()

    def close(self) -> None:
        """Interrupts the computation and waits for its end; can be called repeatedly."""
        self._stop.set()
        self._cancel()
        self._done.wait()
        self._closed = True

    def renew(self) -> None:
        """In a forked process: the computation has ended, with an error unless it was done."""
        if not self._done.is_set():
            lost = "this session computed in a thread of the parent process, which a forked process does not have"
            self._error = RuntimeError(f"{lost}: start a new session here; best() still returns the last answer")
        self._stop, self._done = threading.Event(), threading.Event()
        self._done.set()
        self._cancel = lambda: None  # the engine's locks may be held by threads that are not here

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.close()
        if error is None:
            self._raise()
