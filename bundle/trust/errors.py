"""What can go wrong with trust, named by who can mend it."""

from __future__ import annotations


class KeyRejected(ValueError):
    """A key file cannot be used; says which and why."""


class Untrusted(ValueError):
    """What was said is not what the fleet's keys have signed; nothing of it is used."""


class Stale(Untrusted):
    """Signed, but it has expired: frozen by somebody, not renewed, or the clock is off.

    A later look may find it renewed.
    """


class NotSigned(Untrusted):
    """The metadata is in order, and does not name what is wanted."""


class NoTrust(LookupError):
    """No trust has been set up here; says how to."""


class TrustRefused(ValueError):
    """An operator's order that cannot be carried out as it is; says what to do."""
