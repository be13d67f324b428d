"""The terms of a rollout: which can be kept, in which epoch, and with which way back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet.adapters.registry import SignedVersion
from fleet.core.gates import DEFAULT_GATES
from fleet.core.orders import BadOrder
from fleet.core.rollouts import WayBack
from fleet.core.terms import Terms, check_terms, epochs_for


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_gate_that_is_never_or_always_wrong_is_refused(chance: float) -> None:
    gate = replace(DEFAULT_GATES[0], false_alarm=chance)
    with pytest.raises(BadOrder, match="above 0% and under 100%"):
        check_terms(Terms(gates=(gate,)))


SIGNED = [
    SignedVersion("m", "1", 1, None),
    SignedVersion("m", "2", 2, WayBack("1", 3)),
    SignedVersion("m", "3", 4, WayBack("1", 5)),
]


@pytest.mark.parametrize(
    ("version", "epoch", "way_back"),
    [
        ("3", 4, WayBack("1", 5)),
        # Published before the newest, and rolled out after it.
        ("2", 2, WayBack("1", 3)),
        # What the newest leads back to.
        ("1", 5, None),
        ("9", 0, None),
    ],
)
def test_a_version_keeps_the_way_back_that_was_signed_with_it(
    version: str, epoch: int, way_back: WayBack | None
) -> None:
    assert epochs_for(version, SIGNED) == (epoch, way_back)
