"""The cloud's side: the link to the pool, what the fleet is told and what it sends."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from broker import topics
from broker.messages import Report
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from bundle.source import Source
from edge_agent.adapters.day_file import DayFile
from edge_agent.adapters.machine import Machine
from edge_agent.adapters.mqtt_source import MqttSource
from edge_agent.adapters.sources import sources_of
from edge_agent.adapters.trusted_seals import TrustedSeals
from edge_agent.loops.fetching import FetchSettings
from edge_agent.loops.metering import Metering
from edge_agent.loops.pulling import Puller, PullSettings
from edge_agent.loops.reporting import Reporting
from edge_agent.loops.update_ports import Here, NoTrustRoot, Trust
from edge_agent.loops.updates import Updates, UpdateSettings
from edge_agent.parts.models import Models
from edge_agent.parts.requests import Requests
from edge_agent.settings import AgentSettings
from lifecycle.clock import Clock
from lifecycle.supervisor import Supervisor

log = structlog.get_logger(__name__)


def cloud_link(
    settings: AgentSettings,
    *,
    hear: Callable[[str, bytes], None],
    changed: Callable[[bool], None],
) -> MqttLink | None:
    """The link to the pool; None when none is set."""
    if settings.cloud_url is None:
        return None
    target = MqttTarget.from_url(settings.cloud_url)
    if settings.cloud_ca_file is not None:
        target = replace(target, ca_file=str(settings.cloud_ca_file))
    return MqttLink(
        target,
        client_id=settings.agent_id,
        subscriptions=[topics.downlink(settings.agent_id)],
        on_message=hear,
        on_change=changed,
        window=settings.uplink_window + 8,
        keepalive_s=settings.keepalive_s,
        answered=topics.wants_result,
    )


class Cloud:
    """What goes over the link to the pool beside requests, and who hears what comes.

    Args:
        settings: every knob.
        link: to the pool.
        requests: to whom results go.
        models: what updates change.
        machine: what the agent runs on, for updates made for certain devices.
        report: what the fleet is told.
        clock: for the age of what the fleet's keys have signed.
        rng: spreads looks, pulls and reports.
    """

    def __init__(  # noqa: PLR0913 - what it stands on
        self,
        settings: AgentSettings,
        *,
        link: MqttLink,
        requests: Requests,
        models: Models,
        machine: Machine,
        report: Callable[[], Report],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._link = link
        self._requests = requests
        self._source = MqttSource(
            agent=settings.agent_id, link=link, timeout_s=settings.pull_timeout_s
        )
        sources = sources_of(
            settings.pull_sources,
            self._source,
            registry_url=settings.registry_url,
            ca_file=settings.registry_ca_file,
            timeout_s=settings.pull_timeout_s,
            connections=settings.pull_window,
        )
        self._reporting = Reporting(
            agent=settings.agent_id,
            link=link,
            report=report,
            every_s=settings.report_every_s,
            rng=rng,
        )
        models.book.changed = self._reporting.report_now
        self.updates = Updates(
            agent=settings.agent_id,
            # Over HTTPS nobody knows who asks: what is desired comes from the pool.
            sources=[self._source],
            store=models.store,
            slots=models.book,
            trust=_trust(settings, sources, clock),
            pulls=Puller(
                sources,
                models.store.parts,
                metering=Metering(
                    DayFile(settings.state_dir / "pulled.json"),
                    local_now_s=machine.local_now_s,
                ),
                rng=rng,
                settings=PullSettings(
                    FetchSettings(window=settings.pull_window),
                    jitter_s=settings.pull_jitter_s,
                ),
                sharing=self._source,
            ),
            probation=models.probation,
            shadows=models.shadowing,
            here=Here(lambda: machine.device, machine.local_now),
            settings=UpdateSettings(
                poll_every_s=settings.poll_desired_every_s,
                spread_s=settings.look_spread_s,
                disk_reserve_bytes=settings.disk_reserve_bytes,
            ),
            try_out=models.loading.try_out,
            rng=rng,
        )

    @property
    def progress(self) -> Mapping[str, tuple[int, int]]:
        """Bytes pulled and in all, by model on its way here."""
        return self.updates.progress

    def start(self, loops: Supervisor) -> None:
        """Connect, look for updates and report."""
        loops.start("cloud link", self._link.run)
        loops.start("updates", self.updates.run)
        loops.start("reporting", self._reporting.run)

    def hear(self, topic: str, payload: bytes) -> None:
        """Take in what the pool or the fleet has sent."""
        if self._source.on_message(topic, payload):
            return
        match topic.rsplit("/", 1)[-1]:
            case "res":
                self._requests.outcomes.on_results(payload)
            case "cmd":
                # Any command is a reason to look; losing one costs a poll.
                self.updates.look_now()
            case _:
                log.debug("message_ignored", topic=topic)

    def link_changed(self, up: bool) -> None:
        """The link is there, or is lost."""
        self._requests.cloud_changed(up)
        self.updates.link_changed(up)
        self._reporting.link_changed(up)


def _trust(settings: AgentSettings, sources: Sequence[Source], clock: Clock) -> Trust:
    if settings.trusted_root is None:
        return NoTrustRoot()
    return TrustedSeals(
        settings.trusted_root,
        settings.state_dir / "trust",
        sources,
        clock=clock,
    )
