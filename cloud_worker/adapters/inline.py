"""Run LiteRT models that are quick enough inside the consumer, as agents do.

Waking another process costs such a model many times its own run. A model gets here
only after a process of its own has loaded and tried it; TensorFlow never does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cloud_worker.adapters.batches import WarmModel
from cloud_worker.adapters.failures import BatchFailed, CannotLoad
from cloud_worker.adapters.frames import ModelSource
from cloud_worker.adapters.litert import LiteRtRunner
from cloud_worker.adapters.runners import Runners
from cloud_worker.adapters.runtime import CannotServe, RunFailed
from cloud_worker.core.line import Signature
from cloud_worker.core.outputs import BatchOutputs
from cloud_worker.core.spec import ModelSpec


class InlineRunner:
    """The models' processes, and beside them the models that need none.

    Args:
        runners: runs everything else.
        below_ms: a model runs inline if its largest batch took less than this at
            warm-up: the longest that it will block the event loop.
        threads: of LiteRT; 0 lets it choose.
    """

    def __init__(self, runners: Runners, *, below_ms: float, threads: int = 0) -> None:
        self._runners = runners
        self._below_ms = below_ms
        self._threads = threads
        self._models: dict[str, WarmModel] = {}
        self._unread = 0

    @property
    def running(self) -> int:
        """Batches submitted whose outputs were not taken."""
        return self._runners.running + self._unread

    def ready(self, key: str) -> bool:
        """Whether a batch of this model may be submitted now."""
        return key in self._models or self._runners.ready(key)

    def why_not_ready(self, key: str) -> str | None:
        """Why no batch of this model can run now; None when one can."""
        return None if key in self._models else self._runners.why_not_ready(key)

    async def load(self, source: ModelSource, *, gently: bool = False) -> ModelSpec:
        """Load a model version, and decide where it runs; see `Runners.load`.

        Raises:
            CannotLoad: it is unreadable, unsupported, or kills or hangs its process.
        """
        spec = await self._runners.load(source, gently=gently)
        if source.format == "tflite" and self._is_quick(spec, source.max_batch):
            try:
                # Some milliseconds: it has just loaded and run next door.
                runner = LiteRtRunner(source.path, threads=self._threads)
                self._models[source.key] = WarmModel(
                    runner, source.max_batch, source.padding
                )
            except CannotServe as error:
                raise CannotLoad(str(error)) from error
            finally:
                await self._runners.unload(source.key)
        else:
            self._models.pop(source.key, None)
        return spec

    async def unload(self, key: str) -> None:
        """Take no more batches for a model, and forget it once it has answered all."""
        self._models.pop(key, None)
        await self._runners.unload(key)

    def given_up(self) -> dict[str, str]:
        """The models whose processes only die, and why."""
        return self._runners.given_up()

    def memory_bytes(self) -> dict[str, int]:
        """What the process of each model takes; those that have none are left out."""
        return self._runners.memory_bytes()

    def runs_inline(self, source: ModelSource) -> bool:
        """Whether this model runs in the consumer."""
        return source.key in self._models

    def submit(
        self,
        key: str,
        signature: Signature,
        requests: Sequence[Sequence[bytes]],
        *,
        limit_s: float | None = None,
    ) -> asyncio.Future[BatchOutputs]:
        """Run a batch here, or start it in the model's process; see `Runners.submit`.

        Raises (through the future):
            BatchFailed: the model gave an error, or its process died or hung.
        """
        model = self._models.get(key)
        if model is None:
            return self._runners.submit(key, signature, requests, limit_s=limit_s)
        outputs: asyncio.Future[BatchOutputs] = (
            asyncio.get_running_loop().create_future()
        )
        body = b"".join(
            buffers[index] for index in range(len(signature)) for buffers in requests
        )
        # Counted until it is read, so that the loop turns between batches.
        self._unread += 1
        outputs.add_done_callback(self._read)
        try:
            outputs.set_result(model.run(signature, len(requests), body))
        except (RunFailed, MemoryError) as error:
            failure = BatchFailed(str(error), suspect=True, crashed=False)
            outputs.set_exception(failure)
        return outputs

    def _is_quick(self, spec: ModelSpec, max_batch: int) -> bool:
        if not spec.costs_ms:
            return False
        _, cost_ms = spec.costs_ms[-1]
        return (cost_ms if spec.batched else cost_ms * max_batch) < self._below_ms

    def _read(self, _: object) -> None:
        self._unread -= 1
