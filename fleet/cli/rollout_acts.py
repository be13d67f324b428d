"""`overspill rollout pause | resume | approve | abort | rollback`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from fleet.app import Fleet
from fleet.cli import terminal
from fleet.cli.rollout_choice import Which, chosen
from fleet.cli.rollout_wait import Wait, undone, wait_for
from fleet.cli.terminal import AmqpUrl, AsJson, Home
from fleet.core.outlook import Outlook, document, outlook
from fleet.core.rollouts import RolloutState

Why = Annotated[
    str, typer.Option("--reason", help="Why, for the history and the audit log.")
]


def pause(
    which: Which = None,
    reason: Why = "",
    home: Home = None,
    amqp_url: AmqpUrl = None,
    *,
    json: AsJson = False,
) -> None:
    """Tell no more agents until it is resumed; those that were told go on."""
    settings = terminal.read_settings(home, amqp_url)
    with terminal.opened(settings) as fleet:
        number = chosen(fleet, which)
        _done(fleet, number, fleet.rollouts.pause(number, reason), as_json=json)


def resume(
    which: Which = None,
    reason: Why = "",
    home: Home = None,
    amqp_url: AmqpUrl = None,
    *,
    json: AsJson = False,
) -> None:
    """Go on with a paused rollout; gates that had failed are overruled from now on."""
    settings = terminal.read_settings(home, amqp_url)
    with terminal.opened(settings) as fleet:
        number = chosen(fleet, which)
        _done(fleet, number, fleet.rollouts.resume(number, reason), as_json=json)


def approve(
    which: Which = None,
    reason: Why = "",
    home: Home = None,
    amqp_url: AmqpUrl = None,
    *,
    json: AsJson = False,
) -> None:
    """Let a rollout that asks go on to its next wave."""
    settings = terminal.read_settings(home, amqp_url)
    with terminal.opened(settings) as fleet:
        number = chosen(fleet, which)
        _done(fleet, number, fleet.rollouts.approve(number, reason), as_json=json)


def abort(
    which: Which = None,
    reason: Why = "",
    home: Home = None,
    amqp_url: AmqpUrl = None,
    *,
    json: AsJson = False,
) -> None:
    """End it where it is: who has the version keeps it, nobody else is told."""
    settings = terminal.read_settings(home, amqp_url)
    with terminal.opened(settings) as fleet:
        number = chosen(fleet, which)
        _done(fleet, number, fleet.rollouts.abort(number, reason), as_json=json)


def rollback(
    which: Which = None,
    reason: Why = "",
    wait: Wait = None,
    home: Home = None,
    amqp_url: AmqpUrl = None,
    *,
    json: AsJson = False,
) -> None:
    """Send every agent that was told back to the version of before.

    That version was signed for it when this one was published, so no key is needed. A
    rollout that is done can be taken back as well, as long as it is the newest.
    """
    settings = terminal.read_settings(home, amqp_url)
    with terminal.opened(settings) as fleet:
        number = chosen(fleet, which, live=False)
        told = fleet.rollouts.roll_back(number, reason)
        after: Callable[[], Outlook] | None = None
        if wait is not None:
            after = lambda: wait_for(fleet, number, wait)  # noqa: E731 - said where it is used
        seen = _done(fleet, number, told, as_json=json, after=after)
    if wait is not None and seen.state is not RolloutState.ROLLED_BACK:
        terminal.fail(undone(seen, wait))


def _done(
    fleet: Fleet,
    generation: int,
    agents: tuple[str, ...],
    *,
    as_json: bool,
    after: Callable[[], Outlook] | None = None,
) -> Outlook:
    """Tell the agents concerned, and say how the rollout stands now."""
    hint_error = fleet.tell(agents)
    if hint_error is not None and agents:
        terminal.warn(
            f"agents were not told and learn at their next poll: {hint_error}"
        )
    if after is not None:
        seen = after()
    else:
        progress = fleet.rollouts.progress_of(generation)
        seen = outlook(progress, fleet.clock.wall_ms())
    if as_json:
        terminal.print_json({**document(seen), "hint_error": hint_error})
        return seen
    new, said = seen.rollout, seen.state.value.replace("_", " ")
    because = f" ({seen.course.reason})" if seen.course.reason else ""
    terminal.note(
        f"rollout {new.generation} of {new.model} {new.version}: {said}{because}"
    )
    if agents:
        terminal.note(f"{len(agents)} agents are to serve something else now")
    return seen
