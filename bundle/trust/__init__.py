"""Who may say what a model is: TUF metadata over seals, and the keys that sign it.

`client` believes, for agents and workers; `repository`, `signing` and `keys` are the
operators' side. These import python-tuf and cryptography, which take 27 MB; `errors`,
`looks`, `moment` and `epochs` import neither.
"""

from bundle.trust.errors import (
    KeyRejected,
    NoTrust,
    NotSigned,
    Stale,
    TrustRefused,
    Untrusted,
)

__all__ = [
    "KeyRejected",
    "NoTrust",
    "NotSigned",
    "Stale",
    "TrustRefused",
    "Untrusted",
]
