"""The threshold in force of one model version, and what makes it give way. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bundle.calibration import Calibration
from bundle.manifest import Manifest
from cascade.allowance import Allowance, spill_allowance
from cascade.effective import (
    Change,
    ClassLadders,
    Conditions,
    InForce,
    Ladder,
    in_force,
)
from cascade.policy import Thresholds
from edge_agent.core.expected_wait import ExpectedWait

# Of the usual deadline, how long the link may be away before it counts as down.
PATIENCE_WITH_LINK: Final = 0.1
_NEWEST: Final = 0.05


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
class KeptThreshold:
    """What a restart must not lose of a threshold.

    Attributes:
        requests: how many were judged.
        quota_level: of the spill quota; None without one.
        quota_at: the request at which it had that level.
    """

    requests: int
    quota_level: float | None
    quota_at: float | None

    @classmethod
    def read(cls, state: Mapping[str, Any]) -> KeptThreshold:
        """From what `to_state` gave.

        Raises:
            KeyError, TypeError, ValueError: it is no such state.
        """
        level = state["quota_level"]
        if level is None:
            return cls(int(state["requests"]), None, None)
        return cls(int(state["requests"]), float(level), float(state["quota_at"]))


class Threshold:
    """Gives way to the pool's wait, the link, the byte budget and the spill quota.

    Args:
        manifest: of the version.
        calibration: of the version; its ladder says what each threshold spills.
        spill_quota: the share of requests that may be spilled as hard; None sets none.

    Attributes:
        in_force: what is spilled now, and why.
        now: the thresholds that this comes to.
        calibrated: the manifest's thresholds.
        changes: how often it has changed.
    """

    def __init__(
        self, manifest: Manifest, calibration: Calibration, spill_quota: float | None
    ) -> None:
        """Begin with the manifest's.

        Raises:
            ValueError: the manifest has no decision.
        """
        if manifest.decision is None:
            raise ValueError(f"model {manifest.name!r} decides nothing to be watched")
        self._ladder = Ladder(manifest.decision.threshold, tuple(calibration.rungs))
        self._class_ladders = _class_ladders(manifest, calibration)
        self.in_force = InForce(self._ladder.threshold)
        self.now = self._class_ladders.at(self.in_force)
        self.calibrated: Thresholds = self.now
        self.changes = 0
        self._wait = ExpectedWait()
        self._deadline_s: float | None = None
        self._requests = 0
        self._quota: Allowance | None = (
            None if spill_quota is None else spill_allowance(spill_quota)
        )

    def asked(self, deadline_s: float, *, spilled: bool) -> None:
        """A request was judged; its device waits so long."""
        self._requests += 1
        known = self._deadline_s
        self._deadline_s = (
            deadline_s if known is None else known + _NEWEST * (deadline_s - known)
        )
        if spilled and self._quota is not None:
            self._quota = self._quota.spent(1.0, self._requests)

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
            old, self.now = (
                self.now,
                self._class_ladders.at(self.in_force),
            )
            if change is None and self.now != old:
                # Only classes gave way: the common threshold spills nothing anyway.
                change = Change(before.threshold, before.threshold, self.in_force.why)
        self.changes += change is not None
        return change

    def heard_wait(self, wait_s: float, now_s: float) -> None:
        """The pool says how long a request waits."""
        self._wait = self._wait.heard(wait_s, now_s)

    def missed(self, waited_s: float, now_s: float) -> None:
        """A spill's deadline came before the cloud's answer."""
        self._wait = self._wait.missed(waited_s, now_s)

    def to_state(self) -> dict[str, Any]:
        """What a restart must not lose, as JSON can hold it."""
        return {
            "requests": self._requests,
            "quota_level": None if self._quota is None else self._quota.level,
            "quota_at": None if self._quota is None else self._quota.at,
        }

    def restore(self, kept: KeptThreshold) -> None:
        """Go on where `to_state` was."""
        self._requests = kept.requests
        quota = self._quota
        if quota is None or kept.quota_level is None or kept.quota_at is None:
            return
        level = min(quota.capacity, kept.quota_level)
        self._quota = Allowance(quota.capacity, quota.rate, level, kept.quota_at)


def _class_ladders(manifest: Manifest, calibration: Calibration) -> ClassLadders:
    ladders = {}
    for index, threshold in manifest.class_thresholds.items():
        rungs = calibration.class_rungs.get(manifest.labels[index], ())
        ladders[index] = Ladder(threshold, tuple(rungs))
    return ClassLadders(ladders)
