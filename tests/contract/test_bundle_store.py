"""The store: whole versions or none, for any number of readers."""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle import durable
from bundle.seal import SealRejected, make_seal, open_seal, sign_seal
from bundle.store import AlreadyPublished, BundleStore, NotFound
from bundle.trust import generate_key, trusting

KEY = generate_key()
TRUSTED = trusting(KEY)
DATA = bytes(range(256)) * 20


@pytest.fixture
def offer(tmp_path: Path) -> Callable[..., tuple[Path, bytes]]:
    def made(
        version: str = "1", data: bytes = DATA, name: str = "fashion"
    ) -> tuple[Path, bytes]:
        packed = tmp_path / "offered.tar"
        packed.write_bytes(data)
        seal = make_seal(packed, name, version, chunk_bytes=2048)
        return packed, sign_seal(seal, KEY)

    return made


Offer = Callable[..., tuple[Path, bytes]]


def test_what_was_published_is_read_back_in_chunks(
    tmp_path: Path, offer: Offer
) -> None:
    writer, reader = BundleStore(tmp_path / "r"), BundleStore(tmp_path / "r")
    packed, sealed = offer()
    assert writer.publish(packed, sealed)
    packed.unlink()
    seal = open_seal(reader.read_seal("fashion", "1"), trusting(KEY))
    chunks = [reader.read_chunk("fashion", "1", i) for i in range(len(seal.chunks))]
    assert b"".join(chunks) == DATA
    for index, chunk in enumerate(chunks):
        seal.check_chunk(index, chunk)


def test_publishing_the_same_again_is_nothing_new(tmp_path: Path, offer: Offer) -> None:
    store = BundleStore(tmp_path / "r")
    assert store.publish(*offer()) is True
    assert store.publish(*offer()) is False
    assert [(each.name, each.version) for each in store.list()] == [("fashion", "1")]


def test_other_bytes_under_a_taken_version_are_refused(
    tmp_path: Path, offer: Offer
) -> None:
    store = BundleStore(tmp_path / "r")
    store.publish(*offer())
    with pytest.raises(AlreadyPublished, match="give this one a new version"):
        store.publish(*offer(data=DATA + b"more"))
    assert store.read_chunk("fashion", "1", 0) == DATA[:2048]
    assert store.list()[0].size_bytes == len(DATA)


def test_a_seal_signed_by_the_next_key_takes_the_olds_place(
    tmp_path: Path, offer: Offer
) -> None:
    store = BundleStore(tmp_path / "r")
    packed, sealed = offer()
    store.publish(packed, sealed)
    key = generate_key()
    again = sign_seal(open_seal(sealed, trusting(KEY)), key)
    assert store.publish(packed, again) is False
    resealed = open_seal(store.read_seal("fashion", "1"), trusting(key))
    assert resealed.version == "1"


def test_a_seal_that_does_not_fit_the_file_is_refused(
    tmp_path: Path, offer: Offer
) -> None:
    store = BundleStore(tmp_path / "r")
    packed, sealed = offer()
    packed.write_bytes(DATA[::-1])
    with pytest.raises(SealRejected, match="digest"):
        store.publish(packed, sealed)
    assert store.list() == []


def test_versions_are_listed_as_people_count(tmp_path: Path, offer: Offer) -> None:
    store = BundleStore(tmp_path / "r")
    for version in ("10", "9", "1.10", "1.9", "b"):
        store.publish(*offer(version))
    assert [each.version for each in store.list()] == ["1.9", "1.10", "9", "10", "b"]


def test_what_is_not_there_is_said_by_name(tmp_path: Path, offer: Offer) -> None:
    store = BundleStore(tmp_path / "r")
    assert store.list() == []
    with pytest.raises(NotFound, match="fashion 1 is not in the registry"):
        store.read_seal("fashion", "1")
    with pytest.raises(NotFound, match="fashion 1 is not in the registry"):
        store.read_chunk("fashion", "1", 0)
    store.publish(*offer())
    with pytest.raises(NotFound, match="chunks 0 to 2, not 3"):
        store.read_chunk("fashion", "1", 3)


@pytest.mark.parametrize("bad", ["..", "../x", "a/b", "", ".lock", "A", "a\n", "a\0"])
def test_no_name_leads_out_of_the_folder(bad: str, tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "r")
    with pytest.raises(NotFound, match="not a valid"):
        store.read_seal(bad, "1")
    with pytest.raises(NotFound, match="not a valid"):
        store.read_chunk("fashion", bad, 0)
    with pytest.raises(NotFound, match="not a valid"):
        store.read_desired(bad)
    with pytest.raises(ValueError, match="not a valid"):
        store.write_desired(bad, b"x")


def test_what_a_publisher_left_when_it_died_is_ignored_then_removed(
    tmp_path: Path, offer: Offer
) -> None:
    store = BundleStore(tmp_path / "r")
    left = tmp_path / "r" / "bundles" / "fashion" / ".1.abc.part"
    left.mkdir(parents=True)
    (left / "seal.json").write_bytes(offer()[1])
    assert store.list() == []
    store.publish(*offer())
    assert [each.version for each in store.list()] == ["1"]
    assert not left.exists()


def test_a_full_disk_leaves_no_version_behind(tmp_path: Path, offer: Offer) -> None:
    packed, sealed = offer()
    root = tmp_path / "r"
    publisher = multiprocessing.get_context("spawn").Process(
        target=publish_with_little_room, args=(root, packed, sealed)
    )
    publisher.start()
    publisher.join(15)
    assert publisher.exitcode == 7
    assert BundleStore(root).list() == []
    assert BundleStore(root).publish(packed, sealed)


def publish_with_little_room(root: Path, packed: Path, sealed: bytes) -> None:
    """In a process of its own, which may write files of one kilobyte at most."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    try:
        BundleStore(root).publish(packed, sealed)
    except OSError:
        raise SystemExit(7) from None


def test_a_damaged_seal_hides_only_its_own_version(
    tmp_path: Path, offer: Offer
) -> None:
    store = BundleStore(tmp_path / "r")
    store.publish(*offer("1"))
    store.publish(*offer("2"))
    (tmp_path / "r/bundles/fashion/1/seal.json").write_bytes(b"{")
    assert [each.version for each in store.list()] == ["2"]
    with pytest.raises(NotFound):
        store.read_chunk("fashion", "1", 0)


def test_publishing_again_mends_what_the_disk_damaged(
    tmp_path: Path, offer: Offer
) -> None:
    store = BundleStore(tmp_path / "r")
    store.publish(*offer())
    folder = tmp_path / "r/bundles/fashion/1"
    for damaged in (folder / "seal.json", folder / "bundle.tar"):
        damaged.write_bytes(b"{")
        assert store.publish(*offer()) is False
        assert store.read_chunk("fashion", "1", 0) == DATA[:2048]
        assert open_seal(store.read_seal("fashion", "1"), TRUSTED).version == "1"


def test_a_damaged_version_is_not_overwritten_by_another(
    tmp_path: Path, offer: Offer
) -> None:
    store = BundleStore(tmp_path / "r")
    store.publish(*offer())
    (tmp_path / "r/bundles/fashion/1/seal.json").write_bytes(b"{")
    with pytest.raises(AlreadyPublished, match="is damaged"):
        store.publish(*offer(data=DATA[::-1]))


def test_a_packed_file_cut_on_disk_is_not_served_as_if_whole(
    tmp_path: Path, offer: Offer
) -> None:
    store = BundleStore(tmp_path / "r")
    store.publish(*offer())
    (tmp_path / "r/bundles/fashion/1/bundle.tar").write_bytes(DATA[:3000])
    with pytest.raises(NotFound, match="cut short"):
        store.read_chunk("fashion", "1", 1)


def test_desired_is_replaced_whole_and_absent_is_none(tmp_path: Path) -> None:
    writer, reader = BundleStore(tmp_path / "r"), BundleStore(tmp_path / "r")
    assert reader.read_desired("agent-1") is None
    writer.write_desired("agent-1", b"one")
    writer.write_desired("agent-1", b"two")
    assert reader.read_desired("agent-1") == b"two"
    assert [each.name for each in (tmp_path / "r/desired").iterdir()] == ["agent-1"]


def test_a_reader_never_sees_half_a_desired_document(tmp_path: Path) -> None:
    root = tmp_path / "r"
    BundleStore(root).write_desired("agent-1", b"0" * 50_000)
    writer = multiprocessing.get_context("spawn").Process(
        target=write_many_desired, args=(root,)
    )
    writer.start()
    reader = BundleStore(root)
    seen = set()
    while writer.is_alive():
        data = reader.read_desired("agent-1")
        assert data is not None
        assert len(data) == 50_000
        assert len(set(data)) == 1
        seen.add(data[:1])
    writer.join(15)
    assert writer.exitcode == 0
    assert reader.read_desired("agent-1") == b"9" * 50_000


def write_many_desired(root: Path) -> None:
    store = BundleStore(root)
    for number in range(50):
        store.write_desired("agent-1", str(number % 10).encode() * 50_000)


def test_a_file_that_fails_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    durable.write_file(path, json.dumps({"a": 1}).encode())
    with pytest.raises(TypeError), durable.replacing(path) as file:
        file.writelines([b"half", "not bytes"])  # type: ignore[list-item] # fails midway
    assert json.loads(path.read_bytes()) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["f.json"]
