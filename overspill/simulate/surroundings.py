"""What all simulated agents of one process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from broker.messages import SlotReport
from bundle.seal import Seal
from lifecycle.clock import Clock
from overspill.simulate.flash import Unpacked
from overspill.simulate.plan import Plan
from overspill.simulate.trust import Verifier


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all simulated agents of one process share.

    Attributes:
        plan: of the simulation.
        folder: where unfinished pulls lie.
        unpacked: bundles that were unpacked.
        provisioned: what agents come with; None: they have no model.
        model: the name of what they serve.
        visit: whether the broker is somebody else's, where nothing may stay.
        verifier: finds out what was signed.
        clock: of the machine.
        told: called with an agent's name and its slot, at each change.
    """

    plan: Plan
    folder: Path
    unpacked: Unpacked
    provisioned: Seal | None
    verifier: Verifier
    clock: Clock
    told: Callable[[str, SlotReport], None]
    model: str
    visit: bool

    @property
    def before(self) -> str | None:
        """The version that agents come with; each other is a new one."""
        return None if self.provisioned is None else self.provisioned.version
