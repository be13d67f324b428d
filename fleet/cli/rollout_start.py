"""`overspill rollout start`."""

from __future__ import annotations

from fleet.app import Fleet
from fleet.cli import terminal
from fleet.cli.rollout_past import table
from fleet.cli.rollout_terms import with_terms
from fleet.cli.rollout_wait import Wait, bar, undone, wait_for
from fleet.cli.terminal import AmqpUrl, AsJson, Home
from fleet.core.declared import DeclaredRollout
from fleet.core.differences import waves_text
from fleet.core.outlook import document, outlook
from fleet.core.rollouts import RolloutState
from fleet.operator.rollouts import Started


@with_terms
def start(
    declared: DeclaredRollout,
    *,
    wait: Wait = None,
    home: Home = None,
    amqp_url: AmqpUrl = None,
    json: AsJson = False,
) -> None:
    """Make a version the desired one, in waves: agents pull it, test it and swap.

    `overspill fleet run` goes on with it from wave to wave; `overspill rollout plan`
    with the same options shows before what it would do. An agent that refuses a
    version goes on with the one it has.
    """
    settings = terminal.read_settings(home, amqp_url)
    with terminal.opened(settings) as fleet:
        begun, hint_error = begin(fleet, declared)
        generation = begun.rollout.generation
        if not json:
            say_begun(begun)
        now_ms = fleet.clock.wall_ms()
        seen = outlook(fleet.rollouts.progress_of(generation), now_ms)
        if wait is not None:
            seen = wait_for(fleet, generation, wait)
    if json:
        terminal.print_json({**document(seen), "hint_error": hint_error})
    elif wait is not None:
        terminal.tables().print(table([seen]))
    if seen.state is RolloutState.ABORTED:
        # By itself: none of the agents that were named can take the version.
        terminal.fail(undone(seen, 0))
    if wait is not None and seen.state is not RolloutState.DONE:
        terminal.fail(undone(seen, wait))


def begin(fleet: Fleet, declared: DeclaredRollout) -> tuple[Started, str | None]:
    """Begin a declared rollout and tell its first agents.

    Returns:
        What began, and why agents could not be told, if so.
    """
    with bar() as shown:
        task = shown.add_task("choosing agents", total=None)

        def written(done: int, of: int) -> None:
            shown.update(task, description=f"written for {done} of {of} agents")

        begun = fleet.declaring.start(declared, written)
        shown.update(task, description="telling agents")
        hint_error = fleet.tell(
            begun.agents,
            lambda told: shown.update(task, description=f"told {told} agents"),
        )
    if hint_error is not None and begun.agents:
        terminal.warn(
            f"agents were not told and learn at their next poll: {hint_error}"
        )
    return begun, hint_error


def say_begun(begun: Started) -> None:
    """What began, and how to see more."""
    new = begun.rollout
    if new.query is not None and not begun.agents:
        terminal.warn(f"--where {new.query} is true of no agent that can be told now")
    whom = f"{len(begun.agents)} agent" + ("" if len(begun.agents) == 1 else "s")
    if new.targets is None:
        whom += " and those that come later"
    terminal.note(
        f"rollout {new.generation}: {new.model} {new.version} begins with {whom}\n"
        f"waves: {waves_text(new)}\n"
        f"Next: overspill rollout watch {new.generation}"
    )
