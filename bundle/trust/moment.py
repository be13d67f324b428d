"""What time it is at least: a floor that expiry is judged on beside the clock.

A device without a clock wakes up in 1970 and would believe any metadata that was ever
signed. It cannot be earlier than what it has seen signed, and not earlier than that
plus the time it has been running since.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Final, Self

RELEASED_S: Final = 1_795_392_000.0  # 2026-11-23: this program was not made before


@dataclass(frozen=True, slots=True)
class TimeFloor:
    """The newest times seen, in seconds since 1970.

    Attributes:
        signed_s: signed by a threshold of offline keys.
        stamped_s: signed by the online timestamp key, or lived through since.
        stamped_by: the ids of that key. Once it is replaced, what it stamped says
            nothing: whoever stole it could have stamped any time.
    """

    signed_s: float = 0.0
    stamped_s: float = 0.0
    stamped_by: tuple[str, ...] = ()

    def now_s(self, clock_s: float) -> float:
        """The time to judge expiry on, given what the clock says."""
        return max(clock_s, RELEASED_S, self.signed_s, self.stamped_s)

    def after(self, elapsed_s: float) -> Self:
        """The floor when `elapsed_s` have passed for certain."""
        if elapsed_s <= 0:
            return self
        return replace(self, stamped_s=self.now_s(0.0) + elapsed_s)

    def seen(
        self, *, signed_s: float, stamped_s: float, stamped_by: tuple[str, ...]
    ) -> Self:
        """The floor once verified metadata said these times."""
        kept_s = self.stamped_s if self.trusts(stamped_by) else 0.0
        return replace(
            self,
            signed_s=max(self.signed_s, signed_s),
            stamped_s=max(kept_s, stamped_s),
            stamped_by=tuple(sorted(stamped_by)),
        )

    def trusts(self, stamp_keys: tuple[str, ...]) -> bool:
        """Whether the key that stamped is among those that may stamp now."""
        return not self.stamped_by or bool({*self.stamped_by} & {*stamp_keys})

    def unstamped(self) -> Self:
        """The floor without what the timestamp key said."""
        return replace(self, stamped_s=0.0, stamped_by=())

    def to_json(self) -> bytes:
        """As it is kept on disk."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read what was kept.

        Raises:
            ValueError: it is damaged; start from none.
        """
        match json.loads(data):
            case {
                "signed_s": int() | float() as signed_s,
                "stamped_s": int() | float() as stamped_s,
                "stamped_by": list() as stamped_by,
            } if isfinite(signed_s) and isfinite(stamped_s):
                return cls(signed_s, stamped_s, tuple(map(str, stamped_by)))
            case _:
                raise ValueError("not a floor of time")
