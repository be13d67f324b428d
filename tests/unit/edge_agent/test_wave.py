"""Who asks when: one agent's turns, and whole waves with the pool's rule, in pure time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial

import pytest

from cloud_worker.core.shared_chunks import Reply, SharedChunks
from edge_agent.core.wave import AskWave, Leave, Listen, WaveTurns

CHUNKS = 16


def turns(missing: Collection[int], *, chance: float = 1.0) -> WaveTurns:
    return WaveTurns(
        list(missing), window=3, first_s=1.0, silent_s=2.0, now_s=-1.0, chance=chance
    )


def test_an_agent_listens_first_and_asks_for_one_chunk_when_nobody_did() -> None:
    mine = turns(range(9))
    assert mine.next(0.0, 0.0) == Listen(1.0)
    assert mine.next(1.0, 0.0) == AskWave((0,))
    assert mine.next(1.1, 0.0) == Listen(9.0)


def test_who_hears_what_it_asked_for_goes_on_at_once_and_ever_faster() -> None:
    mine = turns(range(12), chance=0.0)
    assert mine.next(0.0, 0.0) == AskWave((0,))
    mine.heard(0, 0.1, 0.0)
    assert mine.next(0.1, 0.0) == AskWave((1,))
    assert mine.next(0.1, 0.0) == Listen(2.1)
    mine.heard(1, 0.2, 0.0)
    assert mine.next(0.2, 0.0) == AskWave((2, 3))
    mine.heard(2, 0.3, 0.0)
    mine.heard(11, 0.3, 0.0)
    assert mine.next(0.3, 0.0) == AskWave((4, 5))
    mine.heard(3, 0.4, 0.0)
    # A window at most.
    assert mine.next(0.4, 0.0) == AskWave((6,))


def test_who_hears_what_another_asked_for_keeps_quiet() -> None:
    mine = turns(range(9))
    mine.heard(5, 0.5, 1.0)
    assert mine.next(0.6, 1.0) == Listen(0.5 + 4.0)


def test_who_heard_anothers_chunk_first_does_not_lead() -> None:
    mine = turns(range(9), chance=0.0)
    assert mine.next(0.0, 0.0) == AskWave((0,))
    mine.heard(8, 0.1, 0.0)
    mine.heard(0, 0.2, 0.0)
    assert mine.next(0.2, 0.0) == Listen(2.2)


def test_who_has_asked_waits_ever_longer_until_there_is_no_point_in_it() -> None:
    mine = turns(range(9), chance=0.0)
    found = [mine.next(at_s, 0.0) for at_s in (0.0, 8.0, 24.0, 56.0)]
    assert found == [AskWave((0,))] * 3 + [Leave()]


def test_what_comes_ends_a_silence() -> None:
    mine = turns(range(9), chance=0.0)
    assert [mine.next(at_s, 0.0) for at_s in (0.0, 8.0)] == [AskWave((0,))] * 2
    mine.heard(7, 9.0, 0.0)
    assert mine.next(9.1, 0.0) == Listen(11.0)
    assert mine.next(11.0, 0.0) == AskWave((0,))


def test_who_has_all_of_it_leaves() -> None:
    mine = turns([4])
    mine.heard(4, 0.1, 0.0)
    assert mine.next(0.1, 0.0) == Leave()


# --- whole waves ----------------------------------------------------------------------


Do = Callable[[], None]


class Wave:
    """Agents, a pool and a topic; nothing but ways takes time.

    Args:
        begins_s: an agent begins at each of these times.
        way_s: that each way takes.
        workers: members of the pool; who takes a question is a matter of chance.
        loses: whether a chunk that is told to all is lost on its way to an agent.

    Attributes:
        to_all, to_one: chunks that were published, by whom they were meant for.
        came: copies that reached each agent.
    """

    def __init__(
        self,
        begins_s: Sequence[float],
        *,
        workers: int = 1,
        way_s: float = 0.03,
        loses: Callable[[int, int], bool] = lambda _agent, _chunk: False,
    ) -> None:
        self.to_all = self.to_one = 0
        self._way_s = way_s
        self.came: Counter[int] = Counter()
        self._rng = random.Random(7)
        self._pool = [SharedChunks() for _ in range(workers)]
        self._loses = loses
        self._listening: dict[int, WaveTurns] = {}
        self._since_s: dict[int, float] = {}
        self._missing = {agent: set(range(CHUNKS)) for agent in range(len(begins_s))}
        self._now_s = 0.0
        self._number = itertools.count()
        self._due: list[tuple[float, int, Do]] = []
        for agent, begin_s in enumerate(begins_s):
            self._at(begin_s, partial(self._begin, agent))

    def run(self) -> Wave:
        """Until nothing more happens: each agent has all of it, by listening."""
        while self._due:
            self._now_s, _, do = heapq.heappop(self._due)
            do()
        assert not any(self._missing.values())
        return self

    def _at(self, at_s: float, do: Do) -> None:
        heapq.heappush(self._due, (at_s, next(self._number), do))

    def _begin(self, agent: int) -> None:
        self._since_s[agent] = self._now_s
        self._listening[agent] = WaveTurns(
            self._rng.sample(range(CHUNKS), CHUNKS),
            window=4,
            first_s=5.0,
            silent_s=1.5,
            now_s=self._now_s,
            chance=self._rng.random(),
        )
        self._turn(agent)

    def _turn(self, agent: int) -> None:
        if agent not in self._listening:
            return
        match self._listening[agent].next(self._now_s, self._rng.random()):
            case AskWave(chunks):
                for chunk in chunks:
                    listening_s = self._now_s - self._since_s[agent]
                    asked = partial(self._asked, agent, chunk, listening_s)
                    self._at(self._now_s + self._way_s, asked)
                self._turn(agent)
            case Listen(until_s):
                self._at(until_s, partial(self._turn, agent))
            case Leave():
                del self._listening[agent]

    def _asked(self, agent: int, chunk: int, listening_s: float) -> None:
        member = self._rng.choice(self._pool)
        reply = member.claim(("blobs/x", chunk, 1), self._now_s, listening_s)
        self.to_all += reply is Reply.WAVE
        self.to_one += reply is Reply.ALONE
        hearers = [agent] if reply is Reply.ALONE else []
        if reply is Reply.WAVE:
            hearers = [e for e in self._listening if not self._loses(e, chunk)]
        for each in hearers:
            self._at(self._now_s + self._way_s, partial(self._hear, each, chunk))

    def _hear(self, agent: int, chunk: int) -> None:
        self.came[agent] += 1
        if agent in self._listening and chunk in self._missing[agent]:
            self._missing[agent].discard(chunk)
            self._listening[agent].heard(chunk, self._now_s, self._rng.random())
            self._turn(agent)


def test_a_wave_that_begins_together_is_told_each_chunk_once() -> None:
    wave = Wave([0.0] * 100).run()
    assert (wave.to_all, wave.to_one) == (CHUNKS, 0)
    assert set(wave.came.values()) == {CHUNKS}


def test_a_broker_that_takes_seconds_is_not_asked_again_by_everybody() -> None:
    wave = Wave([0.0] * 300, way_s=3.0).run()
    assert (wave.to_all, wave.to_one) == (CHUNKS, 0)


def test_a_chunk_that_one_agent_missed_goes_to_that_agent() -> None:
    wave = Wave(
        [0.0] * 100, loses=lambda agent, chunk: agent == 17 and chunk in {3, 4}
    ).run()
    assert (wave.to_all, wave.to_one) == (CHUNKS, 2)
    assert set(wave.came.values()) == {CHUNKS}


def test_who_comes_late_costs_the_wave_nothing() -> None:
    late_s = [10.0 + 0.2 * late for late in range(20)]
    wave = Wave([0.0] * 100 + late_s).run()
    assert (wave.to_all, wave.to_one) == (CHUNKS, 20 * CHUNKS)
    assert set(wave.came.values()) == {CHUNKS}


def test_agents_that_are_told_one_after_the_other_hear_little_twice() -> None:
    wave = Wave([0.05 * each for each in range(300)]).run()
    assert wave.came.total() <= 1.2 * CHUNKS * 300


@pytest.mark.parametrize("workers", [2, 4])
def test_members_of_the_pool_that_know_nothing_of_each_other_repeat_little(
    workers: int,
) -> None:
    wave = Wave([0.0] * 300, workers=workers).run()
    assert wave.came.total() <= 1.2 * CHUNKS * 300
