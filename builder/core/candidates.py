"""Which edge models are tried: a base, pruned or not, in each number format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Base: TypeAlias = Literal["student", "cloud", "given"]
Quantization: TypeAlias = Literal["float32", "float16", "dynamic", "int8", "as_given"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One edge model to make.

    Attributes:
        base: the distilled student, the cloud model itself, or a `.tflite` given.
        quantization: of its weights, and with int8 of its activations; `as_given` leaves
            them.
        pruned: the share of its weights that are zero, 0..1.
    """

    base: Base
    quantization: Quantization
    pruned: float = 0.0

    @property
    def name(self) -> str:
        """A word for tables and file names."""
        pruned = f"-pruned{round(100 * self.pruned)}" if self.pruned else ""
        return f"{self.base}{pruned}-{self.quantization}"


def candidates(
    bases: Sequence[Base],
    quantizations: Sequence[Quantization],
    pruned: Sequence[float] = (),
) -> tuple[Candidate, ...]:
    """Every combination; a given `.tflite` and the cloud model are not pruned."""
    return tuple(
        Candidate(base, quantization, share)
        for base in bases
        for share in ((0.0, *pruned) if base == "student" else (0.0,))
        for quantization in quantizations
    )
