"""The terms of a rollout: which can be kept, in which epoch, and with which way back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet.core.gates import DEFAULT_GATES
from fleet.core.orders import BadOrder
from fleet.core.terms import Terms, check_terms


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_gate_that_is_never_or_always_wrong_is_refused(chance: float) -> None:
    gate = replace(DEFAULT_GATES[0], false_alarm=chance)
    with pytest.raises(BadOrder, match="above 0% and under 100%"):
        check_terms(Terms(gates=(gate,)))
