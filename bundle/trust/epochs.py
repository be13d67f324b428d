"""The rule of epochs: what was signed once is not served again once later was proved.

TUF keeps anybody from replaying old metadata, but newer metadata may still name an
older model. Each seal therefore carries an epoch, which only grows for a model; a
device keeps a floor, which rises with what it commits (`edge_agent/core/slots.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Epochs:
    """The epochs that one publish signs: its own, and that of the way back."""

    own: int
    way_back: int | None


def next_epochs(last: int, *, way_back: bool) -> Epochs:
    """The epochs of the next publish of a model.

    Args:
        last: the highest epoch of the model that was ever signed or drafted.
        way_back: whether there is a version to go back to.
    """
    own = last + 1
    return Epochs(own, own + 1 if way_back else None)
