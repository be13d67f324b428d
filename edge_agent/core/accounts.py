"""The health of every version that is active, shadowing or just replaced, by name."""

from __future__ import annotations

from collections.abc import Collection

from broker.messages import HealthReport, Reason
from edge_agent.core.answers import Source
from edge_agent.core.delivery import Ending, Spill
from edge_agent.core.health import Account
from edge_agent.core.slots import Slots, State


class Accounts:
    """One account a version; whoever serves, shadows and hears writes into it."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Account] = {}

    def of(self, model: str, version: str | None) -> Account | None:
        """The account of a version; None for one that is not watched."""
        return None if version is None else self._of.get((model, version))

    def begin(self, model: str, version: str, now_s: float) -> Account:
        """A version begins to serve, or to shadow: its account is empty."""
        return self.put(model, version, Account(now_s))

    def put(self, model: str, version: str, account: Account) -> Account:
        """A version goes on with the account of an earlier process."""
        self._of[model, version] = account
        return account

    def ensure(self, model: str, version: str, now_s: float) -> Account:
        """The account of a version that serves, begun if it has none."""
        return self.of(model, version) or self.begin(model, version, now_s)

    def ran(self, model: str, version: str, ms: float) -> None:
        """A version has run once, for so many milliseconds."""
        account = self._of.get((model, version))
        if account is not None:
            account.ran(ms)

    def asked(self, model: str, version: str, *, failed: bool) -> None:
        """A request was put to a version; it failed it if it has no answer."""
        account = self._of.get((model, version))
        if account is not None:
            account.requests += 1
            account.errors += failed

    def spilled(self, model: str, version: str | None) -> None:
        """A request that a version had answered goes to the cloud."""
        account = self.of(model, version)
        if account is not None:
            account.spilled += 1

    def ended(self, spill: Spill, ending: Ending) -> None:
        """A spill has its outcome: perhaps the cloud's word on what a version said."""
        edge, answer = spill.edge, ending.answer
        if edge is None or answer.source is not Source.CLOUD:
            return
        account = self.of(spill.model, edge.version)
        if account is not None and edge.label is not None and answer.label is not None:
            account.heard(
                agrees=edge.label == answer.label,
                chosen=spill.reason is Reason.AUDIT,
            )

    def keep(self, model: str, versions: Collection[str | None]) -> None:
        """Forget the model's other versions."""
        for key in [key for key in self._of if key[0] == model]:
            if key[1] not in versions:
                del self._of[key]

    def report(
        self, slots: Slots, now_s: float
    ) -> tuple[HealthReport | None, HealthReport | None]:
        """Health as the fleet hears it: of the version in question, and before it."""
        asked, before = slots.active, slots.previous
        if slots.state is State.SHADOW:
            asked, before = slots.staged, slots.active
        found = (self.of(slots.model, asked), self.of(slots.model, before))
        now, then = (None if each is None else each.report(now_s) for each in found)
        return now, then
