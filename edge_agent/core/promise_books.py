"""The books of what one model version promises, kept by audits. Pure.

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
from cascade.promise import Promise, Realised
from edge_agent.core.answers import Answer, Source
from edge_agent.core.shortfall import Kind, cloud_amount, edge_amount

Key = tuple[str, str]

MAX_OPEN_AUDITS: Final = 64


@dataclass(frozen=True, slots=True)
class Draw:
    """A confident request was drawn; `unlooked` came before it and were not."""

    unlooked: int


@dataclass(frozen=True, slots=True)
class KeptBooks:
    """What a restart must not lose of the books."""

    began_s: float
    uncovered: int
    audited: int
    disagreed: int
    promise: Promise | None

    @classmethod
    def read(cls, state: Mapping[str, Any]) -> KeptBooks:
        """From what `to_state` gave.

        Raises:
            KeyError, TypeError, ValueError: it is no such state.
        """
        promise = state["promise"]
        return cls(
            began_s=float(state["began_s"]),
            uncovered=int(state["uncovered"]),
            audited=int(state["audited"]),
            disagreed=int(state["disagreed"]),
            promise=None if promise is None else Promise.from_state(promise),
        )


class PromiseBooks:
    """What is known of a version's target. Memory is fixed.

    Args:
        manifest: of the version.
        calibration: of the version; the target is in it.
        audit_share: of confident requests, 0..1.
        period_s: seconds after which a promise begins anew.
        now_s: when, on the agent's clock.

    Attributes:
        uncovered: requests of this period of which nothing is known.
        audited: audits that the cloud has answered.
        disagreed: of these, where it gave another label.
        realised: how the promise stood when it was last read; None without one.
    """

    def __init__(
        self,
        manifest: Manifest,
        calibration: Calibration,
        *,
        audit_share: float,
        period_s: float,
        now_s: float,
    ) -> None:
        self._labels = tuple(manifest.labels)
        self._calibration = calibration
        self._audit_share = audit_share
        self._audits = manifest.calibration is not None and audit_share > 0
        self._period_s = period_s
        self._promise = self._new_promise()
        self._began_s = now_s
        self._unlooked = 0
        self._open: dict[Key, int] = {}
        self.uncovered = 0
        self.audited = 0
        self.disagreed = 0
        self.realised = None if self._promise is None else self._promise.realised()

    @property
    def open_audits(self) -> int:
        """Audits on their way."""
        return len(self._open)

    def judged(self, *, spilled: bool) -> None:
        """A request was judged; some targets need to know no more."""
        if self._promise is not None and self._kind is None:
            self._promise.known(float(spilled))

    def draw(self, chance: float, *, may_audit: bool) -> Draw | None:
        """Whether a confident request is to be audited, by a number uniform in 0..1."""
        if not self._audits:
            return None
        if not may_audit or len(self._open) >= MAX_OPEN_AUDITS:
            self.uncovered += 1
            return None
        if chance >= self._audit_share:
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
            self._promise.known(amount, chance=self._audit_share)

    def _take(self, amount: float | None) -> None:
        if amount is None or self._promise is None:
            self.uncovered += 1
        else:
            self._promise.known(amount)

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
        if now_s - self._began_s < self._period_s:
            return news, None
        ended = self.realised
        self._promise, self._began_s = self._new_promise(), now_s
        # What is on its way belongs to the period that has ended.
        self._open.clear()
        self._unlooked = self.uncovered = 0
        self.realised = None if self._promise is None else self._promise.realised()
        return news, ended

    def shown_promise(self) -> dict[str, Any] | None:
        """How the promise stands now, as JSON would hold it; None without one."""
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

    def to_state(self) -> dict[str, Any]:
        """What a restart must not lose, as JSON can hold it.

        Audits under way are not in it: what was not looked at before them is uncovered.
        """
        return {
            "began_s": self._began_s,
            "uncovered": self.uncovered
            + self._unlooked
            + sum(1 + unlooked for unlooked in self._open.values()),
            "audited": self.audited,
            "disagreed": self.disagreed,
            "promise": None if self._promise is None else self._promise.to_state(),
        }

    def restore(self, kept: KeptBooks) -> None:
        """Go on where `to_state` was; what was promised in other words begins anew."""
        self.audited, self.disagreed = kept.audited, kept.disagreed
        if kept.promise is not None and _same_terms(kept.promise, self._promise):
            self._promise, self._began_s = kept.promise, kept.began_s
            self.uncovered = kept.uncovered
            self.realised = kept.promise.realised()

    def _new_promise(self) -> Promise | None:
        target = self._calibration.target
        if target is None or (target.kind != "spill" and not self._audits):
            return None
        return Promise(
            target.limit,
            least_chance=1.0 if target.kind == "spill" else self._audit_share,
            confidence=target.confidence or 0.95,
        )


def _same_terms(a: Promise, b: Promise | None) -> bool:
    names = ("target", "least_chance", "confidence")
    return b is not None and all(a.to_state()[n] == b.to_state()[n] for n in names)
