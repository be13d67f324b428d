import random

import pytest
from typing_extensions import override

from broker.backoff import Backoff


class Ceiling(random.Random):
    """Draws the longest wait each time."""

    @override
    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def test_waits_double_up_to_the_most_and_start_again_after_a_reset() -> None:
    backoff = Backoff(0.2, 1.0, rng=Ceiling())

    assert [backoff.next_s() for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert backoff.next_s() == 0.2


def test_two_clients_that_lost_the_same_broker_come_back_at_different_times() -> None:
    waits = [
        [backoff.next_s() for _ in range(8)]
        for backoff in (Backoff(rng=random.Random(1)), Backoff(rng=random.Random(2)))
    ]

    assert all(one != other for one, other in zip(*waits, strict=True))


def test_a_wait_is_never_negative_and_never_over_the_most() -> None:
    backoff = Backoff(0.1, 2.0, rng=random.Random(3))

    assert all(0 <= backoff.next_s() <= 2.0 for _ in range(1000))


@pytest.mark.parametrize(("first_s", "most_s"), [(0, 1), (-1, 1), (2, 1)])
def test_a_backoff_that_could_spin_is_refused(first_s: float, most_s: float) -> None:
    with pytest.raises(ValueError, match="first_s"):
        Backoff(first_s, most_s)
