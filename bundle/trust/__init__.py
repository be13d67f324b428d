"""Who may say what a model is: TUF metadata over seals, and the keys that sign it.

`client` believes (agents and workers); `repository`, `drafts` and `keys` are the
operators' side. python-tuf and cryptography are imported by those modules alone.
"""

from bundle.trust.documents import (
    TrustedKeys,
    canonical,
    generate_key,
    key_id,
    load_private_key,
    load_public_keys,
    open_document,
    public_bytes,
    read_document,
    save_private_key,
    save_public_key,
    sign_document,
    trusting,
)
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
    "TrustedKeys",
    "Untrusted",
    "canonical",
    "generate_key",
    "key_id",
    "load_private_key",
    "load_public_keys",
    "open_document",
    "public_bytes",
    "read_document",
    "save_private_key",
    "save_public_key",
    "sign_document",
    "trusting",
]
