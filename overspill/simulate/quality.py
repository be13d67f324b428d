"""What a version does on one device, in pretence, written into the agent's real books."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from typing_extensions import override

from edge_agent.core.accounts import Accounts
from edge_agent.core.health import Account
from overspill.simulate.plan import Quality

# Of one look: what a device that was away for an hour has missed is not made up.
MOST_AT_ONCE = 10_000


class PretendedAccounts(Accounts):
    """Books that fill as time passes: whoever reads them finds them up to date.

    Args:
        quality_of: what a version is drawn from.
        rng: the device's own draws.
        requests_per_s: what the device is asked.
        audit_share: of what a version is sure of, what is compared all the same.
        slowness: of the device.
        now_s: the agent's clock.

    Attributes:
        serving: the version that is asked; None for none.
        beside: the version in the shadow of it.
    """

    def __init__(
        self,
        quality_of: Callable[[str], Quality],
        *,
        rng: Random,
        requests_per_s: float,
        audit_share: float,
        slowness: float,
        now_s: Callable[[], float],
    ) -> None:
        super().__init__()
        self.serving: str | None = None
        self.beside: str | None = None
        self._quality_of = quality_of
        self._rng = rng
        self._requests_per_s = requests_per_s
        self._audit_share = audit_share
        self._slowness = slowness
        self._now_s = now_s
        self._seen_s: dict[str, float] = {}

    @override
    def of(self, model: str, version: str | None) -> Account | None:
        account = super().of(model, version)
        if account is not None and version is not None:
            self._fill(account, version)
        return account

    @override
    def put(self, model: str, version: str, account: Account) -> Account:
        self._seen_s[version] = self._now_s()
        return super().put(model, version, account)

    def swap(self, model: str, version: str | None) -> None:
        """Another version is asked from now on."""
        self.of(model, self.serving)
        self.serving = version
        if version is not None:
            self._seen_s[version] = self._now_s()

    def _fill(self, account: Account, version: str) -> None:
        now_s, seen_s = self._now_s(), self._seen_s.get(version, self._now_s())
        asked = int((now_s - seen_s) * self._requests_per_s)
        if version not in (self.serving, self.beside) or asked <= 0:
            return
        self._seen_s[version] = seen_s + asked / self._requests_per_s
        quality = self._quality_of(version)
        for _ in range(min(asked, MOST_AT_ONCE)):
            self._ask(account, quality)

    def _ask(self, account: Account, quality: Quality) -> None:
        """Put one request to a version."""
        draw = self._rng.random
        account.requests += 1
        if draw() < quality.errors:
            account.errors += 1
            return
        account.ran(quality.latency_ms * self._slowness * (0.8 + 0.4 * draw()))
        spilled = draw() < quality.spill
        chosen = not spilled and draw() < self._audit_share
        account.spilled += spilled
        if spilled or chosen:
            # What it is unsure of it gets wrong more often.
            agreement = quality.agreement + (-0.02 if spilled else 0.02)
            account.heard(agrees=draw() < agreement, chosen=chosen)
