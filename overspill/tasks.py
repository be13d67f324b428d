"""Work done side by side, with one plain failure out of a group of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Run all at once; the first failure ends the others and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as several:
        first = several.exceptions[0]
        raise first from first.__cause__


async def alongside(
    main: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, None]
) -> T:
    """Run `main` with others beside it, which end with it.

    A failure of one of them ends `main` and is raised by itself.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in others]
            try:
                return await main
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as several:
        first = several.exceptions[0]
        raise first from first.__cause__


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do all of `work`, also when cancelled meanwhile; the cancellation comes after.

    For tidying up: half of it would leave processes behind.
    """
    # Owned here until it is done; a TaskGroup would cancel it with its owner.
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except BaseException:  # noqa: BLE001, S112 - raised below, by its result
            continue
    if cancelled is not None:
        raise cancelled
    task.result()
