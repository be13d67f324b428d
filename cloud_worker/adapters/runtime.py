"""The port to a machine-learning runtime: one loaded model, called with arrays.

Everything behind this port lives in the model process. What it raises is answered
to the requests it concerns; what kills the process is the parent's to mend.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cloud_worker.core.spec import ModelSpec

Arrays = dict[str, NDArray[np.generic]]


class CannotServe(Exception):
    """The model cannot be served by this runtime; says what and what to do."""


class RunFailed(Exception):
    """The model refused these inputs or broke on them; says why."""


class Runner(Protocol):
    """One loaded model."""

    @property
    def spec(self) -> ModelSpec:
        """Its inputs and outputs, and whether rows may be stacked."""
        ...

    @property
    def wants_padding(self) -> bool:
        """Whether a batch size that was seen before is worth some empty rows."""
        ...

    def run(self, inputs: Arrays) -> Arrays:
        """Call the model once with exactly these arrays.

        Raises:
            RunFailed: the runtime gave an error.
        """
        ...
