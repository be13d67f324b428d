"""Wires the fleet together: what operators can do, and the daemon that listens to agents."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import structlog

from broker.amqp.link import AmqpLink
from broker.link import LinkDown
from broker.topology import TELEMETRY_QUEUE, standing_queues
from bundle.folder_seal import FolderSeal
from bundle.open_tree import open_tree
from bundle.seal import Seal
from bundle.trust import roles
from bundle.trust.keys import Passphrase
from bundle.trust.repository import Repository
from fleet.adapters.actor import person
from fleet.adapters.audit_head import AuditHead
from fleet.adapters.hints import hint_once, send_hints
from fleet.adapters.registry import Publication, Registry
from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.ledger import Ledger
from fleet.adapters.state.versions import PublishedVersion, VersionState
from fleet.adapters.trust_home import Signature, TrustHome, passphrase_from
from fleet.core.declared import DeclaredRollout
from fleet.core.delta_bases import delta_bases
from fleet.core.devices import Device
from fleet.core.fleetwide import relevant
from fleet.core.following import Now
from fleet.core.plan import Plan
from fleet.core.rollouts import GONE_BACK, LIVE
from fleet.loops.conductor import Conductor
from fleet.loops.inventory import Inventory
from fleet.loops.renewal import Renewal
from fleet.operator.costs import costs_of
from fleet.operator.declaring import Declaring
from fleet.operator.offering import offer_deltas
from fleet.operator.rollouts import Rollouts
from fleet.settings import FleetSettings
from lifecycle.clock import Clock, SystemClock

log = structlog.get_logger(__name__)


class Fleet:
    """What an operator can do. Opened by `with`; every call blocks.

    Args:
        settings: where the fleet's state lies.
        clock: gives the times that are written.
        ask: asks a person for the passphrase of a key, when no setting has it.
    """

    def __init__(
        self,
        settings: FleetSettings,
        clock: Clock | None = None,
        *,
        ask: Passphrase = lambda _: None,
    ) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.tree = tree = open_tree(settings.registry)
        self.trust = TrustHome(
            Repository(tree, settings.trust, lambda: self.clock.wall_ms() / 1000.0),
            settings.trust,
            _passphrase(settings, ask),
        )
        self.audit_head = AuditHead(settings.audit_head)
        self.registry = Registry(tree, self.trust)
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

    def publish(self, source_dir: Path, *, back_to: str | None = None) -> Publication:
        """Pack, store, draft and sign a bundle, and remember when.

        Args:
            source_dir: the bundle's folder.
            back_to: what an automatic way back leads to; by default what most agents
                serve, or else the version that was published before.

        Raises:
            BundleRejected: the folder is no bundle.
            AlreadyPublished: its name and version are taken by other bytes.
            NoTrust, TrustRefused: it cannot be drafted; says what to do.
            KeyRejected: a key at hand cannot be used.
            DatabaseUnavailable: stored, but not remembered; publish again.
            OSError: the disk is full, or a folder cannot be written.
        """
        publication = self.registry.publish(
            source_dir,
            lambda model: back_to or self._served(model),
            self._ways_back_in_use,
        )
        seal = publication.seal
        with self.database.writing() as ledger:
            known = {(each.model, each.version) for each in ledger.versions()}
            self._keep_versions(ledger, [seal], signed=publication.signed)
            # Also what an earlier try has stored and could not record.
            if publication.new or (seal.name, seal.version) not in known:
                ledger.record(
                    self.who,
                    "model.publish",
                    f"{seal.name} {seal.version}",
                    {"epoch": seal.epoch, "sha256": seal.sha256},
                    at_ms=self.clock.wall_ms(),
                )
        # Before anybody is sent to it, so that the first wave has them too.
        offer_deltas(self.tree, seal.sha256, self._delta_bases(publication))
        return publication

    def _delta_bases(self, publication: Publication) -> list[str]:
        """The digests of what agents are likely to come from."""
        seal, way_back = publication.seal, publication.way_back
        with self.database.reading() as ledger:
            digests = {
                each.version: each.sha256
                for each in sorted(ledger.versions(), key=lambda v: v.published_at_ms)
                if each.model == seal.name
            }
            devices = ledger.devices().values()
        bases = delta_bases(
            seal.name,
            seal.version,
            published=list(digests),
            devices=devices,
            back_to=None if way_back is None else way_back.version,
        )
        return [digests[each] for each in bases]

    def _served(self, model: str) -> str | None:
        """The signed version that most agents serve; the newest of those alike.

        Those that are heard, if any are: what is gone for good must not decide.
        """
        signed = {each.version: each for each in self.registry.signed_versions(model)}
        now = self.now()
        with self.database.reading() as ledger:
            devices = list(ledger.devices().values())
        there = [each for each in devices if now.heard(each)] or devices
        slots = [device.slot(model) for device in there]
        serving = Counter(
            slot.active for slot in slots if slot is not None and slot.active in signed
        )
        return max(
            serving,
            key=lambda each: (serving[each], signed[each].epoch),
            default=None,
        )

    def _ways_back_in_use(self, model: str) -> frozenset[int]:
        """The epochs that rollouts send agents back in, also those not heard of yet.

        The newest can be taken back long after it is done.
        """
        with self.database.reading() as ledger:
            states = ledger.rollout_states()
            rollouts = [each for each in ledger.rollouts() if each.model == model]
            sending = [
                each
                for each in relevant(rollouts, states)
                if states[each.generation] in LIVE | GONE_BACK
            ]
        return frozenset(
            each.way_back.epoch
            for each in [*sending, *rollouts[-1:]]
            if each.way_back is not None
        )

    def publish_folder(self, folder: Path) -> tuple[FolderSeal, Signature]:
        """Draft and sign a version of the pool's models where it lies.

        Raises:
            SealRejected, NoTrust, KeyRejected, OSError: as `Registry.publish_folder`.
            DatabaseUnavailable: signed, but not recorded.
        """
        seal, signature = self.registry.publish_folder(folder)
        with self.database.writing() as ledger:
            self.record_trust(
                ledger, "model.publish_cloud", f"{seal.name} {seal.version}"
            )
        return seal, signature

    def sign(self, keys: Sequence[Path] = ()) -> Signature:
        """Sign what waits with the keys at hand, and show what is complete.

        Raises:
            KeyRejected: a key at hand cannot be used.
            DatabaseUnavailable: signed, but not remembered; sign again.
            OSError: the registry cannot be written.
        """
        done = self.trust.sign(keys)
        shown = (roles.model_of(role) for role in done.settled.shown)
        models = [each for each in shown if each is not None]
        seals = [
            self.registry.seal(model, each.version)
            for model in models
            for each in self.registry.signed_versions(model)
        ]
        with self.database.writing() as ledger:
            self._keep_versions(ledger, seals, signed=True)
            self._drop_revoked(ledger, models)
            self.record_trust(
                ledger, "trust.sign", *(f"{r} by {k}" for r, k in done.signed.added)
            )
        return done

    def record_trust(self, ledger: Ledger, what: str, *subjects: str) -> None:
        """Write into the audit log what was done to the fleet's trust."""
        for subject in subjects:
            ledger.record(self.who, what, subject, at_ms=self.clock.wall_ms())

    def _drop_revoked(self, ledger: Ledger, models: Sequence[str]) -> None:
        known = {model: self.registry.known_versions(model) for model in models}
        for each in ledger.versions():
            if each.model in known and each.version not in known[each.model]:
                ledger.drop_version(each.model, each.version)

    def _keep_versions(
        self, ledger: Ledger, seals: Sequence[Seal], *, signed: bool
    ) -> None:
        for seal in seals:
            ledger.keep_version(
                PublishedVersion(
                    model=seal.name,
                    version=seal.version,
                    sha256=seal.sha256,
                    size_bytes=seal.size_bytes,
                    published_at_ms=self.clock.wall_ms(),
                    epoch=seal.epoch,
                    state=VersionState.SIGNED if signed else VersionState.DRAFT,
                    requires=seal.requires.model_dump(mode="json"),
                )
            )

    def versions(self) -> list[PublishedVersion]:
        """Every version that was published, by model and time; drafts as well."""
        signed = {(each.name, each.version) for each in self.registry.published()}
        with self.database.reading() as ledger:
            return [
                replace(
                    each,
                    state=VersionState.SIGNED
                    if (each.model, each.version) in signed
                    else VersionState.DRAFT,
                )
                for each in ledger.versions()
            ]

    @property
    def rollouts(self) -> Rollouts:
        """What can be done to rollouts."""
        return Rollouts(self.database, self.registry, self.now, self.who)

    @property
    def declaring(self) -> Declaring:
        """What can be done with what was declared."""
        return Declaring(self.database, self.rollouts, self.now, self.who)

    def plan(self, declared: DeclaredRollout) -> Plan:
        """What a rollout would do if it began now, and what that costs.

        Raises:
            BadOrder: the version or an agent is not known.
            DatabaseUnavailable: the state cannot be read.
            OSError: the registry cannot be read.
        """
        with self.database.reading() as ledger:
            tree = open_tree(self.settings.registry)
            costs = costs_of(ledger, tree, declared.model, declared.version)
        return self.declaring.plan(declared, costs)

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


def _passphrase(settings: FleetSettings, ask: Passphrase) -> Passphrase:
    def passphrase(path: Path) -> bytes | None:
        said = settings.passphrase
        text = None if said is None else said.get_secret_value()
        return passphrase_from(text, settings.passphrase_file) or ask(path)

    return passphrase


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
            for each in (
                link.run(),
                inventory.run(),
                conductor.run(),
                Renewal(fleet.trust).run(),
            )
        ]
        await stop.wait()
        log.info("stopping")
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_s):
                await link.stop_consuming()
                await inventory.settled()
        for task in tasks:
            task.cancel()
