"""Dead letters as an operator sees them: read, chosen, and made ready to go again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker.codec import WireError, decode, repack, seal_envelope, unpack
from broker.dead_letters import Death, read_death, times_retried
from broker.messages import Request
from broker.topics import read_request_key

DIGEST_PREFIX: Final = "sha256:"
DIGEST_CHARS: Final = 12
FIRST_BYTES: Final = 64
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|min|m|h|d)?\Z")
_UNIT_S: Final = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


class BadChoice(ValueError):
    """No letter, or no single one, is what was asked for; says how to ask."""


@dataclass(frozen=True, slots=True)
class Content:
    """One request in a letter.

    Attributes:
        inputs: dtype and shape of each tensor, or the size of an encoded medium.
        expires_at_ms: Unix time.
    """

    device: str
    id: str
    reason: str
    attempt: int
    expires_at_ms: int
    inputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Letter:
    """One message of the dead letters.

    Attributes:
        agent: who sent it, as the broker enforced it, or nothing; so `model`, `priority`.
        digest: names it where it holds no id.
        retried: how often it was sent on its way again.
        contents: its requests; none when nothing in it can be read.
        fault: why it, or a part of it, cannot be read.
        first_bytes: of its body, in hexadecimal, when nothing can be read.
    """

    agent: str
    model: str
    priority: str
    routing_key: str
    size_bytes: int
    digest: str
    death: Death
    retried: int
    contents: tuple[Content, ...] = ()
    fault: str | None = None
    first_bytes: str | None = None

    @property
    def name(self) -> str:
        """What an operator may call it by."""
        if not self.contents:
            return f"{self.agent or 'unknown'}/{self.digest}"
        first, others = self.contents[0], len(self.contents) - 1
        name = f"{self.agent}/{first.device}/{first.id}"
        return name + (f" and {others} more" if others else "")


def read_letter(routing_key: str, body: bytes, headers: Mapping[str, Any]) -> Letter:
    """Read a message of the dead letters, whatever it is."""
    address = read_request_key(routing_key)
    contents: tuple[Content, ...] = ()
    try:
        envelope = decode(body, Request)
    except WireError as error:
        fault: str | None = str(error)
    else:
        contents = tuple(map(_content, envelope.items))
        fault = envelope.bad[0].reason if envelope.bad else None
    digest = hashlib.sha256(routing_key.encode() + b"\0" + body).hexdigest()
    return Letter(
        agent=address.agent if address else "",
        model=address.model if address else "",
        priority=address.priority.value if address else "",
        routing_key=routing_key,
        size_bytes=len(body),
        digest=DIGEST_PREFIX + digest[:DIGEST_CHARS],
        death=read_death(headers),
        retried=times_retried(headers),
        contents=contents,
        fault=fault,
        first_bytes=None if contents else body[:FIRST_BYTES].hex(),
    )


def _content(request: Request) -> Content:
    if request.medium is not None:
        inputs = {request.medium.media_type: f"{len(request.medium.data)} bytes"}
    else:
        inputs = {
            name: f"{tensor.dtype} {tensor.shape}, {len(tensor.data)} bytes"
            for name, tensor in (request.tensors or {}).items()
        }
    return Content(
        device=request.device,
        id=request.id,
        reason=request.reason.value,
        attempt=request.attempt,
        expires_at_ms=request.expires_at_ms,
        inputs=inputs,
    )


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; None is any.

    Attributes:
        reason: a part of the reason or the cause, in any case of letters.
        older_s: died at least so long ago.
    """

    model: str | None = None
    agent: str | None = None
    device: str | None = None
    reason: str | None = None
    older_s: float | None = None

    def passes(self, letter: Letter, now_ms: int) -> bool:
        """Whether the letter is meant."""
        if self.model is not None and letter.model != self.model:
            return False
        if self.agent is not None and letter.agent != self.agent:
            return False
        if self.device is not None and not any(
            each.device == self.device for each in letter.contents
        ):
            return False
        if self.reason is not None and not _speaks_of(letter.death, self.reason):
            return False
        if self.older_s is None:
            return True
        died_ms = letter.death.at_ms
        return died_ms is not None and now_ms - died_ms >= self.older_s * 1000


def _speaks_of(death: Death, words: str) -> bool:
    return words.lower() in f"{death.cause} {death.reason}".lower()


@dataclass(frozen=True, slots=True)
class Choice:
    """The request that an operator names, or the digest of what holds none."""

    id: str
    device: str | None = None
    agent: str | None = None

    @classmethod
    def read(cls, text: str) -> Choice:
        """Read `ID`, `DEVICE/ID`, `AGENT/DEVICE/ID` or a digest.

        Raises:
            BadChoice: it is none of these.
        """
        parts = text.split("/")
        if not all(parts) or len(parts) > 3:
            raise BadChoice(
                f"{text[:80]!r} names no request: write ID, DEVICE/ID or AGENT/DEVICE/ID"
            )
        if parts[-1].startswith(DIGEST_PREFIX):
            return cls(parts[-1], agent=parts[0] if len(parts) > 1 else None)
        agent, device, id_ = [None, None, *parts][-3:]
        return cls(str(id_), device, agent)

    def holds(self, letter: Letter) -> bool:
        """Whether the letter is one of those."""
        return any(True for _ in self.named(letter))

    def named(self, letter: Letter) -> Iterable[tuple[str, str, str]]:
        """Agent, device and id of each request of the letter that is meant."""
        if self.agent not in {None, letter.agent}:
            return
        if self.id == letter.digest:
            yield letter.agent, "", letter.digest
        for each in letter.contents:
            if each.id == self.id and self.device in {None, each.device}:
                yield letter.agent, each.device, each.id

    def check_one(self, letters: Iterable[Letter]) -> None:
        """Return if all these letters hold one and the same request.

        Raises:
            BadChoice: there is none, or several requests have that id.
        """
        names = {name for letter in letters for name in self.named(letter)}
        if not names:
            raise BadChoice(
                f"no dead letter holds request {self.text!r}: see `overspill dead list`"
            )
        if len(names) > 1:
            full = sorted("/".join(filter(None, name)) for name in names)
            raise BadChoice(
                f"{len(names)} requests have the id {self.text!r}: choose one of "
                f"{', '.join(full[:20])}"
            )

    @property
    def text(self) -> str:
        """As it was typed."""
        return "/".join(filter(None, (self.agent, self.device, self.id)))


def renewed(body: bytes, *, now_ms: int, within_s: float) -> bytes:
    """An envelope as a new attempt: what has expired gets a new deadline.

    Raises:
        BadChoice: it is no envelope of requests, so no worker could serve it.
    """
    try:
        envelope = decode(body, Request)
        packed = unpack(body)["items"]
    except WireError as error:
        raise BadChoice(f"it cannot be sent again, as it is no request: {error}") from (
            error
        )
    bad = {each.index for each in envelope.bad}
    good = [item for index, item in enumerate(packed) if index not in bad]
    if not good:
        raise BadChoice(
            f"it cannot be sent again, as it is no request: {envelope.bad[0].reason}"
        )
    again = iter(
        [
            repack(item, _changes(request, now_ms, within_s))
            for item, request in zip(good, envelope.items, strict=True)
        ]
    )
    # What cannot be read travels on as it came: it is answered as it was.
    return seal_envelope(
        Request,
        [item if index in bad else next(again) for index, item in enumerate(packed)],
    )


def _changes(request: Request, now_ms: int, within_s: float) -> dict[str, object]:
    changes: dict[str, object] = {"attempt": request.attempt + 1}
    if request.expires_at_ms <= now_ms:
        changes["expires_at_ms"] = now_ms + int(within_s * 1000)
    return changes


def read_duration_s(text: str) -> float:
    """Seconds in `90`, `90s`, `1.5min`, `2h` or `7d`.

    Raises:
        BadChoice: it is no length of time.
    """
    read = _DURATION.match(text)
    if read is None:
        raise BadChoice(
            f"{text[:40]!r} is no length of time: write 90s, 5min, 2h or 7d"
        )
    return float(read[1]) * _UNIT_S[read[2] or "s"]
