from __future__ import annotations

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.messages import Priority
from cloud_worker.core.batcher import Batcher, Expire, Flush, Idle, Shed, WaitUntil
from cloud_worker.core.costs import DOUBT, Costs
from cloud_worker.core.line import Group, Item
from cloud_worker.core.spec import padded_sizes

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


def test_where_no_deadline_is_near_batches_are_large() -> None:
    costs = Costs()
    costs.seed("fashion/", [(1, 1.0), (32, 30.0), (64, 62.0)])
    for deadline_s, rows in ((100.0, 64), (0.3, 32)):
        batcher: Batcher[int] = Batcher(costs=costs)
        for work in range(64):
            batcher.add(item(work, of=group(max_rows=64), deadline_s=deadline_s))
        assert len(flushed(batcher)) == rows


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
    assert batcher.next_step(1.0, running=0) == Flush((live,), done_s=1.001)


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


def known_costs(*models: str, max_rows: int = 4, base_ms: float = 6.0) -> Costs:
    costs = Costs()
    for model in models:
        sizes = padded_sizes(max_rows)
        costs.seed(f"{model}/", [(size, base_ms + 0.6 * size) for size in sizes])
    return costs


def test_who_cannot_make_it_even_alone_is_given_up_before_its_deadline() -> None:
    batcher: Batcher[int] = Batcher(costs=known_costs("fashion"))
    late, live = item(0, deadline_s=0.006), item(1, deadline_s=0.008)
    batcher.add(late)
    batcher.add(live)
    assert batcher.next_step(0.0, running=0) == Expire((late,))
    assert flushed(batcher) == [1]


def test_who_would_be_late_in_a_larger_batch_does_not_join_it() -> None:
    batcher: Batcher[int] = Batcher(costs=known_costs("fashion"))
    batcher.add(item(0, deadline_s=0.0068))
    for work in (1, 2, 3, 4):
        batcher.add(item(work, deadline_s=1.0))
    # One of five is given up for four that can be answered at once.
    assert flushed(batcher) == [1, 2, 3, 4]


def test_an_urgent_request_is_not_sacrificed_when_the_others_can_wait() -> None:
    costs = known_costs("fashion", max_rows=32)
    batcher: Batcher[int] = Batcher(costs=costs)
    wide = group(max_rows=32)
    for work in range(8):
        batcher.add(item(work, of=wide, deadline_s=0.012))
    for work in range(8, 12):
        batcher.add(item(work, of=wide, deadline_s=1.0))
    assert set(range(8)) <= set(flushed(batcher))


def test_a_slim_hope_is_better_than_an_idle_accelerator() -> None:
    costs = known_costs("fashion")
    for _ in range(64):
        costs.note("fashion/", 1, 0.050)
    batcher: Batcher[int] = Batcher(costs=costs)
    # It takes 50 ms now, but took 6.6 once.
    batcher.add(item(0, deadline_s=0.020))
    assert flushed(batcher) == [0]


def test_a_wrong_cost_does_not_keep_a_model_from_running_for_ever() -> None:
    costs = Costs()
    costs.seed("fashion/", [(1, 60_000.0), (4, 60_000.0)])
    batcher: Batcher[int] = Batcher(costs=costs)
    for _ in range(1000):
        batcher.add(item(0, deadline_s=0.1))
        if isinstance(batcher.next_step(0.0, running=0), Flush):
            return
    raise AssertionError("it never ran, so its cost was never found out")


def test_the_next_batch_is_handed_over_shortly_before_it_is_wanted() -> None:
    batcher: Batcher[int] = Batcher(costs=known_costs("fashion", base_ms=100.0))
    for work in range(8):
        batcher.add(item(work, deadline_s=0.5))
    assert flushed(batcher) == [0, 1, 2, 3]
    step = batcher.next_step(0.010, running=1)
    assert isinstance(step, WaitUntil)
    assert 0.09 < step.at_s < 0.1024
    assert flushed(batcher, step.at_s, running=1) == [4, 5, 6, 7]


def test_where_no_deadline_is_near_the_next_batch_is_handed_over_in_good_time() -> None:
    batcher: Batcher[int] = Batcher(costs=known_costs("fashion", base_ms=100.0))
    for work in range(8):
        batcher.add(item(work, deadline_s=60.0))
    assert flushed(batcher) == [0, 1, 2, 3]
    step = batcher.next_step(0.010, running=1)
    assert isinstance(step, WaitUntil)
    assert step.at_s < 0.06


def test_a_model_that_is_away_holds_no_other_up() -> None:
    batcher: Batcher[int] = Batcher()
    batcher.add(item(0, of=group("away"), deadline_s=5.0))
    batcher.add(item(1, of=group("here")))
    step = batcher.next_step(0.0, running=0, ready=lambda key: key == "here/")
    assert isinstance(step, Flush)
    assert [each.work for each in step.items] == [1]
    step = batcher.next_step(0.0, running=0, ready=lambda key: key == "here/")
    assert step == WaitUntil(5.0)
    assert flushed(batcher) == [0]


def test_a_device_that_floods_does_not_starve_another() -> None:
    batcher: Batcher[str] = Batcher(costs=known_costs("fashion", max_rows=8))
    wide = group(max_rows=8)

    def ask(device: str, deadline_s: float) -> None:
        flow = ("", "agent", device)
        batcher.add(Item(wide, NORM, deadline_s, 10, device, 1, flow))

    for _ in range(100):
        ask("flood", 50.0)
    ask("quiet", 60.0)
    for batches in range(20):
        step = batcher.next_step(0.0, running=0)
        assert isinstance(step, Flush)
        if "quiet" in [each.work for each in step.items]:
            assert batches <= 2
            return
        for _ in step.items:
            ask("flood", 50.0)
    raise AssertionError("the quiet device never ran")


def test_a_cheap_model_does_not_starve_a_dear_one() -> None:
    costs = Costs()
    costs.seed("cheap/", [(1, 1.0), (4, 1.0)])
    costs.seed("dear/", [(1, 50.0), (4, 50.0)])
    batcher: Batcher[int] = Batcher(costs=costs)
    used = {"cheap": 0.0, "dear": 0.0}
    for model in used:
        for _ in range(8):
            batcher.add(item(of=group(model), deadline_s=1e6))
    for _ in range(1000):
        step = batcher.next_step(0.0, running=0)
        assert isinstance(step, Flush)
        model = step.items[0].group.model
        used[model] += 1.0 if model == "cheap" else 50.0
        for each in step.items:
            batcher.add(each)
    assert used["cheap"] > 0
    assert 0.4 < used["dear"] / sum(used.values()) < 0.7


def test_what_can_never_be_answered_is_shed_the_lowest_class_first() -> None:
    batcher: Batcher[int] = Batcher(costs=known_costs("fashion", base_ms=10.0))
    for work in range(12):
        # 12.4 ms a batch of four: three are done after 37.2 ms, and two in time.
        priority = BULK if work % 3 == 0 else HI
        batcher.add(item(work, priority=priority, deadline_s=0.030))
    shed = batcher.next_step(0.0, running=0)
    assert isinstance(shed, Shed)
    assert {each.priority for each in shed.items} == {BULK}
    assert 2 <= len(shed.items) <= 4
    assert 0.0 < shed.wait_s <= 0.1


def test_the_one_who_floods_is_shed_before_the_others() -> None:
    batcher: Batcher[str] = Batcher(costs=known_costs("fashion", base_ms=10.0))

    def ask(device: str, deadline_s: float) -> None:
        flow = ("", "agent", device)
        batcher.add(Item(group(), NORM, deadline_s, 10, device, 1, flow))

    ask("quiet", 0.029)
    for _ in range(40):
        ask("flood", 0.030)
    shed = batcher.next_step(0.0, running=0)
    assert isinstance(shed, Shed)
    assert {each.work for each in shed.items} == {"flood"}


def test_nothing_is_shed_while_all_can_be_answered() -> None:
    batcher: Batcher[int] = Batcher(costs=known_costs("fashion", base_ms=10.0))
    for work in range(100):
        batcher.add(item(work, deadline_s=10.0))
    assert isinstance(batcher.next_step(0.0, running=0), Flush)


def test_very_many_shapes_all_get_their_turn() -> None:
    batcher: Batcher[int] = Batcher()
    for side in range(1, 101):
        batcher.add(item(side, of=group(side=side)))
    ran = [side for _ in range(100) for side in flushed(batcher)]
    assert sorted(ran) == list(range(1, 101))


operations = st.one_of(
    st.tuples(
        st.just("add"),
        st.sampled_from(list(Priority)),
        st.integers(0, 3),
        st.integers(1, 4),
        st.floats(0, 20),
        st.sampled_from("ab"),
    ),
    st.tuples(st.just("pass"), st.floats(0, 5)),
    st.tuples(st.just("finish"), st.floats(0, 0.1)),
    st.tuples(st.just("toggle")),
)
GROUPS = (group("a"), group("b"), group("a", side=32), group("c"))


class Run:
    """A batcher under random moves, and what became of each request."""

    def __init__(self, max_batch_bytes: int, costs: Costs) -> None:
        self.costs = costs
        self.max_batch_bytes = max_batch_bytes
        self.batcher: Batcher[int] = Batcher(
            costs=costs, max_batch_bytes=max_batch_bytes
        )
        self.waiting: dict[int, Item[int]] = {}
        self.added = 0
        self.ended: list[int] = []
        self.now = 0.0
        self.running: list[Group] = []
        self.away = False

    def move(self, move: tuple[object, ...]) -> None:
        match move:
            case (
                "add",
                Priority() as priority,
                int(which),
                int(rows),
                float(left),
                str(device),
            ):
                deadline_s = self.now + left
                one = Item(
                    GROUPS[which],
                    priority,
                    deadline_s,
                    10,
                    self.added,
                    rows,
                    ("", "agent", device),
                )
                self.waiting[self.added] = one
                self.batcher.add(one)
                self.added += 1
            case ("pass", float(seconds)):
                self.now += seconds
            case ("finish", float(took_s)):
                if self.running:
                    done = self.running.pop(0)
                    self.costs.note(done.key, done.max_rows, took_s)
            case ("toggle",):
                self.away = not self.away
            case unknown:
                raise AssertionError(unknown)

    def ready(self, key: str) -> bool:
        return not (self.away and key == "a/")

    def step(self) -> bool:  # noqa: C901 - one case for each step
        """Take one step; say whether there may be another."""
        match self.batcher.next_step(
            self.now, running=len(self.running), ready=self.ready
        ):
            case Flush(items):
                assert items
                (of,) = {each.group for each in items}
                assert self.ready(of.key)
                assert all(each.deadline_s > self.now for each in items)
                if len(items) > 1:
                    assert sum(each.rows for each in items) <= of.max_rows
                    assert sum(each.size_bytes for each in items) <= (
                        self.max_batch_bytes
                    )
                self.end(items)
                self.running.append(of)
                assert len(self.running) <= 2
                return True
            case Expire(items):
                for each in items:
                    least_s = self.costs.curve(each.group.key).least_s()
                    # The curve has come to doubt itself by giving these up.
                    assert each.deadline_s <= self.now + least_s / DOUBT ** len(items)
                self.end(items)
                return True
            case Shed(items, wait_s):
                assert wait_s > 0
                self.end(items)
                return True
            case WaitUntil(at_s):
                assert at_s > self.now
                assert self.waiting
                if not self.running:
                    # It idles only if nobody can run.
                    assert not any(
                        self.ready(each.group.key) for each in self.waiting.values()
                    )
            case Idle():
                assert not self.waiting
        assert len(self.batcher) == len(self.waiting)
        return False

    def end(self, items: tuple[Item[int], ...]) -> None:
        for each in items:
            # Each leaves once, and only if it came.
            del self.waiting[each.work]
            self.ended.append(each.work)


@given(
    st.lists(operations, max_size=80),
    st.integers(1, 200),
    st.sampled_from(["none", "quick", "slow"]),
)
def test_nothing_is_lost_doubled_late_or_left_waiting(
    moves: list[tuple[object, ...]], max_batch_bytes: int, speed: str
) -> None:
    costs = Costs()
    if speed != "none":
        base_ms = 1.0 if speed == "quick" else 2000.0
        costs = known_costs("a", "b", base_ms=base_ms)
    run = Run(max_batch_bytes, costs)
    for move in [*moves, ("pass", math.inf)]:
        run.move(move)
        while run.step():
            pass
    assert sorted(run.ended) == list(range(run.added))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=6),
    st.lists(st.sampled_from(list(Priority)), min_size=6, max_size=6),
)
def test_every_flow_with_work_is_served_within_a_bound(
    costs_ms: list[int], classes: list[Priority]
) -> None:
    """Models of any cost and class, all with endless work: none waits for ever."""
    costs = Costs()
    models = [f"m{number}" for number in range(len(costs_ms))]
    for model, cost_ms in zip(models, costs_ms, strict=True):
        costs.seed(f"{model}/", [(1, cost_ms), (4, cost_ms)])
    batcher: Batcher[int] = Batcher(costs=costs)
    served: Counter[str] = Counter()
    for number, model in enumerate(models):
        for _ in range(8):
            batcher.add(item(of=group(model), priority=classes[number], deadline_s=1e9))
    # At worst: all others of class `hi`, 40 times as cheap, each two turns ahead.
    bound = 16 * 40 * 3 * len(models)
    for _ in range(bound):
        step = batcher.next_step(0.0, running=0)
        assert isinstance(step, Flush)
        served[step.items[0].group.model] += 1
        for each in step.items:
            batcher.add(each)
        if len(served) == len(models):
            return
    raise AssertionError(f"after {bound} batches only {served} were served")
