"""Amounts as people write them: `90s`, `10m`, `5%`, `100kB`, `Mon-Fri 02:00-05:00`.

One reading for the command line and for `fleet.yaml`; each has its way back to text, so
that what is shown can be typed.
"""

from __future__ import annotations

import math
import re
from typing import Final

from broker.messages import Window

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES: Final = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_NUMBER: Final = r"\d+(?:\.\d+)?"
_PART: Final = re.compile(rf"({_NUMBER})\s*([a-z]+)")
_SIZE: Final = re.compile(rf"({_NUMBER})\s*([a-z]*)\Z")
_SPAN: Final = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\Z")


class BadAmount(ValueError):
    """A text that is no such amount; says what would do."""


def read_seconds(text: str) -> float:
    """A length of time in seconds: `90s`, `10m`, `1h30m`, `2d`, or bare seconds.

    Raises:
        BadAmount: it is none.
    """
    said = text.strip().lower()
    if re.fullmatch(_NUMBER, said):
        return float(said)
    parts = _PART.findall(said)
    rest = _PART.sub("", said).strip()
    if not parts or rest or any(unit not in _SECONDS for _, unit in parts):
        raise BadAmount(f"{text!r} is no length of time: write 90s, 10m, 1h30m or 2d")
    return math.fsum(float(number) * _SECONDS[unit] for number, unit in parts)


def read_share(text: str) -> float:
    """A share, 0 to 1: `5%`, or `0.05`.

    Raises:
        BadAmount: it is none.
    """
    said = text.strip()
    number, percent = said.removesuffix("%").strip(), said.endswith("%")
    if not re.fullmatch(_NUMBER, number):
        raise BadAmount(f"{text!r} is no share: write 5% or 0.05")
    value = float(number) / 100 if percent else float(number)
    if not 0 <= value <= 1:
        raise BadAmount(f"{text!r} is no share: it lies between 0% and 100%")
    return value


def read_bytes(text: str) -> int:
    """A number of bytes: `500`, `100kB` (1,000), `64MiB` (1,048,576).

    Raises:
        BadAmount: it is none.
    """
    found = _SIZE.match(text.strip().lower())
    if not found or found[2] not in _BYTES:
        raise BadAmount(f"{text!r} is no number of bytes: write 500kB, 20MB or 64MiB")
    return round(float(found[1]) * _BYTES[found[2]])


def read_window(text: str) -> Window:
    """A maintenance window: `02:00-05:00`, `Mon-Fri 22:00-04:00`, `sat,sun 00:00-24:00`.

    In the device's own time; one that ends before it begins goes over midnight, and
    its day is that on which it begins.

    Raises:
        BadAmount: it is none.
    """
    days, _, span = text.strip().rpartition(" ")
    found = _SPAN.match(span)
    if not found:
        raise BadAmount(
            f"{text!r} is no window: write 02:00-05:00, Mon-Fri 22:00-04:00 or "
            "sat,sun 01:00-06:00"
        )
    start = _minute(found[1], found[2], text)
    end = _minute(found[3], found[4], text)
    if start == DAY_MINUTES:
        raise BadAmount(f"window {text!r} begins at 24:00: write 00:00")
    # 00:00-24:00 and 02:00-02:00 are whole days.
    minutes = (end - start) % DAY_MINUTES or DAY_MINUTES
    return Window(days=_days(days, text), start_minute=start, minutes=minutes)


def seconds(value_s: float) -> str:
    """A length of time, as `read_seconds` reads it."""
    whole = round(value_s)
    if value_s < 60 or whole % 60:
        if whole > 60 and whole == value_s:
            return f"{seconds(whole - whole % 60)}{whole % 60}s"
        return f"{value_s:g}s"
    for unit, length in (("d", 86_400), ("h", 3600)):
        if whole >= length:
            rest = whole % length
            return f"{whole // length}{unit}" + (seconds(rest) if rest else "")
    return f"{whole // 60}m"


def percent(share: float) -> str:
    """A share, as `read_share` reads it."""
    return f"{100 * share:.4g}%"


def window(value: Window) -> str:
    """A window, as `read_window` reads it."""
    end = value.start_minute + value.minutes
    end -= DAY_MINUTES if end > DAY_MINUTES else 0
    span = f"{_clock(value.start_minute)}-{_clock(end)}"
    if not value.days:
        return span
    return f"{','.join(DAYS[day].capitalize() for day in sorted(value.days))} {span}"


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _minute(hours: str, minutes: str, text: str) -> int:
    minute = int(hours) * 60 + int(minutes)
    if int(minutes) >= 60 or minute > DAY_MINUTES:
        raise BadAmount(
            f"window {text!r}: {hours}:{minutes} is no time between 00:00 and 24:00"
        )
    return minute


def _days(text: str, whole: str) -> list[int]:
    days: set[int] = set()
    for part in filter(None, (each.strip() for each in text.lower().split(","))):
        first, dash, last = (each.strip() for each in part.partition("-"))
        start, end = _day(first, whole), _day(last if dash else first, whole)
        # Fri-Mon goes over the end of the week.
        days.update((start + step) % 7 for step in range((end - start) % 7 + 1))
    return sorted(days)


def _day(name: str, whole: str) -> int:
    if name[:3] not in DAYS or len(name) < 3:
        raise BadAmount(
            f"window {whole!r}: {name!r} is no day: write mon, tue, wed, thu, fri, sat, sun"
        )
    return DAYS.index(name[:3])
