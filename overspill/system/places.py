"""Where agents and their devices meet: folders and ports, decided before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from broker.ports import LOOPBACK, free_port


@dataclass(frozen=True, slots=True)
class AgentPlace:
    """Where one agent and its device meet.

    Attributes:
        agent: its identity.
        device: the device that it serves here.
        state_dir: its folder.
        port: where its devices connect, on the loopback address.
        embedded: whether the agent itself is that broker.
    """

    agent: str
    device: str
    state_dir: Path
    port: int
    embedded: bool

    @property
    def url(self) -> str:
        """Where its devices connect."""
        return f"mqtt://{LOOPBACK}:{self.port}"

    @property
    def control_socket(self) -> Path:
        """Where the agent answers its operator."""
        return self.state_dir / "control.sock"


def places(folder: Path, count: int, device_port: int | None) -> tuple[AgentPlace, ...]:
    """A place for each agent; the first one's devices are behind a broker of their own.

    Args:
        folder: of the system.
        count: how many agents.
        device_port: where the first agent's devices connect; a free one when None.
    """
    taken: list[int] = []
    for _ in range(count):
        wanted = device_port if not taken else None
        taken.append(free_port(avoid=taken) if wanted is None else wanted)
    return tuple(
        AgentPlace(
            agent=f"agent-{number}",
            device=f"cam{number}",
            state_dir=folder / f"agent-{number}",
            port=port,
            embedded=number > 1,
        )
        for number, port in enumerate(taken, start=1)
    )
