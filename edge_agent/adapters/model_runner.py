"""A model in service: measures itself, never runs twice at once, refuses when full."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

from edge_agent.adapters.litert import LiteRtModel, RunFailed, unsupported
from edge_agent.core.answers import Array
from edge_agent.core.tensors import BadInput
from lifecycle.clock import Clock, SystemClock

_WARM_UP_RUNS: Final = 1
_MEASURED_RUNS: Final = 5
_EWMA_WEIGHT: Final = 0.1
# A quick model's queue is short in time, and a device that retries has a way to go.
LEAST_RETRY_S: Final = 0.1


class RunnerFull(RuntimeError):
    """As many requests wait for the model as may.

    Attributes:
        retry_after_s: how long those that wait will take.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RunnerClosed(RuntimeError):
    """The model was taken out of service; ask the one that replaced it."""


class ModelRunner:
    """Runs a model for many askers.

    A model faster than `inline_below_ms` answers on the event loop, since a thread
    would cost more than it saves; a slower one has a thread of its own.
    """

    def __init__(
        self,
        model: LiteRtModel,
        *,
        queue_limit: int = 64,
        inline_below_ms: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self._model: LiteRtModel | None = model
        self.inputs = model.inputs
        self.outputs = model.outputs
        self._queue_limit = queue_limit
        self._inline_below_ms = inline_below_ms
        self._clock = clock or SystemClock()
        self._run_ms: float | None = None
        self._pending = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="litert")
        # Told how long each request's run took, in ms; from whichever thread ran it.
        self.on_run: Callable[[float], None] = lambda _: None

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        threads: int = 1,
        queue_limit: int = 64,
        inline_below_ms: float = 1.0,
        clock: Clock | None = None,
    ) -> Self:
        """Load and measure a model without holding up the event loop.

        Raises:
            ModelUnsupported: it cannot be loaded, or not even run on zeros.
        """

        def load() -> Any:  # noqa: ANN401 - mypy has no Self in a nested function
            runner = cls(
                LiteRtModel.load(path, threads=threads),
                queue_limit=queue_limit,
                inline_below_ms=inline_below_ms,
                clock=clock,
            )
            runner.measure()
            return runner

        return await asyncio.to_thread(load)

    @property
    def predicted_ms(self) -> float:
        """How long an answer asked for now would take, its queue included.

        A moving average of the runs so far; 0 before the first.
        """
        return (self._run_ms or 0.0) * (1 + self._pending)

    @property
    def runs_inline(self) -> bool:
        """Whether the next answer comes from the event loop itself."""
        return (
            self._pending == 0
            and self._run_ms is not None
            and self._run_ms < self._inline_below_ms
        )

    def measure(self) -> float:
        """Warm the model up and take the median of a few runs on zeros, in ms.

        Blocks, and must not overlap `infer`.

        Raises:
            ModelUnsupported: it cannot run on zeros.
        """
        model = self._in_service()
        example = model.example()
        try:
            for _ in range(_WARM_UP_RUNS):
                model.run(example)
            taken = [self._timed(model, example)[1] for _ in range(_MEASURED_RUNS)]
        except (RunFailed, BadInput) as error:
            raise unsupported("the model", error) from error
        self._run_ms = median(taken)
        return self._run_ms

    async def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one set of inputs; see `LiteRtModel.run`.

        Raises:
            RunnerFull: `queue_limit` requests are held already.
            RunnerClosed: it was closed.
            BadInput: as `LiteRtModel.run`.
            RunFailed: as `LiteRtModel.run`.
        """
        model = self._in_service()
        if self.runs_inline:
            return self._run(model, inputs)
        with self._lock:
            if self._pending >= self._queue_limit:
                raise RunnerFull(
                    f"{self._pending} requests wait for the edge model, which is its "
                    "limit; send again later",
                    retry_after_s=max(LEAST_RETRY_S, self.predicted_ms / 1000.0),
                )
            self._pending += 1
        future = self._thread.submit(self._run, model, inputs)
        # Counted down by the thread itself: a caller that was cancelled leaves a run
        # behind, and nothing may use the interpreter until that has ended.
        future.add_done_callback(self._one_done)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Take no more requests, answer those that wait, and let the model go."""
        self._model = None
        await asyncio.to_thread(self._thread.shutdown, wait=True)

    def _in_service(self) -> LiteRtModel:
        if self._model is None:
            raise RunnerClosed("the model was taken out of service")
        return self._model

    def _run(self, model: LiteRtModel, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs, taken_ms = self._timed(model, inputs)
        self.on_run(taken_ms)
        if self._run_ms is None:
            self._run_ms = taken_ms
        else:
            self._run_ms += _EWMA_WEIGHT * (taken_ms - self._run_ms)
        return outputs

    def _timed(
        self, model: LiteRtModel, inputs: Mapping[str, Array]
    ) -> tuple[dict[str, Array], float]:
        started_s = self._clock.monotonic()
        outputs = model.run(inputs)
        return outputs, (self._clock.monotonic() - started_s) * 1000

    def _one_done(self, _: Future[dict[str, Array]]) -> None:
        with self._lock:
            self._pending -= 1
