"""Keep requests that break their model for the operators, never at the price of an answer.

The letter is confirmed before the request's delivery is acknowledged, so a crash in
between repeats it. A broker that does not take it in time costs the letter, a counter
and a line in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from broker.dead_letters import POISON, Death, headers_of
from broker.link import LinkDown
from broker.topology import DEAD_EXCHANGE
from cloud_worker.core.dead_letters import own_envelope
from cloud_worker.core.ledger import Aside, Ledger
from cloud_worker.loops.complaints import Complaints
from cloud_worker.loops.parcels import Held
from lifecycle.clock import Clock

AT_ONCE: Final = 64
TIMEOUT_S: Final = 2.0


class PublishTo(Protocol):
    """Publish on any exchange with headers, as `AmqpLink.publish` does."""

    async def __call__(
        self,
        routing_key: str,
        body: bytes,
        *,
        exchange: str,
        headers: Mapping[str, Any],
        timeout_s: float,
    ) -> None:
        """Publish.

        Raises:
            LinkDown: not confirmed.
        """
        ...


class DeadLetters:
    """Writes dead letters.

    Args:
        publish: see `PublishTo`.
        worker: who writes.
        clock: for the time of death.
        ledger: where kept and lost letters are counted.
        complaints: where lost ones are said.
        timeout_s: an answer waits at most so long for its letter.
    """

    def __init__(
        self,
        publish: PublishTo,
        *,
        worker: str,
        clock: Clock,
        ledger: Ledger,
        complaints: Complaints,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._publish = publish
        self._worker = worker
        self._clock = clock
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._complaints = complaints
        self._in_flight = 0

    @property
    def roomy(self) -> bool:
        """Whether another letter may be written now."""
        return self._in_flight < AT_ONCE

    async def keep(self, held: Held, reason: str) -> None:
        """Return once the request is among the dead letters, or will not be."""
        body = own_envelope(held.parcel.delivery.body, held.subject)
        if body is None:
            self.lose(held, why="the request is not in its envelope")
            return
        death = Death(
            cause=POISON,
            reason=reason,
            at_ms=self._clock.wall_ms(),
            model=held.model.name,
            version=held.model.version,
            worker=self._worker,
            history=held.mishaps,
            answered=True,
        )
        self._in_flight += 1
        try:
            await self._publish(
                held.parcel.delivery.routing_key,
                body,
                exchange=DEAD_EXCHANGE,
                headers=headers_of(death),
                timeout_s=self._timeout_s,
            )
        except LinkDown as error:
            self.lose(held, why=str(error))
        else:
            self._ledger.put_aside(Aside.LETTERS_KEPT)
        finally:
            self._in_flight -= 1

    def lose(self, held: Held, *, why: str = "too many at once") -> None:
        """Go on without the letter."""
        self._ledger.put_aside(Aside.LETTERS_LOST)
        self._complaints.say(
            "a request that breaks its model is not kept",
            model=held.model.name,
            device=held.subject.device,
            id=held.subject.id,
            why=why,
        )
