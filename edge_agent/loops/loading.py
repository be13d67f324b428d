"""Put models in service: those of the slots at the start, and each that is tried out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from bundle.pack import BundleRejected
from bundle.trust import TrustedKeys
from edge_agent.adapters.litert import ModelUnsupported
from edge_agent.adapters.model_runner import ModelRunner
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.adapters.trial import try_bundle
from edge_agent.core.served import Served, rule_of
from edge_agent.core.slots import Slots, State
from edge_agent.loops.updates import ModelRefused

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadingSettings:
    """How models are tried and run."""

    threads: int
    infer_queue: int
    trial_timeout_s: float
    trial_memory_mb: int


class Loading:
    """Loads what the store holds.

    Args:
        store: of the agent's bundles.
        trusted: keys of which one must have sealed a bundle.
        settings: how models run.
        swap: puts a loaded model in service.
    """

    def __init__(
        self,
        *,
        store: ModelStore,
        trusted: TrustedKeys,
        settings: LoadingSettings,
        swap: Callable[[Served], Awaitable[None]],
    ) -> None:
        self._store = store
        self._trusted = trusted
        self._settings = settings
        self._swap = swap

    async def restore(self, bundles: Sequence[Path]) -> Mapping[str, Slots]:
        """Put in service what the slots name, and what the settings bring.

        Args:
            bundles: what the settings bring, for models that have no slots yet.

        Returns:
            What came of each model's slots, by its name.
        """
        await asyncio.to_thread(self._store.prepare)
        slots = await asyncio.to_thread(self._store.slots)
        for path in bundles:
            brought = await asyncio.to_thread(self._store.peek, path)
            name = brought.name
            if name in slots and (active := slots[name].active) is not None:
                # What the fleet has pushed since wins over what came along.
                if active != brought.version:
                    log.info("bundle_passed_over", bundle=str(path), active=active)
                continue
            stored = await asyncio.to_thread(self._store.provision, path, self._trusted)
            slots[name] = Slots(name, active=stored.manifest.version)
            await asyncio.to_thread(self._store.save, slots[name])
        return {name: await self._restore(each) for name, each in slots.items()}

    async def _restore(self, slots: Slots) -> Slots:
        """Serve the active version or else the previous; gives what came of it."""
        why = ""
        for version in (slots.active, slots.previous):
            if version is None:
                continue
            try:
                stored = await asyncio.to_thread(
                    self._store.bundle, slots.model, version
                )
                await self._swap(await self.load(stored))
            except (BundleRejected, ModelRefused) as error:
                log.error(
                    "model_not_restored",
                    model=slots.model,
                    version=version,
                    reason=str(error),
                )
                why = why or str(error)
            else:
                return slots if version == slots.active else _fell_back(slots, why)
        return _fell_back(replace(slots, previous=None), why) if why else slots

    async def try_out(self, stored: StoredBundle) -> object:
        """Run a stored bundle in a child process; see `try_bundle`."""
        settings = self._settings
        return await try_bundle(
            stored.folder,
            stored.manifest,
            threads=settings.threads,
            timeout_s=settings.trial_timeout_s,
            memory_mb=settings.trial_memory_mb,
        )

    async def load(self, stored: StoredBundle) -> Served:
        """Make a stored bundle ready to serve in this process.

        Raises:
            ModelRefused: the runtime cannot run it.
        """
        settings = self._settings
        try:
            runner = await ModelRunner.open(
                stored.model_path,
                threads=settings.threads,
                queue_limit=settings.infer_queue,
            )
        except ModelUnsupported as error:
            raise ModelRefused(str(error)) from error
        return Served(
            manifest=stored.manifest,
            runner=runner,
            input_shapes={name: spec.shape for name, spec in runner.inputs.items()},
            rule=rule_of(stored.manifest),
        )


def _fell_back(slots: Slots, why: str) -> Slots:
    """The slots when the active version cannot serve; not saved, so tried again."""
    return replace(
        slots,
        active=slots.previous,
        previous=None,
        staged=slots.active,
        state=State.REFUSED,
        reason=why[:1024],
    )
