"""What each request is: which model, class, deadline, payload and sender. Seeded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from broker.messages import Medium, Priority, Tensor
from overspill.load.arrivals import Arrivals
from overspill.load.quantities import Weighted

ALWAYS: Final = Weighted((Priority.NORM,), (1.0,))


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """What one request carries; exactly one of the two is not None."""

    name: str
    tensors: Mapping[str, Tensor] | None = None
    medium: Medium | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of data in it."""
        if self.medium is not None:
            return len(self.medium.data)
        return sum(len(each.data) for each in (self.tensors or {}).values())


@dataclass(frozen=True, slots=True)
class Choice:
    """What a trace says of a request; None where it leaves it to the mix."""

    model: str | None = None
    priority: Priority | None = None
    deadline_s: float | None = None
    payload: str | None = None


@dataclass(frozen=True, slots=True)
class Mix:
    """How requests are drawn.

    Attributes:
        models: their names.
        payloads: what is sent to each model, at least one.
        deadlines_s: seconds from the intended time.
        priorities: classes.
        senders: how many agents or devices take part.
    """

    models: Weighted[str]
    payloads: Mapping[str, Sequence[Payload]]
    deadlines_s: Weighted[float]
    priorities: Weighted[Priority] = ALWAYS
    senders: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """One request before it is sent.

    Attributes:
        number: counts from 0.
        offset_s: its intended time, from the start.
        measured: False while warming up.
    """

    number: int
    offset_s: float
    sender: int
    model: str
    priority: Priority
    deadline_s: float
    payload: Payload
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is planned; whichever ends first.

    Attributes:
        for_s: seconds that are measured, after the warm-up.
        requests: that are measured.
        warmup_s: seconds before, whose requests are sent and not measured.
        envelope: requests that arrive together and travel in one envelope.
    """

    for_s: float
    requests: int
    warmup_s: float = 0.0
    envelope: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will be sent: the same seed makes the same plan.

    Attributes:
        choices: what a trace says of each arrival, in order; () for nothing.
    """

    arrivals: Arrivals
    mix: Mix
    bounds: Bounds
    seed: int = 0
    choices: tuple[Choice, ...] = field(default=(), repr=False)

    def envelopes(self) -> Iterator[tuple[Planned, ...]]:
        """What arrives together, in order of time."""
        bounds = self.bounds
        pace = self.arrivals.scaled(1.0 / bounds.envelope)
        # Streams of their own, so that another mix keeps the arrivals.
        times = pace.offsets_s(Random(f"{self.seed} arrivals"))  # noqa: S311 - not secret
        draws = Random(f"{self.seed} mix")  # noqa: S311 - not secret
        number = measured = 0
        for index, offset_s in enumerate(times):
            warm = offset_s >= bounds.warmup_s
            left = bounds.requests - measured if warm else bounds.envelope
            if offset_s >= bounds.warmup_s + bounds.for_s or left <= 0:
                return
            together = self._draw(
                draws,
                number,
                offset_s,
                size=min(bounds.envelope, left),
                choice=self.choices[index] if self.choices else Choice(),
            )
            yield together
            number += len(together)
            measured += len(together) if warm else 0

    def _draw(
        self,
        draws: Random,
        number: int,
        offset_s: float,
        *,
        size: int,
        choice: Choice,
    ) -> tuple[Planned, ...]:
        mix = self.mix
        sender = draws.randrange(mix.senders)
        # Always drawn, so that a trace that names one leaves the rest as it is.
        model = mix.models.at(draws.random())
        priority = mix.priorities.at(draws.random())
        model = choice.model or model
        return tuple(
            Planned(
                number=number + place,
                offset_s=offset_s,
                sender=sender,
                model=model,
                priority=choice.priority or priority,
                deadline_s=choice.deadline_s or mix.deadlines_s.at(draws.random()),
                payload=_pick(mix.payloads[model], choice.payload, draws),
                measured=offset_s >= self.bounds.warmup_s,
            )
            for place in range(size)
        )


def _pick(payloads: Sequence[Payload], name: str | None, draws: Random) -> Payload:
    if name is None:
        return payloads[draws.randrange(len(payloads))]
    return next(each for each in payloads if each.name == name)
