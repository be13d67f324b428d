"""The port to a machine-learning runtime: one loaded model, called with arrays.

Everything behind this port lives in a model's process. What it raises is answered
to the requests it concerns; what kills the process is the parent's to mend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cloud_worker.core.spec import ModelSpec

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a runtime is to use its machine; each takes what it knows of.

    Attributes:
        intra_threads: threads inside one operation; 0 lets the runtime choose.
        inter_threads: operations at once; 0 lets the runtime choose.
        xla: compile TensorFlow models for each padded batch size.
        mixed_precision: let TensorFlow compute in half of the bits where it finds it
            safe: float16 on an accelerator, bfloat16 on a processor that has it.
        at_once: batches that a model may run side by side, where its runtime can.
    """

    intra_threads: int = 0
    inter_threads: int = 0
    xla: bool = False
    mixed_precision: bool = False
    at_once: int = 1


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

    @property
    def concurrent(self) -> bool:
        """Whether `run` may be called from several threads at once."""
        ...

    def run(self, inputs: Arrays) -> Arrays:
        """Call the model once with exactly these arrays.

        Raises:
            RunFailed: the runtime gave an error.
        """
        ...
