"""What is too big for the edge model, or too slow. Each rule says why, or None.

Oversize rules come before any inference: they cost nothing and need no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def too_many_bytes(payload_bytes: int, max_payload_bytes: int) -> str | None:
    """Whether a payload is longer than the edge model's limit."""
    if payload_bytes <= max_payload_bytes:
        return None
    return f"{payload_bytes} bytes are over the edge limit of {max_payload_bytes}"


def too_many_pixels(pixels: int | None, max_pixels: int) -> str | None:
    """Whether an image has more pixels than the edge model's limit."""
    if pixels is None or pixels <= max_pixels:
        return None
    return f"{pixels} pixels are over the edge limit of {max_pixels}"


def larger_than_model(
    shapes: Mapping[str, Sequence[int]], accepted: Mapping[str, Sequence[int]]
) -> str | None:
    """Whether an input is larger than the fixed shape of the edge model's own.

    Only a side that is too long counts. A side that is too short, another rank or
    an unknown name is a mistake, which the model itself refuses.

    Args:
        shapes: the sides of each input.
        accepted: the sides the model takes, -1 where it takes any.
    """
    for name, shape in shapes.items():
        sides = accepted.get(name)
        if sides is None or len(sides) != len(shape):
            continue
        if any(0 <= most < side for side, most in zip(shape, sides, strict=True)):
            return (
                f"input {name!r} of shape {list(shape)} is larger than the edge "
                f"model's {list(sides)}"
            )
    return None


def too_slow(predicted_ms: float, remaining_ms: float | None) -> str | None:
    """Whether the edge model is expected to miss the deadline."""
    if remaining_ms is None or predicted_ms <= remaining_ms:
        return None
    return (
        f"the edge model needs about {predicted_ms:.1f} ms and "
        f"{max(remaining_ms, 0.0):.1f} ms remain"
    )
