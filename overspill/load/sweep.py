"""Several runs of one plan at different rates."""

from __future__ import annotations

from typing import Final

from overspill.load.quantities import BadQuantity, rate_per_s

MOST_STEPS: Final = 50


def read_steps(text: str, base_per_s: float) -> tuple[float, ...]:
    """Factors of the base rate in `20%,60%,110%` or `100,200,400/s`.

    Raises:
        BadQuantity: it is neither, or a step is not over 0.
    """
    parts = [part.strip() for part in text.split(",")]
    factors = tuple(
        _percent(part) if part.endswith("%") else rate_per_s(part) / base_per_s
        for part in parts
    )
    if len(factors) > MOST_STEPS or min(factors) <= 0:
        raise BadQuantity(
            f"{text!r}: give 1 to {MOST_STEPS} rates over 0, as 20%,60%,110% or "
            "100,200,400/s"
        )
    return factors


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / 100.0
    except ValueError:
        raise BadQuantity(f"{text!r} is no share of --rate: write 60%") from None
