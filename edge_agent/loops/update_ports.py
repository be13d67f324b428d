"""What updates ask of others: who signed, how bundles come, where candidates run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from broker.messages import UpdatePolicy
from bundle.seal import Seal
from edge_agent.adapters.model_store import StoredBundle
from edge_agent.core.fit import Device, ModelRefused


class Trust(Protocol):
    """Who says which bundles are good."""

    async def refresh(self) -> None:
        """Learn what is signed by now."""
        ...

    async def seal_for(self, model: str, version: str, epoch: int) -> Seal:
        """The seal of a version in an epoch; refuses one that nobody signed."""
        ...


class NoTrustRoot:
    """The trust of an agent that was given no root: it takes nothing."""

    async def refresh(self) -> None:
        """There is nothing to learn."""

    async def seal_for(self, model: str, version: str, epoch: int) -> Seal:
        """Refuses.

        Raises:
            ModelRefused: always.
        """
        raise ModelRefused(
            f"{model} {version} in epoch {epoch}: this agent does not know who may "
            "sign models; give it the fleet's root.json (OVERSPILL_AGENT_TRUSTED_ROOT)"
        )


class Pulls(Protocol):
    """How bundles get here."""

    async def pull(
        self,
        seal: Seal,
        base: Path | None,
        *,
        policy: UpdatePolicy,
        superseded: Callable[[], bool],
        progress: Callable[[int, int], None],
    ) -> Path:
        """A file that has the seal's digest; the caller takes it away."""
        ...


class Shadows(Protocol):
    """Where candidates run beside the active versions."""

    async def start(self, stored: StoredBundle) -> None:
        """Run one; it replaces the model's last."""
        ...

    async def stop(self, model: str) -> None:
        """End a model's, if there is one."""
        ...


@dataclass(frozen=True, slots=True)
class Here:
    """What an update asks of the machine.

    Attributes:
        device: what it is.
        local_now: the device's own time; None when it does not know the time.
    """

    device: Callable[[], Device]
    local_now: Callable[[], datetime | None]
