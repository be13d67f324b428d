"""Wires the fleet together: what operators can do, and the daemon that listens to agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog

from broker.amqp.link import AmqpLink
from broker.link import LinkDown
from broker.topology import TELEMETRY_QUEUE, standing_queues
from fleet.adapters.actor import person
from fleet.adapters.audit_head import AuditHead
from fleet.adapters.hints import hint_once, send_hints
from fleet.adapters.registry import Publication, Registry
from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.versions import PublishedVersion
from fleet.core.devices import Device
from fleet.core.following import Now
from fleet.loops.conductor import Conductor
from fleet.loops.inventory import Inventory
from fleet.operator.rollouts import Rollouts
from fleet.settings import FleetSettings
from lifecycle.clock import Clock, SystemClock

log = structlog.get_logger(__name__)


class Fleet:
    """What an operator can do. Opened by `with`; every call blocks.

    Args:
        settings: where the fleet's state lies.
        clock: gives the times that are written.
    """

    def __init__(self, settings: FleetSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.registry = Registry(
            settings.registry, settings.signing_key, settings.public_key
        )
        self.audit_head = AuditHead(settings.audit_head)
        self.database = FleetDatabase(
            settings.database,
            timeout_s=settings.database_timeout_s,
            head=self.audit_head,
        )
        self.who = settings.actor or person()

    def __enter__(self) -> Self:
        """Make the home if it is not there, and open the database.

        Raises:
            DatabaseUnavailable: it cannot be used.
            OSError: the home cannot be made.
        """
        self.settings.home.mkdir(parents=True, exist_ok=True)
        self.database.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database."""
        self.database.close()

    def publish(self, source_dir: Path) -> Publication:
        """Pack, sign and store a bundle, and remember when.

        Raises:
            BundleRejected: the folder is no bundle.
            AlreadyPublished: its name and version are taken by other bytes.
            KeyRejected: the signing key cannot be used.
            DatabaseUnavailable: stored, but not remembered; publish again.
            OSError: the disk is full, or a folder cannot be written.
        """
        publication = self.registry.publish(source_dir)
        seal = publication.seal
        with self.database.writing() as ledger:
            ledger.keep_version(
                PublishedVersion(
                    model=seal.name,
                    version=seal.version,
                    sha256=seal.sha256,
                    size_bytes=seal.size_bytes,
                    key_id=publication.key_id,
                    published_at_ms=self.clock.wall_ms(),
                )
            )
        return publication

    def versions(self) -> list[PublishedVersion]:
        """Every version that workers can serve, by model and time of publishing."""
        served = {(each.name, each.version) for each in self.registry.published()}
        with self.database.reading() as ledger:
            return [
                each
                for each in ledger.versions()
                if (each.model, each.version) in served
            ]

    @property
    def rollouts(self) -> Rollouts:
        """What can be done to rollouts."""
        return Rollouts(self.database, self.registry, self.now, self.who)

    def now(self) -> Now:
        """The time; every agent heard of lately counts as being there."""
        return Now(self.clock.wall_ms(), silent_after_s=self.settings.silent_after_s)

    def tell(
        self, agents: Sequence[str], told: Callable[[int], None] = lambda _: None
    ) -> str | None:
        """Hint to agents that their desired state changed.

        Returns:
            Why they could not be told, or None. They ask by themselves later.
        """
        if self.settings.amqp_url is None:
            return "no RabbitMQ is configured (OVERSPILL_FLEET_AMQP_URL)"
        if not agents:
            return None
        try:
            asyncio.run(
                hint_once(
                    self.settings.amqp_url,
                    agents,
                    timeout_s=self.settings.hint_timeout_s,
                    told=told,
                )
            )
        except LinkDown as error:
            return str(error)
        return None

    def devices(self) -> list[Device]:
        """Every agent that ever reported, by name."""
        with self.database.reading() as ledger:
            return list(ledger.devices().values())


async def run_daemon(fleet: Fleet, amqp_url: str, stop: asyncio.Event) -> None:
    """Listen to agents until `stop` is set; RabbitMQ may come and go.

    What was taken when `stop` is set is written within `drain_s`; the rest stays in
    the queue.
    """
    settings = fleet.settings

    async def hint(agents: Sequence[str]) -> None:
        try:
            await send_hints(link, agents, timeout_s=settings.publish_timeout_s)
        except LinkDown as error:
            log.info("agents were not told", agents=len(agents), reason=str(error))

    conductor = Conductor(
        fleet.database,
        fleet.registry,
        clock=fleet.clock,
        hint=hint,
        silent_after_s=settings.silent_after_s,
    )
    inventory = Inventory(
        fleet.database,
        clock=fleet.clock,
        heard=conductor.heard,
        prefetch=settings.telemetry_prefetch,
    )
    link = AmqpLink(
        amqp_url,
        name="fleet",
        queues=[each for each in standing_queues() if each.name == TELEMETRY_QUEUE],
        consume={TELEMETRY_QUEUE: settings.telemetry_prefetch},
        on_delivery=inventory.take,
    )
    await asyncio.to_thread(conductor.heal)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(each)
            for each in (link.run(), inventory.run(), conductor.run())
        ]
        await stop.wait()
        log.info("stopping")
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_s):
                await link.stop_consuming()
                await inventory.settled()
        for task in tasks:
            task.cancel()
