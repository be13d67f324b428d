"""What is loaded and what answers, as versions come, fail, change and go."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from typing_extensions import override

from cloud_worker.core.copies import Standing, Use
from cloud_worker.core.policy import LATEST, Policy, Shares
from cloud_worker.core.room import TURN_S
from cloud_worker.core.shelf import Key, Shelf, Stored
from cloud_worker.core.version_steps import GiveUp, Load, Retire, Route, Step, Unload
from cloud_worker.core.versions import MOST_LOADS, SLOW_LOAD_S, Versions

MIB = 2**20
CANARY = Policy(canary={"2": 0.9, "3": 0.1})


def shelf(*versions: str, policy: Policy = LATEST, files: str = "as copied") -> Shelf:
    """Versions, the newest given first."""
    return Shelf(tuple(Stored(each, files, 1) for each in versions), policy)


def key(text: str) -> Key:
    name, version = text.split("/")
    return Key(name, version)


class Pool:
    """A `Versions` whose loads succeed unless they are told otherwise."""

    def __init__(self, limit_mib: int | None = None, **sizes_mib: int) -> None:
        limit = None if limit_mib is None else limit_mib * MIB
        self.versions = Versions(limit_bytes=limit)
        self.sizes_mib = sizes_mib
        self.broken: set[str] = set()
        self.waiting: set[Key] = set()
        self.last_s: dict[Key, float] = {}
        self.now_s = 0.0
        self.served: list[tuple[str, dict[str, float]]] = []

    def step(self) -> list[Step]:
        """One round; a load that it begins is left to end."""
        self.now_s += 1
        use = Use(self.waiting, self.last_s, self.now_s)
        steps = list(self.versions.next_steps(use))
        self.served += [
            (each.name, dict(each.shares)) for each in steps if isinstance(each, Route)
        ]
        return steps

    def end(self, load: Step) -> None:
        assert isinstance(load, Load)
        if str(load.key) in self.broken:
            self.versions.failed(load.key, "it is broken")
        else:
            size = self.sizes_mib.get(load.key.name, 1) * MIB
            self.versions.loaded(load.key, size, self.now_s)

    def settle(self, **shelves: Shelf) -> list[Step]:
        """Show what the repository holds and go on until nothing is left to do."""
        if shelves:
            self.versions.found(shelves)
        done: list[Step] = []
        for _ in range(50):
            steps = self.step()
            if not steps:
                return done
            done += steps
            for each in steps:
                if isinstance(each, Load):
                    self.end(each)
        pytest.fail(f"never settles: {done[-6:]}")


def test_the_newest_version_is_loaded_and_answers() -> None:
    pool = Pool()
    steps = pool.settle(a=shelf("2", "1"))
    assert steps == [Load(key("a/2"), "as copied"), Route("a", {"2": 1})]


def test_the_old_version_answers_until_the_new_one_is_there() -> None:
    pool = Pool()
    pool.settle(a=shelf("1"))
    pool.versions.found({"a": shelf("2", "1")})
    (load,) = pool.step()
    assert pool.versions.routes["a"] == {"1": 1}
    pool.waiting = {key("a/1")}
    assert pool.step() == []
    pool.end(load)
    assert pool.step() == [Route("a", {"2": 1})]
    # It leaves the memory when nothing waits for it any more.
    assert pool.step() == []
    pool.waiting = set()
    assert pool.step() == [Retire(key("a/1"), "2 answers instead")]


def test_a_new_version_that_is_broken_is_not_tried_again_until_its_files_change() -> (
    None
):
    pool = Pool()
    pool.settle(a=shelf("1"))
    pool.broken = {"a/2"}
    assert pool.settle(a=shelf("2", "1")) == [Load(key("a/2"), "as copied")]
    assert pool.versions.why_failed(key("a/2")) == "it is broken"
    assert pool.versions.routes["a"] == {"1": 1}
    assert pool.settle(a=shelf("2", "1")) == []
    pool.broken = set()
    repaired = Shelf((Stored("2", "repaired", 1), Stored("1", "as copied", 1)))
    assert pool.settle(a=repaired)[:2] == [
        Load(key("a/2"), "repaired"),
        Route("a", {"2": 1}),
    ]


def test_a_version_that_only_dies_gives_way_to_the_one_before_it() -> None:
    pool = Pool()
    pool.settle(a=shelf("1"))
    pool.settle(a=shelf("2", "1"))
    assert pool.versions.broke(key("a/2"), "it only dies")
    pool.waiting = {key("a/2")}
    assert pool.step() == [Route("a", {})]
    steps = pool.step()
    assert steps == [
        Load(key("a/1"), "as copied"),
        GiveUp(key("a/2"), "it only dies"),
    ]
    pool.waiting = set()
    pool.end(steps[0])
    assert pool.settle() == [Route("a", {"1": 1})]
    assert pool.settle(a=shelf("2", "1")) == []


def test_a_version_that_only_dies_goes_on_being_tried_when_there_is_no_other() -> None:
    pool = Pool()
    pool.settle(a=shelf("1"), b=shelf("2", "1", policy=Policy(pinned="2")))
    assert not pool.versions.broke(key("a/1"), "it only dies")
    assert not pool.versions.broke(key("b/2"), "it only dies")
    assert pool.settle() == []
    assert pool.versions.routes == {"a": {"1": 1}, "b": {"2": 1}}


def test_at_the_start_an_older_version_answers_for_a_broken_one() -> None:
    pool = Pool()
    pool.broken = {"a/3", "a/2"}
    pool.settle(a=shelf("3", "2", "1"))
    assert pool.versions.routes["a"] == {"1": 1}


def test_a_pinned_version_stays_when_newer_ones_come() -> None:
    pool = Pool()
    pool.settle(a=shelf("2", "1", policy=Policy(pinned="1")))
    assert pool.versions.routes["a"] == {"1": 1}
    assert pool.settle(a=shelf("3", "2", "1", policy=Policy(pinned="1"))) == []


def test_pinning_to_what_is_not_there_keeps_what_answers() -> None:
    pool = Pool()
    pool.settle(a=shelf("1"))
    assert pool.settle(a=shelf("1", policy=Policy(pinned="7"))) == []
    assert pool.versions.routes["a"] == {"1": 1}
    fresh = Pool()
    assert fresh.settle(a=shelf("1", policy=Policy(pinned="7"))) == []


def test_a_canary_gets_its_share_only_and_what_is_missing_stays() -> None:
    pool = Pool()
    pool.settle(a=shelf("1"))
    pool.settle(a=shelf("3", "2", "1", policy=CANARY))
    assert pool.served[1:] == [
        ("a", {"2": pytest.approx(0.9), "1": pytest.approx(0.1)}),
        ("a", {"2": 0.9, "3": 0.1}),
    ]
    assert pool.versions.standing(key("a/1")) is None


def test_a_canary_that_is_broken_leaves_all_to_the_others() -> None:
    pool = Pool()
    pool.broken = {"a/3"}
    pool.settle(a=shelf("3", "2", policy=CANARY))
    assert pool.versions.routes["a"] == {"2": 1}


def test_a_deleted_version_goes_when_its_requests_are_done() -> None:
    pool = Pool()
    pool.settle(a=shelf("1"), b=shelf("1"))
    pool.waiting = {key("a/1")}
    assert pool.settle(b=shelf("1")) == [Route("a", {})]
    pool.waiting = set()
    assert pool.settle() == [Retire(key("a/1"), "it was deleted from the repository")]


def test_a_version_that_is_deleted_answers_until_the_next_is_loaded() -> None:
    pool = Pool()
    pool.settle(a=shelf("1"))
    pool.versions.found({"a": shelf("2")})
    (load,) = pool.step()
    assert pool.versions.routes["a"] == {"1": 1}
    pool.end(load)
    assert pool.step()[0] == Route("a", {"2": 1})


def test_what_changed_while_it_was_loaded_is_loaded_again_before_it_answers() -> None:
    pool = Pool()
    pool.settle(a=shelf("1"))
    pool.versions.found({"a": shelf("2", "1", files="half")})
    (load,) = pool.step()
    pool.versions.found({"a": shelf("2", "1", files="whole")})
    pool.end(load)
    steps = pool.step()
    assert steps == [
        Retire(key("a/2"), "its files changed while it was loaded"),
        Load(key("a/2"), "whole"),
    ]
    assert pool.versions.changed_in_place() == (key("a/1"),)
    pool.end(steps[1])
    assert pool.step()[0] == Route("a", {"2": 1})


def test_the_longest_unused_model_makes_room() -> None:
    pool = Pool(limit_mib=10, a=4, b=4, c=4)
    pool.settle(a=shelf("1"), b=shelf("1"))
    pool.last_s = {key("a/1"): pool.now_s}
    pool.settle(a=shelf("1"), b=shelf("1"), c=shelf("1"))
    assert pool.versions.standing(key("b/1")) is Standing.UNLOADED
    assert pool.versions.standing(key("a/1")) is Standing.LOADED
    # It still answers: a request for it brings it back, for another that has none.
    assert pool.versions.routes["b"] == {"1": 1}
    pool.last_s |= {key("b/1"): 70.0, key("c/1"): 60.0}
    pool.waiting = {key("b/1")}
    assert [type(each) for each in pool.settle()] == [Unload, Load]
    assert pool.versions.standing(key("a/1")) is Standing.UNLOADED


def test_a_model_with_waiting_requests_is_not_unloaded() -> None:
    pool = Pool(limit_mib=10, a=6, b=6)
    pool.settle(a=shelf("1"), b=shelf("1"))
    assert pool.versions.standing(key("a/1")) is Standing.UNLOADED
    pool.waiting = {key("a/1"), key("b/1")}
    assert pool.settle() == []
    pool.waiting = {key("a/1")}
    assert [type(each) for each in pool.settle()] == [Unload, Load]


def test_a_load_that_takes_long_keeps_no_others_waiting() -> None:
    pool = Pool()
    pool.versions.found({"a": shelf("1"), "b": shelf("1"), "c": shelf("1")})
    (hangs,) = pool.step()
    assert hangs == Load(key("a/1"), "as copied")
    while not (steps := pool.step()):
        assert pool.versions.loads_in_time(pool.now_s)
    assert pool.now_s > SLOW_LOAD_S
    assert steps == [Load(key("b/1"), "as copied")]
    pool.end(steps[0])
    assert pool.step() == [Route("b", {"1": 1})]
    (last,) = pool.step()
    pool.end(last)
    pool.step()
    assert pool.versions.loads
    assert not pool.versions.loads_in_time(pool.now_s)
    assert pool.versions.routes.keys() == {"b", "c"}


def test_models_that_do_not_fit_together_and_are_all_in_use_take_turns() -> None:
    pool = Pool(limit_mib=10, a=6, b=6)
    pool.settle(a=shelf("1"), b=shelf("1"))
    pool.waiting = {key("a/1"), key("b/1")}
    loaded_s = {key("a/1"): 0.0, key("b/1"): 0.0}
    for _ in range(60):
        for each in pool.step():
            if isinstance(each, Load):
                pool.end(each)
        for one in loaded_s:
            loaded_s[one] += pool.versions.standing(one) is Standing.LOADED
    assert min(loaded_s.values()) > 20


def test_a_model_over_the_limit_is_served_when_it_is_alone() -> None:
    pool = Pool(limit_mib=10, a=60, b=5)
    pool.settle(a=shelf("1"), b=shelf("1"))
    assert pool.versions.standing(key("a/1")) is Standing.UNLOADED
    pool.waiting = {key("a/1")}
    pool.settle()
    pool.waiting = set()
    assert pool.settle() == []
    assert pool.versions.standing(key("a/1")) is Standing.LOADED


def test_a_new_version_does_not_wait_for_room_nor_push_out_the_old_one() -> None:
    pool = Pool(limit_mib=10, a=8)
    pool.settle(a=shelf("1"))
    pool.versions.found({"a": shelf("2", "1")})
    assert pool.step() == [Load(key("a/2"), "as copied")]


def test_those_who_wait_for_what_will_not_come_back_are_told() -> None:
    pool = Pool(limit_mib=10, a=8, b=8)
    pool.settle(a=shelf("1"), b=shelf("1"))
    pool.broken = {"a/1"}
    pool.waiting = {key("a/1")}
    pool.step()
    pool.versions.failed(key("a/1"), "it is broken")
    assert pool.step() == [Route("a", {})]
    assert pool.step() == [GiveUp(key("a/1"), "it is broken")]


NAMES = ("a", "b")
VERSIONS = ("1", "2", "3")
POLICIES = st.sampled_from([LATEST, Policy(pinned="2"), CANARY])
SHELVES = st.dictionaries(
    st.sampled_from(NAMES),
    st.builds(
        lambda files, policy: Shelf(
            tuple(
                Stored(version, files[version], 1)
                for version in sorted(files, reverse=True)
            ),
            policy,
        ),
        st.dictionaries(
            st.sampled_from(VERSIONS), st.sampled_from(["x", "y"]), min_size=1
        ),
        POLICIES,
    ),
)


class AnyRepository(RuleBasedStateMachine):
    """Whatever the repository, the loads and the requests do."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: set[Key] = set()
        self.last_s: dict[Key, float] = {}
        self.loading: list[Load] = []
        self.in_memory: set[Key] = set()
        self.failed: dict[Key, str] = {}
        self.shelves: dict[str, Shelf] = {}
        self.now_s = 0.0
        self.away_s: dict[Key, float] = {}
        self.began_s: dict[Key, float] = {}

    @initialize(
        limit=st.sampled_from([None, 5, 12]),
        sizes=st.lists(st.integers(1, 8), min_size=3, max_size=3),
    )
    def begin(self, limit: int | None, sizes: list[int]) -> None:
        self.limit = limit
        self.sizes = dict(zip(VERSIONS, sizes, strict=True))
        self.versions = Versions(limit_bytes=limit)

    @rule(shelves=SHELVES)
    def look(self, shelves: dict[str, Shelf]) -> None:
        self.shelves = shelves
        self.versions.found(shelves)
        self.failed = {
            each: files
            for each, files in self.failed.items()
            if self.files(each) == files
        }
        self.step()

    @precondition(lambda self: self.loading)
    @rule(good=st.booleans(), which=st.integers(0, MOST_LOADS - 1))
    def load_ends(self, good: bool, which: int = 0) -> None:
        done = self.loading.pop(which % len(self.loading))
        self.began_s.pop(done.key)
        if good:
            self.in_memory.add(done.key)
            size = self.sizes[done.key.version]
            self.versions.loaded(done.key, size, self.now_s)
        else:
            if self.files(done.key) == done.files:
                self.failed[done.key] = done.files
            self.versions.failed(done.key, "broken")
        self.step()

    @precondition(lambda self: self.in_memory)
    @rule(data=st.data())
    def breaks(self, data: st.DataObject) -> None:
        broken = data.draw(st.sampled_from(sorted(self.in_memory)))
        if self.versions.broke(broken, "it only dies"):
            self.in_memory.remove(broken)
            # Those that wait for it are told.
            self.waiting.discard(broken)
        self.step()

    @precondition(lambda self: self.versions.routes)
    @rule(data=st.data())
    def request(self, data: st.DataObject) -> None:
        routed = [
            Key(name, version)
            for name, shares in self.versions.routes.items()
            for version in shares
        ]
        asked = data.draw(st.sampled_from(sorted(routed)))
        self.waiting.add(asked)
        self.last_s[asked] = self.now_s
        self.step()

    @precondition(lambda self: self.waiting & self.in_memory)
    @rule(data=st.data())
    def answered(self, data: st.DataObject) -> None:
        ready = sorted(self.waiting & self.in_memory)
        self.waiting.remove(data.draw(st.sampled_from(ready)))
        self.step()

    def files(self, of: Key) -> str | None:
        held = self.shelves.get(of.name, Shelf(()))
        return next((s.files for s in held.versions if s.version == of.version), None)

    def step(self) -> int:
        self.now_s += 1
        before = dict(self.versions.routes)
        steps = self.versions.next_steps(Use(self.waiting, self.last_s, self.now_s))
        away = self.waiting - self.in_memory
        self.away_s = {each: self.away_s.get(each, self.now_s) for each in away}
        in_turns = any(self.now_s - away_s >= TURN_S for away_s in self.away_s.values())
        for each in steps:
            match each:
                case Load(loaded, files):
                    assert len(self.loading) < MOST_LOADS
                    for other in self.loading:
                        assert self.now_s - self.began_s[other.key] >= SLOW_LOAD_S
                    assert self.failed.get(loaded) != files
                    assert loaded not in self.in_memory
                    self.loading.append(each)
                    self.began_s[loaded] = self.now_s
                case Unload(gone):
                    assert gone not in self.waiting or in_turns
                    self.in_memory.remove(gone)
                case Retire(gone):
                    assert gone not in self.waiting
                    self.in_memory.discard(gone)  # or it was unloaded before
                case GiveUp(lost):
                    assert lost not in self.in_memory
                    self.waiting.discard(lost)
                case Route():
                    pass
        self.no_model_is_dropped_that_could_go_on(before)
        return len(steps)

    def no_model_is_dropped_that_could_go_on(
        self, before: Mapping[str, Shares]
    ) -> None:
        for name, shares in before.items():
            going_on = {
                each
                for each in (Key(name, version) for version in shares)
                if each in self.in_memory and self.files(each) is not None
            }
            assert not going_on or self.versions.routes.get(name)

    @invariant()
    def the_shares_of_a_route_sum_to_one(self) -> None:
        if not hasattr(self, "versions"):
            return
        for name, shares in self.versions.routes.items():
            assert sum(shares.values()) == pytest.approx(1)
            for version in shares:
                standing = self.versions.standing(Key(name, version))
                assert standing is not None
                assert standing is not Standing.FAILED

    @override
    def teardown(self) -> None:
        """Once loads succeed and nothing waits, every policy gets what it wants."""
        if not hasattr(self, "versions"):
            return
        self.come_to_rest()
        for name, held in self.shelves.items():
            versions = [each.version for each in held.versions]
            usable = {
                version
                for version in versions
                if self.versions.why_failed(Key(name, version)) is None
            }
            wanted = held.policy.wanted(versions, usable)
            if wanted:
                assert self.versions.routes[name] == wanted
        assert self.versions.routes.keys() <= self.shelves.keys()

    def come_to_rest(self) -> None:
        for _ in range(40):
            if self.loading:
                self.load_ends(good=True)
            elif not self.waiting and not self.step():
                return
            else:
                self.waiting -= self.in_memory
                self.step()
        pytest.fail("it never comes to rest")


TestAnyRepository = AnyRepository.TestCase
TestAnyRepository.settings = settings(max_examples=60, stateful_step_count=25)
