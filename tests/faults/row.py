"""A row of the matrix: one fault, how it is made, and what must hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.faults.checker import BREACHES, Verdict
from tests.faults.stage import Stage


@dataclass(frozen=True, slots=True)
class Row:
    """One fault.

    Attributes:
        name: in the table, and on the command line.
        fault: how it is made.
        must_hold: in words.
        run: makes it on a fresh stage and returns when all has ended; what it asserts
            must hold too.
        fast: whether it is cheap enough for `make test`, at a small scale.
        most_gap_s: the longest that local answers may be away; None for no limit.
        may_pend: requests that the row leaves without any answer.
        may_be_untold: outcomes that the row leaves untold.
        timeout_s: at full scale.
        own_node: it needs a RabbitMQ that no other row uses after it.
    """

    name: str
    fault: str
    must_hold: str
    run: Callable[[Stage], Awaitable[None]]
    fast: bool = False
    most_gap_s: float | None = 2.0
    may_pend: bool = False
    may_be_untold: bool = False
    timeout_s: float = 180.0
    own_node: bool = False

    def problems(self, verdict: Verdict) -> list[str]:
        """What the verdict says against this row, a sentence each."""
        found = [
            f"{count} {BREACHES[kind]}: {verdict.examples.get(kind)}"
            for kind, count in verdict.breaches.items()
            if count
        ]
        if verdict.pending and not self.may_pend:
            found.append(f"{verdict.pending} offered and never answered")
        if verdict.untold and not self.may_be_untold:
            found.append(f"{verdict.untold} outcomes that no device heard")
        if not verdict.offered:
            found.append("nothing was offered: the row proves nothing")
        gap = verdict.longest_local_gap_s
        if self.most_gap_s is not None and gap > self.most_gap_s:
            found.append(f"local answers were away for {gap:.1f} s")
        return found
