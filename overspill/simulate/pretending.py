"""What an agent does with models, without any: the time passes, and books are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Final

from typing_extensions import override

from broker.messages import UpdatePolicy
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.core.answers import Array
from edge_agent.core.served import Served
from edge_agent.loops.loading import Loading, LoadingSettings
from lifecycle.clock import Clock
from overspill.simulate.quality import PretendedAccounts

# Golden inputs take their time on a device.
TRIAL_S: Final = (0.1, 0.4)


class PretendedLoading(Loading):
    """Loads no model, and tries none out."""

    def __init__(
        self,
        store: ModelStore,
        accounts: PretendedAccounts,
        swap: Callable[[Served], Awaitable[None]],
        rng: Random,
    ) -> None:
        settings = LoadingSettings(
            threads=1, infer_queue=1, trial_timeout_s=1.0, trial_memory_mb=1
        )
        super().__init__(store=store, settings=settings, accounts=accounts, swap=swap)
        self._rng = rng

    @override
    async def try_out(
        self, stored: StoredBundle, before: StoredBundle | None, policy: UpdatePolicy
    ) -> object:
        await asyncio.sleep(self._rng.uniform(*TRIAL_S))
        return None

    @override
    async def load(self, stored: StoredBundle) -> Served:
        return Served(
            manifest=stored.manifest, runner=_NoRunner(), input_shapes={}, rule=None
        )


class PretendedShadows:
    """Candidates beside what serves; `edge_agent.loops.updates.Shadows`."""

    def __init__(self, model: str, accounts: PretendedAccounts, clock: Clock) -> None:
        self._model = model
        self._accounts = accounts
        self._clock = clock

    async def start(self, stored: StoredBundle) -> None:
        """Ask it too from now on."""
        version = stored.manifest.version
        self._accounts.beside = version
        self._accounts.begin(self._model, version, self._clock.monotonic())

    async def stop(self, model: str) -> None:  # noqa: ARG002 - there is one
        """Ask it no more."""
        self._accounts.beside = None


class _NoRunner:
    """A model that is only pretended."""

    predicted_ms = 0.0

    async def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Not asked: requests are pretended too."""
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing was opened."""
