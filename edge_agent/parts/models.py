"""The models an agent has: on disk, in service, on probation and as shadows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from edge_agent.adapters.model_store import ModelStore
from edge_agent.adapters.provisioned_seals import who_vouches
from edge_agent.loops.loading import Loading, LoadingSettings
from edge_agent.loops.probation import Probation
from edge_agent.loops.shadowing import Shadowing
from edge_agent.loops.slot_book import SlotBook
from edge_agent.parts.requests import Requests
from edge_agent.settings import AgentSettings
from lifecycle.clock import Clock
from lifecycle.supervisor import Supervisor


class Models:
    """What brings a model into service, and takes it out again.

    Args:
        settings: every knob.
        requests: what models answer, and what is known of their answers.
        now_s: the agent's own time.
        clock: judges the age of what came with the agent.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        requests: Requests,
        now_s: Callable[[], float],
        clock: Clock,
    ) -> None:
        self._bundles = settings.bundles
        self._vouch = who_vouches(
            settings.trusted_root,
            settings.provisioned_registry,
            settings.state_dir,
            unsigned=settings.unsigned_bundles,
            clock=clock,
        )
        self.store = ModelStore(settings.state_dir / "models")
        self.book = SlotBook(self.store)
        self.loading = Loading(
            store=self.store,
            accounts=requests.accounts,
            settings=LoadingSettings(
                threads=settings.threads,
                infer_queue=settings.infer_queue,
                trial_timeout_s=settings.trial_timeout_s,
                trial_memory_mb=settings.trial_memory_mb,
            ),
            swap=requests.serving.swap,
        )
        self.probation = Probation(
            slots=self.book,
            store=self.store,
            accounts=requests.accounts,
            load=self.loading.load,
            swap=requests.serving.swap,
            remove=requests.serving.remove,
            now_s=now_s,
        )
        self.shadowing = Shadowing(
            slots=self.book,
            accounts=requests.accounts,
            threads=settings.threads,
            memory_mb=settings.trial_memory_mb,
            now_s=now_s,
        )
        requests.serving.on_answer = self.shadowing.offer
        requests.on_outcome = self.shadowing.ended

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Put what the slots and the settings name in service."""
        self.book.start_with(await self.loading.restore(self._bundles, self._vouch))
        await self.probation.restore()
        stack.push_async_callback(self.probation.close)

    def start(self, loops: Supervisor) -> None:
        """Start what watches new versions."""
        loops.start("probation", self.probation.run)
        loops.start("shadows", self.shadowing.run)
