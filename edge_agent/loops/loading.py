"""Put models in service: those of the slots at the start, and each that is tried out."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from broker.messages import UpdatePolicy
from bundle.pack import BundleRejected
from edge_agent.adapters.litert import ModelUnsupported
from edge_agent.adapters.model_runner import ModelRunner
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.adapters.provisioned_seals import Vouch, anybody
from edge_agent.adapters.trial import TrialLimits, try_bundle
from edge_agent.core.accounts import Accounts
from edge_agent.core.fit import ModelRefused
from edge_agent.core.probation import ended_too_often
from edge_agent.core.served import Served, rule_of
from edge_agent.core.slots import Slots, State

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
        settings: how models run.
        accounts: told how long each run takes.
        swap: puts a loaded model in service.
    """

    def __init__(
        self,
        *,
        store: ModelStore,
        settings: LoadingSettings,
        accounts: Accounts,
        swap: Callable[[Served], Awaitable[None]],
    ) -> None:
        self._store = store
        self._settings = settings
        self._accounts = accounts
        self._swap = swap

    async def restore(
        self, bundles: Sequence[Path], vouch: Vouch = anybody
    ) -> Mapping[str, Slots]:
        """Put in service what the slots name, and what the settings bring.

        Args:
            bundles: what the settings bring, for models that have no slots yet.
            vouch: says what was signed of them.

        Returns:
            What came of each model's slots, by its name.

        Raises:
            BundleRejected: what the settings bring cannot be used; says why.
        """
        await asyncio.to_thread(self._store.prepare)
        slots = await asyncio.to_thread(self._store.slots)
        for path in bundles:
            brought = await asyncio.to_thread(self._store.peek, path)
            name = brought.name
            held = slots.get(name) or Slots(name)
            if held.active is not None:
                # What the fleet has pushed since wins over what came along.
                if held.active != brought.version:
                    log.info("bundle_passed_over", bundle=str(path), active=held.active)
                continue
            try:
                slots[name] = await self._take_in(path, brought.version, held, vouch)
            except BundleRejected as error:
                if held.is_empty:
                    raise
                # It has served for long, and the cloud can be asked instead.
                log.error("bundle_passed_over", bundle=str(path), reason=str(error))
        return {name: await self._restore(each) for name, each in slots.items()}

    async def _take_in(
        self, path: Path, version: str, held: Slots, vouch: Vouch
    ) -> Slots:
        """Provision what the settings bring of a model that has nothing to serve.

        Raises:
            BundleRejected: it cannot be used, or an update has barred it since.
        """
        seal = await vouch(held.model, version)
        epoch = 0 if seal is None else seal.epoch
        if seal is not None and epoch < held.floor:
            raise BundleRejected(
                f"{held.model} {version} came with the agent in epoch {epoch}, and "
                f"nothing below epoch {held.floor} is taken here any more"
            )
        stored = await asyncio.to_thread(self._store.provision, path, seal)
        slots = Slots(
            held.model,
            active=stored.manifest.version,
            epoch=epoch,
            floor=max(held.floor, epoch),
            seen=max(held.seen, epoch),
        )
        await asyncio.to_thread(self._store.save, slots)
        return slots

    async def _restore(self, slots: Slots) -> Slots:
        """Serve the active version or else the previous; gives what came of it."""
        slots = await self._count_start(slots)
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
                if version == slots.active:
                    return slots
                return await self._fell_back(slots, why)
        if why and slots.state is State.PROBATION:
            # On the disk the way back stays: it may have been unreadable only once.
            return replace(await self._fell_back(slots, why), active=None, epoch=0)
        return _fell_back(replace(slots, previous=None), why) if why else slots

    async def _count_start(self, slots: Slots) -> Slots:
        """Note that a version on probation is about to be loaded, before it is.

        It may end this process, and then only the disk knows. One that has done so
        too often is not loaded any more.
        """
        if slots.state is not State.PROBATION:
            return slots
        why = ended_too_often(slots.starts)
        after = slots.started() if why is None else slots.returned(why)
        if why is not None:
            log.error("update_returns", model=slots.model, reason=why)
        try:
            await asyncio.to_thread(self._store.save, after)
        except OSError as error:
            # What cannot be counted might end the agent for ever: the proved one serves.
            log.error("slots_not_written", model=slots.model, error=str(error))
            return slots.returned(f"its start could not be counted: {error}")
        return after

    async def _fell_back(self, slots: Slots, why: str) -> Slots:
        if slots.state is not State.PROBATION:
            return _fell_back(slots, why)
        after = slots.returned(f"it cannot be loaded any more: {why}")
        with contextlib.suppress(OSError):  # It is found out anew at the next start.
            await asyncio.to_thread(self._store.save, after)
        return after

    async def try_out(
        self,
        stored: StoredBundle,
        before: StoredBundle | None,
        policy: UpdatePolicy,
    ) -> object:
        """Run a stored bundle in a child process; see `try_bundle`.

        Args:
            stored: the candidate.
            before: what it is to replace; it is timed beside it.
            policy: says how much slower the candidate may be.
        """
        settings = self._settings
        report = await try_bundle(
            stored.folder,
            stored.manifest,
            threads=settings.threads,
            limits=TrialLimits(
                timeout_s=settings.trial_timeout_s,
                memory_mb=settings.trial_memory_mb,
                max_slowdown=policy.max_slowdown,
            ),
            before=None if before is None else before.folder,
        )
        log.info("trial_passed", model=stored.manifest.name, **asdict(report))
        return report

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
        name, version = stored.manifest.name, stored.manifest.version
        runner.on_run = functools.partial(self._accounts.ran, name, version)
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
