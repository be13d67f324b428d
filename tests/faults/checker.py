"""Read histories and say whether the promise was kept. Pure: lines in, a verdict out.

The promise: every accepted request ends in exactly one recorded outcome, which
belongs to it and is recorded before anybody hears of it; what was accepted is there
after a crash.

Two things look like breaches and are none. An outcome that came before its row was
committed is its own acknowledgement: when the agent dies before that commit, and the
device (who was told nothing) sends again, the work is done again. And an answer that
was told, but not yet marked so when the agent died, is told again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from lifecycle.journal import Event
from tests.faults.history import Key, Line

EXAMPLES: Final = 20
BREACHES: Final = {
    "lost": "accepted, and without an outcome",
    "duplicated": "with more than one recorded outcome, or two different answers",
    "strangers": "with an effect, though nobody offered or accepted it",
    "mismatched": "answered with what belongs to another request",
    "unrecovered": "accepted before a crash and gone after it",
    "premature": "told of before it was recorded",
}

COUNTS: Final = (
    "offered",
    "accepted",
    "answered",
    "failed",
    "expired",
    "refused",
    "pending",
    "untold",
    "retold",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run came to. Counts are of requests unless said otherwise.

    Attributes:
        offered: that devices published at least once.
        accepted: that an agent committed or a device heard accepted.
        answered: whose outcome is an answer, the edge's own included.
        failed: whose outcome is that it cannot be answered.
        expired: whose deadline came first.
        refused: that were refused and never taken after all.
        pending: offered, not accepted, and without an answer.
        untold: with an outcome that no device has heard.
        retold: answers that were heard more than once (messages).
        breaches: for each kind of `BREACHES`, how many.
        examples: a few ids of each kind.
        longest_local_gap_s: without an answer of the edge while one was due.
        drain_s: from the end of the last fault to the last answer to what was offered
            before it.
    """

    offered: int = 0
    accepted: int = 0
    answered: int = 0
    failed: int = 0
    expired: int = 0
    refused: int = 0
    pending: int = 0
    untold: int = 0
    retold: int = 0
    breaches: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BREACHES, 0))
    examples: dict[str, list[Key]] = field(default_factory=dict)
    longest_local_gap_s: float = 0.0
    drain_s: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the promise was kept."""
        return not any(self.breaches.values())

    @property
    def lost(self) -> int:
        """Accepted and without an outcome, or gone after a crash."""
        return self.breaches["lost"] + self.breaches["unrecovered"]

    @property
    def duplicated(self) -> int:
        """With more than one effect."""
        return self.breaches["duplicated"]

    def __add__(self, other: Verdict) -> Verdict:
        """Both runs as one."""
        return Verdict(
            **{name: getattr(self, name) + getattr(other, name) for name in COUNTS},
            breaches={
                kind: self.breaches[kind] + other.breaches[kind] for kind in BREACHES
            },
            examples={
                kind: [*self.examples.get(kind, []), *other.examples.get(kind, [])][
                    :EXAMPLES
                ]
                for kind in {*self.examples, *other.examples}
            },
            longest_local_gap_s=max(
                self.longest_local_gap_s, other.longest_local_gap_s
            ),
            drain_s=max(self.drain_s, other.drain_s),
        )


@dataclass(slots=True)
class _Ended:
    """One recorded outcome."""

    t: int
    outcome: str
    durable: bool
    run: tuple[str, int]


@dataclass(slots=True)
class _Request:
    """All that is known of one id."""

    offered_t: int | None = None
    expected: str | None = None
    local: bool = False
    committed: bool = False
    heard_accepted: bool = False
    ending: tuple[str, int] | None = None
    endings: list[_Ended] = field(default_factory=list)
    finals: Counter[tuple[str, str]] = field(default_factory=Counter)
    first_final_t: int | None = None
    refused: bool = False
    breaches: set[str] = field(default_factory=set)

    @property
    def accepted(self) -> bool:
        return self.committed or self.heard_accepted


@dataclass(slots=True)
class _Agent:
    """What one agent answers for."""

    run: int = 0
    open: set[Key] = field(default_factory=set)
    missing: set[Key] = field(default_factory=set)


class Checker:
    """Takes the lines of a run in order; `verdict` may be asked once they are all in."""

    def __init__(self) -> None:
        self._requests: dict[Key, _Request] = {}
        self._agents: dict[str, _Agent] = {}
        self._fault_ended_t: int | None = None
        self._local_due: set[Key] = set()
        self._local_since_t = 0
        self._gap_ns = 0

    def see(self, line: Line) -> None:
        """Take the next line."""
        kind, _, _ = line.who.partition(":")
        match kind:
            case "device":
                self._device_saw(line)
            case "agent":
                self._agent_saw(line)
            case "runner" if line.event == "fault" and line.detail.endswith(" ends"):
                self._fault_ended_t = line.t
            case _:
                pass  # What workers saw explains a breach; it proves none.

    def see_all(self, lines: Iterable[Line]) -> None:
        """Take lines in order."""
        for line in lines:
            self.see(line)

    def _of(self, key: Key) -> _Request:
        found = self._requests.get(key)
        if found is None:
            found = self._requests[key] = _Request()
        return found

    # --- devices ------------------------------------------------------------------

    def _device_saw(self, line: Line) -> None:
        detail: dict[str, Any] = json.loads(line.detail) if line.detail else {}
        request = self._of(line.key)
        if line.event == "offered":
            self._offered(line, request, detail)
        elif line.event == "heard":
            self._heard(line, request, detail)

    def _offered(self, line: Line, request: _Request, detail: dict[str, Any]) -> None:
        if request.offered_t is not None:
            return
        request.offered_t = line.t
        request.expected = detail.get("digest")
        request.local = bool(detail.get("local"))
        if request.local:
            if not self._local_due:
                self._local_since_t = line.t
            self._local_due.add(line.key)

    def _heard(self, line: Line, request: _Request, detail: dict[str, Any]) -> None:
        status, digest = detail["status"], detail.get("digest") or ""
        if request.offered_t is None:
            request.breaches.add("strangers")
        if status == "refused":
            request.refused = True
            return
        if not detail.get("final", True):
            request.heard_accepted = True
            if not request.committed:
                request.breaches.add("premature")
            return
        self._heard_final(line, request, detail.get("source") or "", (status, digest))

    def _heard_final(
        self, line: Line, request: _Request, source: str, answer: tuple[str, str]
    ) -> None:
        if answer[0] == "answered" and request.expected not in (None, answer[1]):
            request.breaches.add("mismatched")
        if source not in ("edge", "edge_fallback") and not request.endings:
            request.breaches.add("premature")
        request.finals[answer] += 1
        if request.first_final_t is None:
            request.first_final_t = line.t
        if request.local and line.key in self._local_due:
            self._gap_ns = max(self._gap_ns, line.t - self._local_since_t)
            self._local_since_t = line.t
            self._local_due.discard(line.key)

    # --- agents -------------------------------------------------------------------

    def _agent_saw(self, line: Line) -> None:
        agent = self._agents.setdefault(line.who, _Agent())
        if line.event == "started":
            self._judge_recovery(agent)
            agent.run += 1
            agent.missing = set(agent.open)
            return
        request = self._of(line.key)
        match line.event:
            case Event.ACCEPTED:
                request.committed = True
                self._opened(line, agent, request)
            case "recovered":
                self._recovered(line, agent, request)
            case Event.ENDING:
                request.ending = (line.who, agent.run)
            case Event.ENDED:
                self._ended(line, agent, request)
            case Event.MARKED:
                for each in request.endings:
                    # Only a row that was written can be marked.
                    each.durable |= each.run == (line.who, agent.run)
            case _:
                pass

    def _recovered(self, line: Line, agent: _Agent, request: _Request) -> None:
        request.committed = True
        agent.missing.discard(line.key)
        if line.detail in ("", "open"):
            self._opened(line, agent, request)
            return
        # It ended, and the agent died before it could say so.
        agent.open.discard(line.key)
        if request.endings:
            request.endings[-1].durable = True
        else:
            run = (line.who, agent.run)
            request.endings.append(_Ended(line.t, line.detail, True, run))

    @staticmethod
    def _opened(line: Line, agent: _Agent, request: _Request) -> None:
        run = (line.who, agent.run)
        if any(each.run == run for each in request.endings):
            # Told of an outcome that was not recorded, or taken in anew after it.
            request.breaches.add("premature")
            return
        agent.open.add(line.key)
        # An outcome that a crash undid is none: this one waits for its own.
        request.endings = [
            each for each in request.endings if each.durable or each.run == run
        ]

    def _ended(self, line: Line, agent: _Agent, request: _Request) -> None:
        run = (line.who, agent.run)
        agent.open.discard(line.key)
        # A run that died between the two has ended nothing.
        ending = request.ending == run
        if ending and not request.committed:
            request.breaches.add("strangers")
        if any(each.durable or each.run == run for each in request.endings):
            request.breaches.add("duplicated")
        request.endings.append(_Ended(line.t, line.detail, ending, run))
        request.ending = None

    def _judge_recovery(self, agent: _Agent) -> None:
        for key in agent.missing:
            self._of(key).breaches.add("unrecovered")
        agent.missing = set()

    # --- the end --------------------------------------------------------------------

    def verdict(self) -> Verdict:
        """Judge what was seen so far."""
        for agent in self._agents.values():
            self._judge_recovery(agent)
        counts: Counter[str] = Counter()
        breaches = dict.fromkeys(BREACHES, 0)
        examples: dict[str, list[Key]] = {}
        for key, request in self._requests.items():
            found = request.breaches | _breaches_at_the_end(request)
            for kind in found:
                breaches[kind] += 1
                if len(shown := examples.setdefault(kind, [])) < EXAMPLES:
                    shown.append(key)
            counts.update(_counted(request))
        return Verdict(
            **counts,
            breaches=breaches,
            examples=examples,
            longest_local_gap_s=self._gap_ns / 1e9,
            drain_s=self._drain_ns() / 1e9,
        )

    def of(self, key: Key) -> str | None:
        """The outcome of one request, as it was recorded or heard; None without one."""
        request = self._requests.get(key)
        return None if request is None else _outcome(request)

    def _drain_ns(self) -> int:
        end = self._fault_ended_t
        if end is None:
            return 0
        heard = (
            request.first_final_t
            for request in self._requests.values()
            if request.first_final_t is not None
            and request.offered_t is not None
            and not request.local
            and request.offered_t <= end
        )
        return max(0, max(heard, default=end) - end)


def _breaches_at_the_end(request: _Request) -> set[str]:
    found = set()
    if request.accepted and _outcome(request) is None:
        found.add("lost")
    if len(request.finals) > 1:
        found.add("duplicated")
    if request.offered_t is None and (request.accepted or request.endings):
        found.add("strangers")
    if request.heard_accepted and not request.committed:
        found.add("premature")
    return found


def _outcome(request: _Request) -> str | None:
    """How it ended: as recorded, or for what the edge answers itself, as heard."""
    if request.endings:
        return request.endings[-1].outcome
    if request.accepted:
        return None
    return next((status for status, _ in request.finals), None)


def _counted(request: _Request) -> Counter[str]:
    outcome = _outcome(request)
    return Counter(
        offered=int(request.offered_t is not None),
        accepted=int(request.accepted),
        answered=int(outcome == "answered"),
        failed=int(outcome == "failed"),
        expired=int(outcome == "expired"),
        refused=int(request.refused and outcome is None and not request.accepted),
        pending=int(
            outcome is None
            and not request.accepted
            and not request.refused
            and request.offered_t is not None
        ),
        untold=int(bool(request.endings) and not request.finals),
        retold=max(0, request.finals.total() - 1),
    )


def check(lines: Iterable[Line]) -> Verdict:
    """The verdict on a whole run, its lines in order."""
    checker = Checker()
    checker.see_all(lines)
    return checker.verdict()
