"""Ids that sort by time. Pure: the caller brings the time and the randomness."""

from __future__ import annotations


def uuid7(wall_ms: int, random_bytes: bytes) -> str:
    """A UUID version 7 as text, valid as an id of the wire.

    Args:
        wall_ms: Unix time in milliseconds.
        random_bytes: 10 random bytes.

    Source: RFC 9562, section 5.7.
    """
    bits = bytearray(wall_ms.to_bytes(6, "big") + random_bytes[:10])
    bits[6] = 0x70 | bits[6] & 0x0F
    bits[8] = 0x80 | bits[8] & 0x3F
    text = bits.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
