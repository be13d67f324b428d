"""Which versions of a model should answer, as its owner says in `policy.json`.

A request goes to a version by a hash of its id, so that one that is sent again, to
this worker or to another, is answered by the same version.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import override

from broker.messages import ModelVersion

SHARES_SLACK: Final = 1e-6

Shares = Mapping[str, float]
Share = Annotated[float, Field(gt=0, le=1)]


class Policy(BaseModel):
    """One of three: the newest version, one version, or several by shares of 1."""

    # A word that is misspelt must not become the default.
    model_config = ConfigDict(frozen=True, extra="forbid")

    latest: Literal[True] | None = None
    pinned: ModelVersion | None = None
    canary: dict[ModelVersion, Share] | None = None

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if len(self.model_fields_set) != 1 or self._empty():
            raise ValueError(
                'say one of {"latest": true}, {"pinned": "3"} and '
                '{"canary": {"2": 0.9, "3": 0.1}}'
            )
        total = math.fsum((self.canary or {"": 1.0}).values())
        if abs(total - 1) > SHARES_SLACK:
            raise ValueError(f"the shares of canary sum to {total:g}: make it 1")
        return self

    def _empty(self) -> bool:
        return not (self.latest or self.pinned or self.canary)

    def wanted(self, newest_first: Sequence[str], usable: Collection[str]) -> Shares:
        """Who should answer, with shares that sum to 1; empty when nobody can.

        Args:
            newest_first: the versions that there are.
            usable: those of them that have not failed.
        """
        able = [version for version in newest_first if version in usable]
        if self.canary:
            return summing_to_one(
                {each: share for each, share in self.canary.items() if each in able}
            )
        if self.pinned is not None:
            return {self.pinned: 1.0} if self.pinned in able else {}
        return dict.fromkeys(able[:1], 1.0)

    @override
    def __str__(self) -> str:
        if self.canary:
            shown = (f"{100 * s:g} % {each}" for each, s in self.canary.items())
            return f"canary: {', '.join(shown)}"
        return f"pinned: {self.pinned}" if self.pinned is not None else "latest"


LATEST: Final = Policy(latest=True)


def summing_to_one(shares: Shares) -> Shares:
    """The same proportions; nothing stays nothing."""
    total = math.fsum(shares.values())
    return {version: share / total for version, share in shares.items()}


def choose(shares: Shares, request: str) -> str:
    """The version that answers a request of this id.

    Args:
        shares: not empty; their sum is 1.
        request: its id.
    """
    if len(shares) == 1:
        return next(iter(shares))
    digest = hashlib.blake2s(request.encode(), digest_size=8).digest()
    # The order must not depend on how the policy was written down.
    in_order = sorted(shares)
    left = int.from_bytes(digest) / 2**64
    for version in in_order:
        left -= shares[version]
        if left < 0:
            return version
    return in_order[-1]
