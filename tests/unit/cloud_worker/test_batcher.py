from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Priority
from cloud_worker.core.batcher import (
    Batcher,
    Expire,
    Flush,
    Group,
    Idle,
    Item,
    Shed,
    WaitUntil,
)

HI, NORM, BULK = Priority.HI, Priority.NORM, Priority.BULK


def group(name: str = "fashion", max_rows: int = 4, side: int = 28) -> Group:
    return Group(name, (("image", "float32", (1, side)),), max_rows)


def item(
    work: int = 0,
    *,
    of: Group | None = None,
    priority: Priority = NORM,
    deadline_s: float = 100.0,
    rows: int = 1,
    size_bytes: int = 10,
) -> Item[int]:
    return Item(of or group(), priority, deadline_s, size_bytes, work, rows)


def flushed(batcher: Batcher[int], now: float = 0.0, running: int = 0) -> list[int]:
    step = batcher.next_step(now, running=running)
    assert isinstance(step, Flush)
    return [each.work for each in step.items]


def test_nothing_lingers_while_the_runner_is_idle() -> None:
    batcher: Batcher[int] = Batcher()
    batcher.add(item(7))
    assert flushed(batcher) == [7]
    assert batcher.next_step(0.0, running=0) == Idle()


def test_requests_gather_while_the_runner_is_busy() -> None:
    batcher: Batcher[int] = Batcher()
    for work in range(3):
        batcher.add(item(work, deadline_s=50.0 + work))
        assert batcher.next_step(0.0, running=1) == WaitUntil(50.0)
    assert flushed(batcher) == [0, 1, 2]


def test_a_full_batch_goes_behind_the_running_one_and_no_third() -> None:
    batcher: Batcher[int] = Batcher(depth=2)
    for work in range(8):
        batcher.add(item(work))
    assert flushed(batcher, running=1) == [0, 1, 2, 3]
    assert isinstance(batcher.next_step(0.0, running=2), WaitUntil)


def test_the_earliest_deadline_goes_first() -> None:
    batcher: Batcher[int] = Batcher()
    for work, deadline_s in enumerate([30.0, 10.0, 20.0]):
        batcher.add(item(work, deadline_s=deadline_s))
    assert flushed(batcher) == [1, 2, 0]


def test_equal_deadlines_keep_their_order() -> None:
    batcher: Batcher[int] = Batcher()
    for work in range(4):
        batcher.add(item(work))
    assert flushed(batcher) == [0, 1, 2, 3]


def test_models_and_shapes_do_not_share_a_batch() -> None:
    batcher: Batcher[int] = Batcher()
    batcher.add(item(0))
    batcher.add(item(1, of=group("other")))
    batcher.add(item(2, of=group(side=32)))
    batcher.add(item(3))
    batches = [flushed(batcher) for _ in range(3)]
    assert sorted(batches) == [[0, 3], [1], [2]]


def test_urgent_classes_go_first_and_bulk_still_gets_its_share() -> None:
    batcher: Batcher[int] = Batcher()
    wide = group(max_rows=21)
    for priority in (BULK, NORM, HI):
        for _ in range(100):
            batcher.add(item(of=wide, priority=priority))
    step = batcher.next_step(0.0, running=0)
    assert isinstance(step, Flush)
    assert step.items[0].priority is HI
    shares = Counter(each.priority for each in step.items)
    assert shares == {HI: 16, NORM: 4, BULK: 1}


def test_bulk_of_another_model_is_not_starved_by_urgent_work() -> None:
    batcher: Batcher[int] = Batcher()
    batcher.add(item(-1, of=group("slow"), priority=BULK))
    for round_ in range(200):
        for work in range(4):
            batcher.add(item(work, priority=HI, deadline_s=10.0))
        if -1 in flushed(batcher):
            assert round_ > 0
            return
    raise AssertionError("bulk never ran")


def test_a_class_that_was_away_has_not_saved_up_turns() -> None:
    batcher: Batcher[int] = Batcher()
    wide = group(max_rows=10)
    for _ in range(100):
        batcher.add(item(of=wide, priority=HI))
        flushed(batcher)
    for _ in range(50):
        batcher.add(item(of=wide, priority=BULK))
        batcher.add(item(of=wide, priority=HI))
    step = batcher.next_step(0.0, running=0)
    assert isinstance(step, Flush)
    shares = Counter(each.priority for each in step.items)
    assert shares[HI] >= 9


def test_expired_requests_are_given_up_before_anything_runs() -> None:
    batcher: Batcher[int] = Batcher()
    late, live = item(0, deadline_s=1.0), item(1, deadline_s=9.0)
    batcher.add(late)
    batcher.add(live)
    assert batcher.next_step(1.0, running=0) == Expire((late,))
    assert batcher.next_step(1.0, running=0) == Flush((live,))


def test_expiry_is_told_while_the_runner_is_busy() -> None:
    batcher: Batcher[int] = Batcher()
    late = item(0, deadline_s=5.0)
    batcher.add(late)
    assert batcher.next_step(0.0, running=2) == WaitUntil(5.0)
    assert batcher.next_step(5.0, running=2) == Expire((late,))


def test_rows_count_and_not_requests() -> None:
    batcher: Batcher[int] = Batcher()
    for work, rows in enumerate([3, 2, 1]):
        batcher.add(item(work, rows=rows))
    assert flushed(batcher) == [0]
    assert flushed(batcher) == [1, 2]


def test_a_batch_keeps_under_its_bytes_but_one_request_always_fits() -> None:
    batcher: Batcher[int] = Batcher(max_batch_bytes=25)
    for work, size in enumerate([1000, 10, 10, 10]):
        batcher.add(item(work, size_bytes=size))
    assert [flushed(batcher) for _ in range(3)] == [[0], [1, 2], [3]]


def test_a_suspect_runs_by_itself() -> None:
    batcher: Batcher[int] = Batcher()
    for work in range(2):
        batcher.add_apart([item(work)])
    batcher.add(item(2))
    batches = sorted(flushed(batcher) for _ in range(3))
    assert batches == [[0], [1], [2]]


def test_those_of_a_part_run_together_and_with_no_others() -> None:
    batcher: Batcher[int] = Batcher()
    batcher.add_apart([item(0), item(1)])
    batcher.add_apart([item(2)])
    batcher.add(item(3))
    batches = sorted(flushed(batcher) for _ in range(3))
    assert batches == [[0, 1], [2], [3]]


operations = st.one_of(
    st.tuples(
        st.just("add"),
        st.sampled_from(list(Priority)),
        st.integers(0, 2),
        st.integers(1, 4),
        st.floats(0, 20),
    ),
    st.tuples(st.just("pass"), st.floats(0, 5)),
    st.tuples(st.just("finish")),
)


class Run:
    """A batcher under random moves, and what became of each request."""

    def __init__(self, max_batch_bytes: int) -> None:
        self.batcher: Batcher[int] = Batcher(max_batch_bytes=max_batch_bytes)
        self.added = 0
        self.ended: list[int] = []
        self.now = 0.0
        self.running = 0

    def move(self, move: tuple[object, ...]) -> None:
        match move:
            case ("add", Priority() as priority, int(which), int(rows), float(left)):
                of = (group("a"), group("b"), group("a", side=32))[which]
                deadline_s = self.now + left
                self.batcher.add(
                    item(
                        self.added,
                        of=of,
                        priority=priority,
                        rows=rows,
                        deadline_s=deadline_s,
                    )
                )
                self.added += 1
            case ("pass", float(seconds)):
                self.now += seconds
            case ("finish",):
                self.running = max(self.running - 1, 0)
            case unknown:
                raise AssertionError(unknown)

    def step(self) -> bool:
        """Take one step; say whether there may be another."""
        match self.batcher.next_step(self.now, running=self.running):
            case Flush(items):
                assert len({each.group for each in items}) == 1
                assert all(each.deadline_s > self.now for each in items)
                assert sum(each.rows for each in items) <= items[0].group.max_rows
                self.ended.extend(each.work for each in items)
                self.running += 1
                assert self.running <= 2
                return True
            case Expire(items):
                assert all(each.deadline_s <= self.now for each in items)
                self.ended.extend(each.work for each in items)
                return True
            case Shed(items, retry_after_s):
                assert retry_after_s > 0
                self.ended.extend(each.work for each in items)
                return True
            case WaitUntil(at_s):
                assert self.running > 0
                assert at_s > self.now
                assert len(self.batcher) > 0
            case Idle():
                assert len(self.batcher) == 0
        return False


@given(st.lists(operations, max_size=80), st.integers(1, 200))
def test_nothing_is_lost_doubled_late_or_left_waiting(
    moves: list[tuple[object, ...]], max_batch_bytes: int
) -> None:
    run = Run(max_batch_bytes)
    for move in [*moves, ("pass", math.inf)]:
        run.move(move)
        while run.step():
            pass
    assert sorted(run.ended) == list(range(run.added))
