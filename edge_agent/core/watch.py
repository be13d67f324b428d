"""What is watched of one model version: its threshold in force, its promise, its drift.

Pure accounts. Time and chance come as arguments; a loop logs, saves and asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bundle.calibration import Calibration
from bundle.manifest import Manifest
from cascade.drift import DriftTest
from edge_agent.core.promise_books import Draw, KeptBooks, PromiseBooks
from edge_agent.core.threshold import KeptThreshold, Threshold


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
class Seen:
    """What came of one judged request.

    Attributes:
        draw: it is to be audited; None when it is not.
        alarm: its score has raised the drift alarm.
    """

    draw: Draw | None = None
    alarm: bool = False


class Watch:
    """All that is watched of one version of one model. Memory is fixed.

    Attributes:
        version: of the model.
        threshold: in force, and why.
        books: of what the version promises.
    """

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
        calibration = manifest.calibration or Calibration()
        self.version = manifest.version
        self.threshold = Threshold(manifest, calibration, options.spill_quota)
        self.books = PromiseBooks(
            manifest,
            calibration,
            audit_share=options.audit_share,
            period_s=options.period_s,
            now_s=now_s,
        )
        self._labels = tuple(manifest.labels)
        self._scores = calibration.scores
        self._false_alarm = options.false_alarm
        self._drift = self._new_drift()

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
        self.threshold.asked(deadline_s, spilled=spilled)
        self.books.judged(spilled=spilled)
        alarm = self._drift is not None and self._drift.observe(score, chances[0])
        if spilled:
            return Seen(None, alarm)
        return Seen(self.books.draw(chances[1], may_audit=may_audit), alarm)

    # --- for people ---------------------------------------------------------------

    def shown(self) -> dict[str, Any]:
        """As JSON would hold it."""
        threshold, books, drift = self.threshold, self.books, self._drift
        return {
            "version": self.version,
            "threshold": finite(threshold.in_force.threshold),
            "calibrated": threshold.calibrated.common,
            "classes": {
                self._labels[index]: finite(each)
                for index, each in threshold.now.classes.items()
            },
            "share": threshold.in_force.share,
            "why": threshold.in_force.why,
            "changes": threshold.changes,
            "promise": books.shown_promise(),
            "drift": None if drift is None else asdict(drift.found),
            "audited": books.audited,
            "disagreed": books.disagreed,
            "open_audits": books.open_audits,
        }

    # --- over restarts ------------------------------------------------------------

    def to_state(self) -> dict[str, Any]:
        """What a restart must not lose, as JSON can hold it."""
        return {
            "version": self.version,
            **self.threshold.to_state(),
            **self.books.to_state(),
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
            threshold, books = KeptThreshold.read(state), KeptBooks.read(state)
            drift = state["drift"]
            drift = None if drift is None else DriftTest.from_state(drift)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the state of a watch: {error}") from error
        self.threshold.restore(threshold)
        self.books.restore(books)
        if drift is not None and _same_reference(drift, self._drift):
            self._drift = drift

    # --- drift --------------------------------------------------------------------

    def forget_drift(self) -> None:
        """Begin the drift test anew: somebody has seen the alarm."""
        self._drift = self._new_drift()

    def _new_drift(self) -> DriftTest | None:
        scores = self._scores
        if scores is None:
            return None
        return DriftTest(scores.edges, scores.counts, self._false_alarm)


def finite(threshold: float) -> float | None:
    """-inf, which spills none, is no number of JSON."""
    return None if threshold == -float("inf") else threshold


def _same_reference(a: DriftTest, b: DriftTest | None) -> bool:
    names = ("edges", "false_alarm")
    return b is not None and all(a.to_state()[n] == b.to_state()[n] for n in names)
