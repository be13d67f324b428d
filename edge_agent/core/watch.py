"""What is watched of one model version: its threshold in force, its promise, its drift.

Pure accounts. Time and chance come as arguments; a loop logs, saves and asks for it.

What a target limits is known of a spilled request by the cloud's answer, and of a
confident one only if it was drawn to be audited. Confident requests count from one
draw to the next, and only once the draw has its answer: an audit that got none takes
those before it out of the books, so that an outage biases nothing. What was never in the
draw (the link was down, a spill fell back) is counted as `uncovered`, and said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from bundle.calibration import Calibration, StatedTarget
from bundle.manifest import Manifest
from cascade.allowance import Allowance, spill_allowance
from cascade.drift import DriftTest
from cascade.effective import (
    Change,
    ClassLadders,
    Conditions,
    InForce,
    Ladder,
    in_force,
)
from cascade.policy import Thresholds
from cascade.promise import Promise, Realised
from edge_agent.core.answers import Answer, Source
from edge_agent.core.expected_wait import ExpectedWait
from edge_agent.core.shortfall import Kind, cloud_amount, edge_amount

Key = tuple[str, str]

MAX_OPEN_AUDITS: Final = 64
# Of the usual deadline, how long the link may be away before it counts as down.
PATIENCE_WITH_LINK: Final = 0.1
_NEWEST: Final = 0.05


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What an operator sets.

    Attributes:
        audit_share: of confident requests, 0..1; 0 audits none.
        spill_quota: the share of a model's requests that may be spilled as hard; None
            sets none.
        false_alarm: the chance of a drift alarm without drift, over a version's life.
        period_s: seconds after which a promise begins anew.
    """

    audit_share: float = 0.01
    spill_quota: float | None = None
    false_alarm: float = 0.01
    period_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all models share.

    Attributes:
        link_down_s: how long the cloud has been out of reach; 0 while it is not.
        bytes_left: of the byte budget, 0..1; None without one.
    """

    link_down_s: float = 0.0
    bytes_left: float | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """A confident request was drawn; `unlooked` came before it and were not."""

    unlooked: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of one judged request.

    Attributes:
        draw: it is to be audited; None when it is not.
        alarm: its score has raised the drift alarm.
    """

    draw: Draw | None = None
    alarm: bool = False


class Watch:
    """The books of one version of one model. Memory is fixed."""

    def __init__(
        self, manifest: Manifest, options: WatchOptions, now_s: float = 0.0
    ) -> None:
        """Begin with nothing seen.

        Args:
            manifest: of a version that has a decision.
            options: of the operator.
            now_s: when, on the agent's clock.

        Raises:
            ValueError: the manifest has no decision to watch.
        """
        if manifest.decision is None:
            raise ValueError(f"model {manifest.name!r} decides nothing to be watched")
        self.version = manifest.version
        self._labels = tuple(manifest.labels)
        self._options = options
        self._calibration = manifest.calibration or Calibration()
        self._audits = manifest.calibration is not None and options.audit_share > 0
        self._ladder = Ladder(
            manifest.decision.threshold, tuple(self._calibration.rungs)
        )
        self._class_ladders = _class_ladders(manifest, self._calibration)
        self.in_force = InForce(self._ladder.threshold)
        self.thresholds = self._class_ladders.at(self.in_force)
        self._calibrated = self.thresholds
        self.changes = 0
        self._wait = ExpectedWait()
        self._deadline_s: float | None = None
        self._quota: Allowance | None = (
            None
            if options.spill_quota is None
            else spill_allowance(options.spill_quota)
        )
        self._drift = self._new_drift()
        self._promise = self._new_promise()
        self._began_s = now_s
        self._requests = 0
        self._unlooked = 0
        self._open: dict[Key, int] = {}
        self.uncovered = 0
        self.audited = 0
        self.disagreed = 0
        self.realised = None if self._promise is None else self._promise.realised()

    # --- the threshold ------------------------------------------------------------

    @property
    def calibrated(self) -> Thresholds:
        """The manifest's thresholds."""
        return self._calibrated

    def adjust(self, around: Surroundings, now_s: float) -> Change | None:
        """Put the threshold in force that these conditions ask for.

        A version without a ladder gives way to budget and quota only: all or nothing
        is too rough an answer to a wait.
        """
        deadline_s = self._deadline_s
        known = self._ladder.rungs or self._class_ladders.known
        gradual = bool(known) and deadline_s is not None
        patience_s = PATIENCE_WITH_LINK * (deadline_s or 0.0)
        conditions = Conditions(
            link_up=not gradual or around.link_down_s <= patience_s,
            wait_s=self._wait.at(now_s) if gradual else None,
            deadline_s=deadline_s,
            bytes_left=around.bytes_left,
            spills_left=None
            if self._quota is None
            else self._quota.left(self._requests),
        )
        before = self.in_force
        self.in_force, change = in_force(before, self._ladder, conditions)
        if self.in_force.share != before.share or change is not None:
            old, self.thresholds = (
                self.thresholds,
                self._class_ladders.at(self.in_force),
            )
            if change is None and self.thresholds != old:
                # Only classes gave way: the common threshold spills nothing anyway.
                change = Change(before.threshold, before.threshold, self.in_force.why)
        self.changes += change is not None
        return change

    def heard_wait(self, wait_s: float, now_s: float) -> None:
        """The pool says how long a request waits."""
        self._wait = self._wait.heard(wait_s, now_s)

    # --- requests -----------------------------------------------------------------

    def judged(
        self,
        score: float,
        *,
        spilled: bool,
        deadline_s: float,
        may_audit: bool,
        chances: tuple[float, float],
    ) -> Seen:
        """Take in one request that the edge model has answered.

        Args:
            score: `Judgement.score`.
            spilled: it is hard by the threshold in force.
            deadline_s: how long its device waits.
            may_audit: whether there is room for an audit now.
            chances: two numbers, uniform in 0..1, drawn for this request.
        """
        self._requests += 1
        known = self._deadline_s
        self._deadline_s = (
            deadline_s if known is None else known + _NEWEST * (deadline_s - known)
        )
        if spilled and self._quota is not None:
            self._quota = self._quota.spent(1.0, self._requests)
        if self._promise is not None and self._kind is None:
            self._promise.known(float(spilled))
        alarm = self._drift is not None and self._drift.observe(score, chances[0])
        draw = None if spilled else self._draw(may_audit, chances[1])
        return Seen(draw, alarm)

    def _draw(self, may_audit: bool, chance: float) -> Draw | None:
        if not self._audits:
            return None
        if not may_audit or len(self._open) >= MAX_OPEN_AUDITS:
            self.uncovered += 1
            return None
        if chance >= self._options.audit_share:
            self._unlooked += 1
            return None
        draw, self._unlooked = Draw(self._unlooked), 0
        return draw

    def not_spilled(self) -> None:
        """A hard request found no room; nothing is known of it."""
        self.uncovered += 1

    def audit_began(self, draw: Draw, key: Key) -> None:
        """The drawn request is on its way under this key."""
        self._open[key] = draw.unlooked

    def audit_failed(self, draw: Draw) -> None:
        """The drawn request could not be sent after all."""
        self.uncovered += 1 + draw.unlooked

    def audit_lost(self, key: Key) -> None:
        """The drawn request will not be answered."""
        unlooked = self._open.pop(key, None)
        if unlooked is not None:
            self.uncovered += 1 + unlooked

    def spill_ended(
        self, key: Key, edge: Answer | None, answer: Answer, *, audit: bool
    ) -> None:
        """A request that this version had answered was spilled and has its outcome.

        Args:
            key: of the spill.
            edge: what this version had said of it.
            answer: what came of it.
            audit: it was drawn, and its device has the edge's answer.
        """
        cloud = answer if answer.source is Source.CLOUD else None
        if audit:
            self._audit_ended(key, edge, cloud)
        elif cloud is None:
            self.uncovered += 1
        elif self._promise is not None and self._kind is not None:
            amount = cloud_amount(
                self._kind, cloud, self._calibration.cloud, self._labels
            )
            self._take(amount)

    def _audit_ended(self, key: Key, edge: Answer | None, cloud: Answer | None) -> None:
        unlooked = self._open.pop(key, None)
        if unlooked is None:
            return  # Drawn in an earlier life or period: those books are closed.
        amount = None
        if edge is not None and cloud is not None:
            self.audited += 1
            self.disagreed += edge.label != cloud.label
            amount = edge_amount(
                self._kind or "excess",
                edge,
                cloud,
                self._calibration.cloud,
                self._labels,
            )
        if amount is None:
            self.uncovered += 1 + unlooked
        elif self._promise is not None and self._kind is not None:
            self._promise.unknown(unlooked)
            self._promise.known(amount, chance=self._options.audit_share)

    def _take(self, amount: float | None) -> None:
        if amount is None or self._promise is None:
            self.uncovered += 1
        else:
            self._promise.known(amount)

    def missed(self, waited_s: float, now_s: float) -> None:
        """A spill's deadline came before the cloud's answer."""
        self._wait = self._wait.missed(waited_s, now_s)

    # --- the promise --------------------------------------------------------------

    @property
    def _kind(self) -> Kind | None:
        """What the cloud's answers are needed for; None: nothing."""
        target = self._calibration.target
        return None if target is None or target.kind == "spill" else target.kind

    @property
    def target(self) -> StatedTarget | None:
        """What was asked for."""
        return self._calibration.target

    def look(self, now_s: float) -> tuple[Realised | None, Realised | None]:
        """Read the promise, and begin it anew when its period is over.

        Returns:
            How it stands now where that is news; and how the last period ended, where
            it has just ended.
        """
        if self._promise is None:
            return None, None
        before = self.realised
        self.realised = self._promise.realised()
        news = (
            self.realised
            if before is None or before.standing is not self.realised.standing
            else None
        )
        if now_s - self._began_s < self._options.period_s:
            return news, None
        ended = self.realised
        self._promise, self._began_s = self._new_promise(), now_s
        # What is on its way belongs to the period that has ended.
        self._open.clear()
        self._unlooked = self.uncovered = 0
        self.realised = None if self._promise is None else self._promise.realised()
        return news, ended

    # --- for people ---------------------------------------------------------------

    def shown(self) -> dict[str, Any]:
        """As JSON would hold it."""
        found = self._drift
        return {
            "version": self.version,
            "threshold": finite(self.in_force.threshold),
            "calibrated": self.calibrated.common,
            "classes": {
                self._labels[index]: finite(threshold)
                for index, threshold in self.thresholds.classes.items()
            },
            "share": self.in_force.share,
            "why": self.in_force.why,
            "changes": self.changes,
            "promise": self._promise_shown(),
            "drift": None if found is None else asdict(found.found),
            "audited": self.audited,
            "disagreed": self.disagreed,
            "open_audits": len(self._open),
        }

    def _promise_shown(self) -> dict[str, Any] | None:
        target = self._calibration.target
        if target is None or self._promise is None:
            return None
        # As it stands now: who asks must not wait for the next look.
        realised = self._promise.realised()
        return {
            "text": target.text,
            "kind": target.kind,
            **asdict(realised),
            "standing": realised.standing.value,
            "shown": realised.shown,
            "uncovered": self.uncovered,
        }

    # --- over restarts ------------------------------------------------------------

    def to_state(self) -> dict[str, Any]:
        """What a restart must not lose, as JSON can hold it.

        Audits under way are not in it: what was not looked at before them is uncovered.
        """
        return {
            "version": self.version,
            "began_s": self._began_s,
            "requests": self._requests,
            "uncovered": self.uncovered
            + self._unlooked
            + sum(1 + unlooked for unlooked in self._open.values()),
            "audited": self.audited,
            "disagreed": self.disagreed,
            "quota_level": None if self._quota is None else self._quota.level,
            "quota_at": None if self._quota is None else self._quota.at,
            "promise": None if self._promise is None else self._promise.to_state(),
            "drift": None if self._drift is None else self._drift.to_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `to_state` of the same version was.

        What was asked for since in other words begins anew.

        Raises:
            ValueError: the state is not of this version, or not a state; nothing has
                changed then.
        """
        if state.get("version") != self.version:
            raise ValueError(f"the state is of version {state.get('version')!r}")
        try:
            counts = {
                name: int(state[name])
                for name in ("requests", "uncovered", "audited", "disagreed")
            }
            began_s = float(state["began_s"])
            quota = self._restored_quota(state)
            promise, drift = state["promise"], state["drift"]
            promise = None if promise is None else Promise.from_state(promise)
            drift = None if drift is None else DriftTest.from_state(drift)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the state of a watch: {error}") from error
        self._requests = counts["requests"]
        self.audited, self.disagreed = counts["audited"], counts["disagreed"]
        self._quota = quota
        if drift is not None and _same_reference(drift, self._drift):
            self._drift = drift
        if promise is not None and _same_terms(promise, self._promise):
            self._promise, self._began_s = promise, began_s
            self.uncovered = counts["uncovered"]
            self.realised = promise.realised()

    def _restored_quota(self, state: Mapping[str, Any]) -> Allowance | None:
        quota = self._quota
        if quota is None or state["quota_level"] is None:
            return quota
        level = min(quota.capacity, float(state["quota_level"]))
        return Allowance(quota.capacity, quota.rate, level, float(state["quota_at"]))

    def forget_drift(self) -> None:
        """Begin the drift test anew: somebody has seen the alarm."""
        self._drift = self._new_drift()

    def _new_drift(self) -> DriftTest | None:
        scores = self._calibration.scores
        if scores is None:
            return None
        return DriftTest(scores.edges, scores.counts, self._options.false_alarm)

    def _new_promise(self) -> Promise | None:
        target = self._calibration.target
        if target is None or (target.kind != "spill" and not self._audits):
            return None
        return Promise(
            target.limit,
            least_chance=1.0 if target.kind == "spill" else self._options.audit_share,
            confidence=target.confidence or 0.95,
        )


def _class_ladders(manifest: Manifest, calibration: Calibration) -> ClassLadders:
    ladders = {}
    for index, threshold in manifest.class_thresholds.items():
        rungs = calibration.class_rungs.get(manifest.labels[index], ())
        ladders[index] = Ladder(threshold, tuple(rungs))
    return ClassLadders(ladders)


def finite(threshold: float) -> float | None:
    """-inf, which spills none, is no number of JSON."""
    return None if threshold == -float("inf") else threshold


def _same_terms(a: Promise, b: Promise | None) -> bool:
    names = ("target", "least_chance", "confidence")
    return b is not None and all(a.to_state()[n] == b.to_state()[n] for n in names)


def _same_reference(a: DriftTest, b: DriftTest | None) -> bool:
    names = ("edges", "false_alarm")
    return b is not None and all(a.to_state()[n] == b.to_state()[n] for n in names)
