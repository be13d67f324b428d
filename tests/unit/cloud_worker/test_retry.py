from __future__ import annotations

from collections import Counter
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_worker.core.culprits import Culprit, Culprits
from cloud_worker.core.retry import Again, Apart, Guilty, Verdict, verdict


def who(number: int) -> Culprit:
    return ("agent-1", "cam1", f"r-{number}", "fashion", "1")


class Bench:
    """A batch that is run, and run again as judged, until all of it has ended."""

    def __init__(self, culprits: set[int], *, crashes: bool) -> None:
        self.culprits = culprits
        self.crashes = crashes
        self.runs: list[tuple[int, ...]] = []
        self.answered: list[int] = []
        self.failed: list[int] = []
        self._seen = Culprits()

    @property
    def deaths(self) -> int:
        return sum(bool(self.culprits & set(run)) for run in self.runs)

    def finish(self, batch: tuple[int, ...]) -> None:
        waiting = [batch]
        while waiting:
            run = waiting.pop(0)
            self.runs.append(run)
            if not self.culprits & set(run):
                self.answered.extend(run)
                continue
            match self._judged(run):
                case Apart(parts):
                    waiting.extend(parts)
                case Guilty(culprit):
                    self.failed.append(culprit)
                case Again():
                    raise AssertionError("it was the only one running")

    def _judged(self, run: tuple[int, ...]) -> Verdict[int]:
        if self.crashes:
            self._seen.suspect(map(who, run))
        return verdict(
            run,
            suspect=True,
            crashed=self.crashes,
            crashes=lambda each: self._seen.crashes(who(each)),
        )


BATCHES = st.integers(1, 128).flatmap(
    lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)))
)


@given(BATCHES, st.booleans())
def test_exactly_the_culprits_fail_and_all_others_are_answered(
    batch: tuple[int, set[int]], crashes: bool
) -> None:
    size, culprits = batch
    bench = Bench(culprits, crashes=crashes)
    bench.finish(tuple(range(size)))
    assert Counter(bench.failed) == Counter(culprits)
    assert Counter(bench.answered) == Counter(set(range(size)) - culprits)
    levels = ceil(log2(size)) if size > 1 else 0
    if crashes:
        assert len(bench.runs) <= size + 3
        assert bench.deaths <= 3 * len(culprits)
    else:
        assert len(bench.runs) <= 1 + 2 * levels * len(culprits)


@given(st.integers(1, 1024), st.data())
def test_one_culprit_costs_twice_the_logarithm(size: int, data: st.DataObject) -> None:
    bench = Bench({data.draw(st.integers(0, size - 1))}, crashes=False)
    bench.finish(tuple(range(size)))
    assert len(bench.runs) <= 2 * ceil(log2(size)) + 2


@given(st.integers(1, 1024), st.data())
def test_one_killer_costs_three_deaths_at_most(size: int, data: st.DataObject) -> None:
    bench = Bench({data.draw(st.integers(0, size - 1))}, crashes=True)
    bench.finish(tuple(range(size)))
    assert bench.deaths <= 3


def test_a_batch_that_only_waited_behind_another_runs_as_before() -> None:
    judged = verdict([1, 2], suspect=False, crashed=True)
    assert judged == Again((1, 2))


def test_an_error_of_one_request_is_its_own() -> None:
    assert verdict([1], suspect=True, crashed=False) == Guilty(1)


@pytest.mark.parametrize(
    ("deaths", "expected"), [(1, Apart(((7,),))), (2, Guilty(7)), (3, Guilty(7))]
)
def test_a_death_may_have_come_from_outside(
    deaths: int, expected: Verdict[int]
) -> None:
    judged = verdict([7], suspect=True, crashed=True, crashes=lambda _: deaths)
    assert judged == expected


def test_who_was_seen_in_two_deaths_runs_alone_and_the_rest_is_halved() -> None:
    seen = {1: 1, 2: 2, 3: 1, 4: 1, 5: 3}
    judged = verdict(list(seen), suspect=True, crashed=True, crashes=seen.__getitem__)
    assert judged == Apart(((1, 3), (4,), (2,), (5,)))


def test_a_request_that_ran_is_no_longer_suspect() -> None:
    culprits = Culprits()
    culprits.suspect([who(1)])
    culprits.convict(who(1), "it died")
    culprits.acquit(who(1))
    assert not culprits


def test_the_oldest_suspects_are_forgotten_first() -> None:
    culprits = Culprits(most=2)
    culprits.suspect(map(who, (1, 2)))
    culprits.suspect([who(1)])
    culprits.suspect([who(3)])
    assert [culprits.crashes(who(each)) for each in (1, 2, 3)] == [2, 0, 1]
