"""Key files: who may read them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from bundle.trust.errors import KeyRejected
from bundle.trust.keys import (
    KeyRing,
    PassphraseNeeded,
    make_key,
    read_private,
    read_public,
)


def test_a_key_is_its_owners_alone_and_is_never_written_over(tmp_path: Path) -> None:
    made = make_key(tmp_path / "a.key", None)
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    assert read_public(tmp_path / "a.pub") == made
    with pytest.raises(KeyRejected, match="never written over"):
        make_key(tmp_path / "a.key", None)
    with pytest.raises(KeyRejected, match=r"NAME\.key"):
        make_key(tmp_path / "a.pem", None)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o622])
def test_a_key_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    make_key(tmp_path / "a.key", None)
    (tmp_path / "a.key").chmod(mode)
    with pytest.raises(KeyRejected, match="chmod 600"):
        read_private(tmp_path / "a.key", None)


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    made = make_key(tmp_path / "a.key", b"open sesame")
    for wrong in (None, b"", b"open"):
        with pytest.raises(PassphraseNeeded):
            read_private(tmp_path / "a.key", wrong)
    key = read_private(tmp_path / "a.key", b"open sesame")
    assert key.public_key().public_bytes_raw() == made.raw


def test_what_is_no_ed25519_key_is_refused_by_name(tmp_path: Path) -> None:
    ring = KeyRing([tmp_path], lambda _: None)
    assert ring.at_hand() == {}
    with pytest.raises(KeyRejected, match="cannot read key"):
        read_private(tmp_path / "absent.key", None)
    (tmp_path / "x.key").write_bytes(b"hello")
    (tmp_path / "x.key").chmod(0o600)
    with pytest.raises(KeyRejected, match=r"x\.key is not a private key"):
        read_private(tmp_path / "x.key", None)
    with pytest.raises(KeyRejected, match=r"x\.pub"):
        ring.at_hand()
    other = generate_private_key(SECP256R1()).public_key()
    (tmp_path / "x.pub").write_bytes(
        other.public_bytes(
            serialization.Encoding.PEM,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        )
    )
    with pytest.raises(KeyRejected, match="not an ed25519 key"):
        read_public(tmp_path / "x.pub")
    (tmp_path / "x.pub").write_bytes(b"0" * 100_000)
    with pytest.raises(KeyRejected, match="not a key"):
        read_public(tmp_path / "x.pub")


def test_a_key_beside_anothers_public_half_is_refused(tmp_path: Path) -> None:
    make_key(tmp_path / "a.key", None)
    made = make_key(tmp_path / "b.key", None)
    (tmp_path / "b.pub").replace(tmp_path / "a.pub")
    ring = KeyRing([tmp_path / "a.key"], lambda _: None)
    with pytest.raises(KeyRejected, match="different keys"):
        ring.opens(made.key_id)
