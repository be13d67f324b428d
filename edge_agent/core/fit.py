"""Decide whether a version may be taken here, and now. Pure: facts and time are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from broker.messages import Window
from bundle.manifest import Requires

MINUTES_A_DAY: Final = 1440


class ModelRefused(Exception):
    """The version must not serve here; the reason is reported to the fleet."""


class PutOff(Exception):
    """The update cannot go on now; it is looked at again, and says why it waits."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a bundle may ask of a device.

    Attributes:
        machine: as `platform.machine()` says it.
        board: as the agent is configured; None when it is not.
        runtime: `litert` or `tflite`; None when none is installed.
        memory_mb: of the machine, or what its container may use.
    """

    machine: str
    board: str | None
    runtime: str | None
    memory_mb: int


def check_fits(name: str, requires: Requires, device: Device) -> None:
    """Return if the device is what the bundle was made for.

    Raises:
        ModelRefused: says what it needs and what is here.
    """
    for what, wanted, found in (
        ("machine", requires.machines, device.machine),
        ("board", requires.boards, device.board),
        ("runtime", requires.runtimes, device.runtime),
    ):
        _check_one_of(name, what, wanted, found)
    if requires.memory_mb > device.memory_mb:
        raise ModelRefused(
            f"{name} needs {requires.memory_mb} MB of memory, this device has "
            f"{device.memory_mb} MB"
        )


def _check_one_of(
    name: str, what: str, wanted: Sequence[str], found: str | None
) -> None:
    if wanted and (found or "").lower() not in wanted:
        raise ModelRefused(
            f"{name} is for the {what} {' or '.join(wanted)}, this device "
            + (f"is {found}" if found else f"does not say its {what}")
        )


def put_off_until(window: Window | None, now: datetime | None) -> str | None:
    """Why a model may not be changed now; None when it may.

    Args:
        window: when it may, in the device's own time; None: at any time.
        now: the device's own time; None when it does not know the time.
    """
    if window is None:
        return None
    if now is None:
        return (
            "there is a maintenance window, and this device does not know the time: "
            "set its clock, or wait until the cloud has told it"
        )
    if _is_open(window, now):
        return None
    begins = _next_opening(window, now)
    return f"outside the maintenance window, which opens {begins:%A %H:%M} local time"


def _is_open(window: Window, now: datetime) -> bool:
    # One that began yesterday may reach over midnight.
    for days_ago in (0, 1):
        began = _opening(window, now - timedelta(days=days_ago))
        ends = began + timedelta(minutes=window.minutes)
        if _on_its_days(window, began) and began <= now < ends:
            return True
    return False


def _next_opening(window: Window, now: datetime) -> datetime:
    openings = (_opening(window, now + timedelta(days=days)) for days in range(8))
    return next(each for each in openings if each > now and _on_its_days(window, each))


def _opening(window: Window, day: datetime) -> datetime:
    midnight = day.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(minutes=window.start_minute)


def _on_its_days(window: Window, began: datetime) -> bool:
    return not window.days or began.weekday() in window.days
