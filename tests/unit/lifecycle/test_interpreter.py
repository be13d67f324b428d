"""What a daemon tells its interpreter."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from lifecycle.interpreter import collect_seldom, do_not_collect


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.enable()
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("collector")
def test_a_ready_daemon_looks_at_what_came_since_and_at_nothing_before() -> None:
    old: list[list[int]] = [[]]
    collect_seldom()
    ring = weakref.ref(Ring())
    assert gc.get_freeze_count() > 1000
    assert not any(each is old for each in gc.get_objects())
    gc.collect()
    assert ring() is None


@pytest.mark.usefixtures("collector")
def test_who_loads_is_not_looked_through_until_it_is_ready() -> None:
    do_not_collect()
    assert not gc.isenabled()
    collect_seldom()
    assert gc.isenabled()
