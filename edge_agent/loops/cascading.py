"""Keep the thresholds in force, the promises and the drift tests of all models.

Whoever serves asks here for the threshold, and says what was judged, sent and answered.
Each change is logged with its reason; the books are saved now and then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import structlog

from broker.messages import CascadeReport, Reason, Result
from bundle.manifest import Manifest
from cascade.allowance import Allowance
from cascade.policy import Judgement, Thresholds
from cascade.promise import Realised, Standing
from edge_agent.adapters.watch_file import WatchFile
from edge_agent.core.delivery import Ending, Spill, Why
from edge_agent.core.promise_books import Draw
from edge_agent.core.served import Served
from edge_agent.core.threshold import Surroundings
from edge_agent.core.watch import Watch, WatchOptions, finite

log = structlog.get_logger(__name__)

ADJUST_EVERY_S: Final = 0.05
LOOK_EVERY_S: Final = 5.0
SAVE_EVERY_S: Final = 60.0
# Audits are a luxury: they end when a budget runs as low as where thresholds give way.
BUDGET_FOR_AUDITS: Final = 0.25


class Cascading:
    """The watches of every model in service.

    Args:
        options: of the operator.
        budget: bytes that may be sent to the cloud, by seconds; None: any number.
        file: where the books are kept.
        has_cloud: whether there is anything to spill to.
        now_ms: the agent's clock.
        rng: draws audits, and orders equal scores.
    """

    def __init__(
        self,
        *,
        options: WatchOptions,
        budget: Allowance | None,
        file: WatchFile,
        has_cloud: bool,
        now_ms: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._options = options
        self._file = file
        self._has_cloud = has_cloud
        self._now_ms = now_ms
        self._rng = rng
        self._watches: dict[str, Watch] = {}
        self._adjusted_s: dict[str, float] = {}
        # Down from the start, until the link says that it is up.
        self._down_since_s: float | None = self._now_s()
        stored = file.read()
        models = stored.get("models")
        self._stored: dict[str, Any] = models if isinstance(models, dict) else {}
        self._budget = _resumed(budget, stored.get("budget"))
        self._unsaved = False

    def _now_s(self) -> float:
        return self._now_ms() / 1000.0

    # --- for who serves -------------------------------------------------------------

    def watch(self, manifest: Manifest) -> None:
        """A version goes into service; one that was in service before goes on."""
        name = manifest.name
        known = self._watches.pop(name, None)
        if manifest.decision is None:
            return
        if known is None or known.version != manifest.version:
            known = self._begin(manifest)
        self._watches[name] = known

    def thresholds(self, served: Served) -> Thresholds | None:
        """What is enough now; None: the manifest's own, if it has any."""
        watch = self._watch_of(served)
        if watch is None:
            return None
        now_s = self._now_s()
        name = served.manifest.name
        if now_s - self._adjusted_s.get(name, -ADJUST_EVERY_S) >= ADJUST_EVERY_S:
            self._adjust(name, watch, now_s)
        return watch.threshold.now

    def held_back(self, served: Served, judgement: Judgement | None) -> str | None:
        """Why an answer stands that the calibrated threshold would have spilled."""
        watch = self._watch_of(served)
        if watch is None or judgement is None or judgement.hard:
            return None
        calibrated = watch.threshold.calibrated.of(judgement.label_index)
        if judgement.score >= calibrated:
            return None
        return (
            f"confidence {judgement.confidence:.3f} is under the calibrated threshold "
            f"{calibrated:.3f}, not spilled: {watch.threshold.in_force.why}"
        )

    def judged(
        self,
        served: Served,
        judgement: Judgement | None,
        deadline_ms: float,
        *,
        room: bool,
    ) -> Draw | None:
        """Take in what the edge model said; gives a draw when it is to be audited.

        Args:
            served: the version that answered.
            judgement: of its answer.
            deadline_ms: how long the device waits.
            room: whether the outbox has room to spare for an audit.
        """
        watch = self._watch_of(served)
        if watch is None or judgement is None:
            return None
        seen = watch.judged(
            judgement.score,
            spilled=judgement.hard,
            deadline_s=deadline_ms / 1000.0,
            may_audit=room and self._may_audit(),
            chances=(self._rng.random(), self._rng.random()),
        )
        self._unsaved = True
        if seen.alarm:
            found = watch.shown()["drift"]
            log.warning(
                "drift_alarm",
                model=served.manifest.name,
                version=watch.version,
                after=found["alarmed_at"],
                scores="lower than calibrated" if found["lower"] else "other",
                means="the target is not promised for such requests",
            )
        return seen.draw

    def _may_audit(self) -> bool:
        if not self._has_cloud or self._down_since_s is not None:
            return False
        left = self._bytes_left()
        return left is None or left > BUDGET_FOR_AUDITS

    def not_spilled(self, model: str) -> None:
        """A hard request could not be spilled, so no answer of the cloud will come."""
        if (watch := self._watches.get(model)) is not None:
            watch.books.not_spilled()

    def audit_began(self, draw: Draw, spill: Spill) -> None:
        """The drawn request was taken by the outbox."""
        if (watch := self._watches.get(spill.model)) is not None:
            watch.books.audit_began(draw, spill.key)

    def audit_failed(self, draw: Draw, model: str) -> None:
        """The outbox had no room for it."""
        if (watch := self._watches.get(model)) is not None:
            watch.books.audit_failed(draw)

    def audit_lost(self, spill: Spill) -> None:
        """The disk refused it after all."""
        if (watch := self._watches.get(spill.model)) is not None:
            watch.books.audit_lost(spill.key)

    # --- for who sends and hears ------------------------------------------------------

    def link_changed(self, up: bool) -> None:
        """The cloud's link came or went."""
        if up:
            self._down_since_s = None
        elif self._down_since_s is None:
            self._down_since_s = self._now_s()

    def sent(self, size: int) -> None:
        """So many bytes went to the cloud; resends count again, as they cost again."""
        if self._budget is not None:
            self._budget = self._budget.spent(size, self._now_s())
            self._unsaved = True

    def heard(self, result: Result) -> None:
        """The pool has said something, and with it how long a request waits there."""
        watch = self._watches.get(result.model)
        if watch is not None:
            watch.threshold.heard_wait(result.pool_wait_ms / 1000.0, self._now_s())

    def ended(self, spill: Spill, ending: Ending) -> None:
        """A spill has its one outcome."""
        watch = self._watches.get(spill.model)
        edge = spill.edge
        if watch is None:
            return
        audit = spill.reason is Reason.AUDIT
        if ending.why is Why.DEADLINE and not audit:
            now_ms = self._now_ms()
            watch.threshold.missed(
                (now_ms - spill.accepted_ms) / 1000.0, now_ms / 1000.0
            )
        if edge is None or edge.version != watch.version:
            return
        if audit or spill.reason is Reason.HARD:
            watch.books.spill_ended(spill.key, edge, ending.answer, audit=audit)
            self._unsaved = True

    # --- the loop -----------------------------------------------------------------

    async def run(self) -> None:
        """Look at promises, and save; endless."""
        saved_s = self._now_s()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()
            if self._now_s() - saved_s >= SAVE_EVERY_S and self._unsaved:
                saved_s = self._now_s()
                state, self._unsaved = self._state(), False
                await asyncio.to_thread(self._write, state)

    def look(self) -> None:
        """Read every promise, and log what is news."""
        now_s = self._now_s()
        for name, watch in self._watches.items():
            self._adjust(name, watch, now_s)
            news, ended = watch.books.look(now_s)
            if news is not None:
                bad = news.standing is not Standing.KEPT
                (log.warning if bad else log.info)(
                    "promise", **_told(name, watch, news)
                )
            if ended is not None:
                log.info("promise_period_ended", **_told(name, watch, ended))

    def save(self) -> None:
        """Note everything; a disk that does not let it costs a line in the log."""
        self._write(self._state())

    def _write(self, state: dict[str, Any]) -> None:
        try:
            self._file.write(state)
        except OSError as error:
            log.error("promises_not_written", error=str(error))

    def _state(self) -> dict[str, Any]:
        budget = self._budget
        return {
            "budget": None
            if budget is None
            else {"level": budget.level, "at_s": budget.at},
            # A model that was not asked for in this life keeps its books.
            "models": {
                **self._stored,
                **{name: watch.to_state() for name, watch in self._watches.items()},
            },
        }

    # --- state --------------------------------------------------------------------

    def shown(self) -> dict[str, dict[str, Any]]:
        """What is watched of each model, as JSON would hold it."""
        return {name: watch.shown() for name, watch in self._watches.items()}

    def budget_shown(self) -> dict[str, Any] | None:
        """The byte budget, as JSON would hold it; None without one."""
        left = self._bytes_left()
        return None if left is None else {"left": left}

    def report(self, model: str, version: str | None) -> CascadeReport | None:
        """What the fleet is told of a model's cascade."""
        watch = self._watches.get(model)
        if watch is None or watch.version != version:
            return None
        shown = watch.shown()
        promise, drift = shown["promise"] or {}, shown["drift"] or {}
        return CascadeReport(
            threshold=shown["threshold"],
            calibrated=shown["calibrated"],
            share=shown["share"],
            why=shown["why"][:1024],
            target=promise.get("text"),
            standing=promise.get("standing"),
            value=promise.get("value"),
            low=promise.get("low"),
            high=promise.get("high"),
            drift=bool(drift.get("alarm", False)),
        )

    def drift_seen(self, model: str) -> bool:
        """Begin a model's drift test anew; False when there is none of that name."""
        watch = self._watches.get(model)
        if watch is None:
            return False
        watch.forget_drift()
        self._unsaved = True
        log.info("drift_test_begins_anew", model=model, version=watch.version)
        return True

    # --- parts ----------------------------------------------------------------------

    def _watch_of(self, served: Served) -> Watch | None:
        """None for a version that has just been replaced: its books are closed."""
        watch = self._watches.get(served.manifest.name)
        if watch is None or watch.version != served.manifest.version:
            return None
        return watch

    def _begin(self, manifest: Manifest) -> Watch:
        watch = Watch(manifest, self._options, self._now_s())
        state = self._stored.pop(manifest.name, None)
        if isinstance(state, dict) and state.get("version") == manifest.version:
            try:
                watch.restore(state)
            except ValueError as error:
                log.warning(
                    "promise_begins_anew", model=manifest.name, reason=str(error)
                )
        return watch

    def _adjust(self, name: str, watch: Watch, now_s: float) -> None:
        self._adjusted_s[name] = now_s
        # Without a cloud there is nothing to come back: routing says so by itself.
        down = self._down_since_s if self._has_cloud else None
        around = Surroundings(
            link_down_s=0.0 if down is None else now_s - down,
            bytes_left=self._bytes_left(),
        )
        change = watch.threshold.adjust(around, now_s)
        if change is not None:
            log.info(
                "threshold_changed",
                model=name,
                version=watch.version,
                old=finite(change.old),
                new=finite(change.new),
                share=watch.threshold.in_force.share,
                why=change.why,
            )

    def _bytes_left(self) -> float | None:
        return None if self._budget is None else self._budget.left(self._now_s())


def _resumed(budget: Allowance | None, stored: object) -> Allowance | None:
    """The budget with what an earlier life had left of it; a new one is full."""
    if budget is None or not isinstance(stored, dict):
        return budget
    level, at_s = stored.get("level"), stored.get("at_s")
    if not isinstance(level, int | float) or not isinstance(at_s, int | float):
        return budget
    then = replace(budget, level=min(budget.capacity, level), at=min(at_s, budget.at))
    return then.refilled(budget.at)


def _told(name: str, watch: Watch, realised: Realised) -> dict[str, Any]:
    return {
        "model": name,
        "version": watch.version,
        "target": None if watch.books.target is None else watch.books.target.text,
        "standing": realised.standing.value,
        "value": round(realised.value, 4),
        "low": round(realised.low, 4),
        "high": round(realised.high, 4),
        "requests": realised.requests,
        "known": realised.audited,
    }
