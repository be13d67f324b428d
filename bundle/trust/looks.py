"""What came of one look at the sources of trust metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundle.source import SourceUnavailable
from bundle.trust.errors import NotSigned, Stale, Untrusted


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one source was passed over; `refusal` is None when it just did not answer."""

    source: str
    reason: str
    refusal: type[Untrusted] | None


@dataclass(frozen=True, slots=True)
class Look:
    """What came of asking: the target's bytes if one was wanted and found.

    `source` is whom it was believed from, None when from nobody.
    """

    source: str | None
    target: bytes | None = None
    failures: Sequence[Failure] = ()

    def check(self, retry_after_s: float | None = None) -> None:
        """Return if somebody was believed.

        Args:
            retry_after_s: when a source asked to be asked again.

        Raises:
            Untrusted: somebody answered, and was not; the gravest refusal.
            SourceUnavailable: nobody answered.
        """
        if self.source is not None:
            return
        why = "; ".join(f"{each.source}: {each.reason}" for each in self.failures)
        refusals = {each.refusal for each in self.failures}
        for refusal in (NotSigned, Stale, Untrusted):
            if refusal not in refusals:
                continue
            if refusal is NotSigned and None in refusals:
                # Whoever did not answer may have what was signed since: a source that
                # is held back, or lags, has no last word.
                break
            raise refusal(why)
        raise SourceUnavailable(why or "there is no source to ask", retry_after_s)
