"""The outbox against a dictionary: whatever happens in whatever order, both agree."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from typing_extensions import override

from broker.messages import Priority, Reason
from edge_agent.adapters.outbox import Committed, Outbox, OutboxFull, Recorded
from edge_agent.core.delivery import (
    Channel,
    Key,
    Outcome,
    Spill,
    Stage,
    Step,
    after_step,
    settling_step,
)
from edge_agent.core.quotas import QuotaLimits

START_MS = 1_700_000_000_000.0
LIMITS = QuotaLimits(max_rows=3, device_max_rows=2)

devices = st.sampled_from(["cam1", "cam2"])
ids = st.sampled_from(["r1", "r2", "r3"])
channels = st.sampled_from(list(Channel))
outcomes = st.sampled_from(list(Outcome))


@dataclass(frozen=True)
class Row:
    """What the model knows of one id."""

    spill: Spill
    stage: Stage = Stage.OPEN
    outcome: Outcome | None = None
    ended_ms: float = 0.0
    closed_ms: float = 0.0
    written: bool = True


class OutboxAndModel(RuleBasedStateMachine):
    """Drives both. Time stands still unless a rule moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="outbox"))
        self.generation = 0
        self.now_ms = START_MS
        self.rows: dict[Key, Row] = {}
        self.accepted: Counter[str] = Counter()
        self.ended: Counter[Outcome] = Counter()
        self.undelivered = 0

    @initialize()
    def open(self) -> None:
        self.outbox = Outbox(
            self.folder / f"{self.generation}.db",
            group_commit_ms=60_000,  # Commits come when a rule asks for one.
            limits=LIMITS,
        )
        self.runner.run(self.outbox.__aenter__())

    @override
    def teardown(self) -> None:
        self.runner.run(self.outbox.__aexit__())
        self.runner.close()
        shutil.rmtree(self.folder)

    def stage(self, *stages: Stage) -> list[Key]:
        return [key for key, row in self.rows.items() if row.stage in stages]

    def write(self) -> None:
        """What a commit of the pending group does to the model."""
        for key, row in self.rows.items():
            if not row.written:
                self.accepted[row.spill.device] += 1
                if row.outcome is not None:
                    self.ended[row.outcome] += 1
            self.rows[key] = replace(row, written=True)

    # --- what may happen -------------------------------------------------------------

    @rule(
        device=devices,
        id_=ids,
        channel=channels,
        left_ms=st.integers(1, 1000),
        priority=st.sampled_from(list(Priority)),
        commit=st.booleans(),
    )
    def accept(
        self,
        device: str,
        id_: str,
        channel: Channel,
        left_ms: int,
        priority: Priority,
        commit: bool,
    ) -> None:
        spill = Spill(
            device=device,
            id=id_,
            model="fashion",
            priority=priority,
            reason=Reason.HARD,
            channel=channel,
            encoding="json",
            request=b"x" * 10,
            accepted_ms=self.now_ms,
            deadline_ms=self.now_ms + left_ms,
            due_ms=self.now_ms,
        )
        self.runner.run(self._accept(spill, commit))

    def is_full(self, device: str) -> bool:
        waiting = self.stage(Stage.OPEN)
        own = [key for key in waiting if key[0] == device]
        return len(waiting) >= LIMITS.max_rows or len(own) >= LIMITS.device_max_rows

    async def _accept(self, spill: Spill, commit: bool) -> None:
        known = self.rows.get(spill.key)
        pending = known is not None and not known.written
        refused = self.is_full(spill.device) and not pending
        try:
            accepted = self.outbox.accept(spill)
        except OutboxFull:
            assert refused
            return
        assert not refused
        # What has ended and is not written yet is known at once; all else with the
        # next commit, an id that came twice before it as well.
        ended = known is not None and known.stage is not Stage.OPEN
        assert accepted.done() is (pending and ended)
        if known is None:
            self.rows[spill.key] = Row(spill, written=False)
        if commit or not (pending or known is None):
            await self._commit()
            told = await accepted
            if known is None:
                assert told == Committed()
            else:
                assert isinstance(told, Recorded)
                assert (told.stage, told.outcome) == (known.stage, known.outcome)

    @rule()
    def commit(self) -> None:
        self.runner.run(self._commit())

    async def _commit(self) -> None:
        await self.outbox.counts()
        self.write()

    @rule(device=devices, id_=ids, outcome=outcomes)
    def settle(self, device: str, id_: str, outcome: Outcome) -> None:
        self.runner.run(self._settle((device, id_), outcome))

    async def _settle(self, key: Key, outcome: Outcome) -> None:
        row = self.rows.get(key)
        open_ = row is not None and row.stage is Stage.OPEN
        step = Step.SETTLE if row is None else settling_step(row.spill.channel)
        first = await self.outbox.settle(
            key, outcome, b"ok", ended_ms=self.now_ms, step=step
        )
        assert first is open_
        if row is not None and open_:
            if row.written:
                self.ended[outcome] += 1
            self.rows[key] = replace(
                row,
                stage=after_step(row.stage, step),
                outcome=outcome,
                ended_ms=self.now_ms,
                closed_ms=self.now_ms,
            )

    @rule(device=devices, id_=ids)
    def tell(self, device: str, id_: str) -> None:
        key = (device, id_)
        row = self.rows.get(key)
        if row is not None and row.stage is Stage.OPEN:
            return
        self.runner.run(self.outbox.mark_told([key], self.now_ms))
        if row is not None and row.stage is Stage.SETTLED:
            # A row that is not written yet is closed as of its end.
            closed_ms = self.now_ms if row.written else row.ended_ms
            told = after_step(row.stage, Step.TELL)
            self.rows[key] = replace(row, stage=told, closed_ms=closed_ms)

    @rule(ms=st.sampled_from([1, 50, 400]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @rule()
    def expire(self) -> None:
        self.runner.run(self._expire())

    async def _expire(self) -> None:
        expired = await self.outbox.expired(self.now_ms)
        self.write()
        due = [
            self.rows[key].spill
            for key in self.stage(Stage.OPEN)
            if self.rows[key].spill.deadline_ms <= self.now_ms
        ]
        assert {each.key for each in expired} == {each.key for each in due}
        for each in expired:
            await self._settle(each.key, Outcome.EXPIRED)

    @rule(ms=st.sampled_from([0, 50, 400]))
    def give_up(self, ms: int) -> None:
        before_ms = self.now_ms - ms
        lost = self.runner.run(self.outbox.give_up_untold(before_ms, self.now_ms))
        due = [
            key
            for key in self.stage(Stage.SETTLED)
            if self.rows[key].written and self.rows[key].ended_ms < before_ms
        ]
        assert set(lost) == set(due)
        self.undelivered += len(lost)
        for key in lost:
            stage = after_step(Stage.SETTLED, Step.GIVE_UP)
            self.rows[key] = replace(self.rows[key], stage=stage, closed_ms=self.now_ms)

    @rule(ms=st.sampled_from([0, 50, 400]))
    def forget(self, ms: int) -> None:
        before_ms = self.now_ms - ms
        gone = self.runner.run(self.outbox.forget_closed(before_ms))
        due = [
            key
            for key in self.stage(Stage.TOLD, Stage.UNDELIVERED)
            if self.rows[key].written and self.rows[key].closed_ms < before_ms
        ]
        assert gone == len(due)
        for key in due:
            del self.rows[key]

    @precondition(lambda self: self.generation < 4)
    @rule()
    def kill(self) -> None:
        """The process dies: what was handed to the kernel is there, no more."""
        old = self.folder / f"{self.generation}.db"
        self.generation += 1
        for suffix in ("", "-wal"):
            file = old.with_name(old.name + suffix)
            if file.exists():
                shutil.copy(file, self.folder / f"{self.generation}.db{suffix}")
        self.runner.run(self.outbox.__aexit__())
        self.rows = {key: row for key, row in self.rows.items() if row.written}
        self.open()

    # --- what always holds ---------------------------------------------------------------

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        if hasattr(self, "outbox"):
            self.runner.run(self._compare())

    async def _compare(self) -> None:
        for key, row in self.rows.items():
            if not row.written and row.stage is Stage.OPEN:
                # `find` would wait for its commit.
                assert self.outbox.is_fresh(key), key
                continue
            found = await self.outbox.find(key)
            assert found is not None, key
            assert (found.stage, found.outcome) == (row.stage, row.outcome), key
        held = self.outbox._room.quotas
        waiting = self.stage(Stage.OPEN)
        assert held.total.rows == len(waiting)
        for device in ("cam1", "cam2"):
            own = [key for key in waiting if key[0] == device]
            assert held.of(device).rows == len(own)
        # Looking at the file itself must not commit what is pending.
        ledger = (await self.outbox._run(lambda: self.outbox._table.counts(0))).ledger
        assert ledger.balanced
        assert sum(ledger.accepted.values()) == sum(self.accepted.values())
        assert {each: ledger.of(each) for each in Outcome} == {
            each: self.ended[each] for each in Outcome
        }
        assert ledger.undelivered == self.undelivered


TestOutboxAndModel: Any = pytest.mark.timeout(120)(OutboxAndModel.TestCase)
TestOutboxAndModel.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,  # It writes to a disk.
    suppress_health_check=[HealthCheck.too_slow],
)
