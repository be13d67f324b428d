"""Keys and signed documents."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.trust import (
    KeyRejected,
    Untrusted,
    canonical,
    generate_key,
    key_id,
    load_private_key,
    load_public_keys,
    open_document,
    public_bytes,
    save_private_key,
    save_public_key,
    sign_document,
    trusting,
)

LIMIT = 4096


def test_what_a_trusted_key_signed_is_read_back() -> None:
    key = generate_key()
    data = sign_document({"b": 1, "a": ["é"]}, key)
    assert open_document(data, trusting(key), max_bytes=LIMIT) == {"b": 1, "a": ["é"]}


def test_canonical_text_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": {"y": 1, "x": 2}, "a": "é"}) == (
        b'{"a":"\\u00e9","b":{"x":2,"y":1}}'
    )


def test_a_strangers_signature_is_refused_by_name() -> None:
    stranger, ours = generate_key(), generate_key()
    data = sign_document({"a": 1}, stranger)
    with pytest.raises(Untrusted) as refusal:
        open_document(data, trusting(ours), max_bytes=LIMIT)
    assert key_id(public_bytes(stranger)) in str(refusal.value)
    assert key_id(public_bytes(ours)) in str(refusal.value)


def test_a_stranger_who_borrows_a_trusted_key_id_is_refused() -> None:
    stranger, ours = generate_key(), generate_key()
    document = json.loads(sign_document({"a": 1}, stranger))
    document["signatures"][0]["key_id"] = key_id(public_bytes(ours))
    with pytest.raises(Untrusted, match="changed after signing"):
        open_document(json.dumps(document).encode(), trusting(ours), max_bytes=LIMIT)


def test_one_trusted_signature_among_strangers_is_enough() -> None:
    stranger, ours = generate_key(), generate_key()
    data = sign_document({"a": 1}, stranger, ours)
    assert open_document(data, trusting(ours), max_bytes=LIMIT) == {"a": 1}


def test_a_changed_document_is_refused() -> None:
    key = generate_key()
    data = sign_document({"version": "1"}, key).replace(b'"1"', b'"2"')
    with pytest.raises(Untrusted, match="changed after signing"):
        open_document(data, trusting(key), max_bytes=LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"signed": {}}',
        b'{"signed": [], "signatures": []}',
        b'{"signed": {}, "signatures": [1]}',
        b'{"signed": {}, "signatures": [{"key_id": "0123456789abcdef", "sig": "zz"}]}',
        b'{"signed": {"a": 1, "a": 2}, "signatures": []}',
        b'{"signed": {"a": ' + b"9" * 4200 + b'}, "signatures": []}',
        b'{"signed": ' * 600,
        b'{"signed": {}, "signatures": [' + b"{}," * 40 + b"{}]}",
    ],
)
def test_what_is_no_signed_document_is_refused(data: bytes) -> None:
    with pytest.raises(Untrusted):
        open_document(data, trusting(generate_key()), max_bytes=64 * 1024)


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    data = b'{"signed": ' + b"[" * 500_000 + b"]" * 500_000 + b"}"
    with pytest.raises(Untrusted):
        open_document(data, {}, max_bytes=2_000_000)


def test_a_document_over_the_limit_is_not_even_parsed() -> None:
    key = generate_key()
    data = sign_document({"a": "x" * LIMIT}, key)
    with pytest.raises(Untrusted, match="over the limit of 4096"):
        open_document(data, trusting(key), max_bytes=LIMIT)


def test_unsigned_is_refused_even_when_nobody_is_trusted() -> None:
    with pytest.raises(Untrusted, match="signed by nobody"):
        open_document(b'{"signed": {}, "signatures": []}', {}, max_bytes=LIMIT)


def test_keys_survive_their_files_and_the_private_one_is_private(
    tmp_path: Path,
) -> None:
    key = generate_key()
    save_private_key(key, tmp_path / "signing.key")
    save_public_key(key, tmp_path / "signing.pub")
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600
    again = load_private_key(tmp_path / "signing.key")
    data = sign_document({"a": 1}, again)
    for path in (tmp_path, tmp_path / "signing.pub"):
        assert open_document(data, load_public_keys(path), max_bytes=LIMIT)


def test_a_signing_key_open_to_everyone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    save_private_key(generate_key(), path)
    path.chmod(0o644)
    with pytest.raises(KeyRejected, match="chmod 600"):
        load_private_key(path)


def test_bad_key_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(KeyRejected, match=r"no \*\.pub"):
        load_public_keys(tmp_path)
    with pytest.raises(KeyRejected, match=r"absent\.pub"):
        load_public_keys(tmp_path / "absent.pub")
    (tmp_path / "x.pub").write_bytes(b"hello")
    with pytest.raises(KeyRejected, match=r"x\.pub is not a public key"):
        load_public_keys(tmp_path)
    (tmp_path / "x.key").write_bytes(b"hello")
    (tmp_path / "x.key").chmod(0o600)
    with pytest.raises(KeyRejected, match=r"x\.key is not a private key"):
        load_private_key(tmp_path / "x.key")


def test_importing_trust_and_seal_does_not_import_cryptography() -> None:
    code = (
        "import sys, bundle.trust, bundle.seal, bundle.pack, bundle.tree;"
        "sys.exit('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
