"""What somebody can try who holds the registry, the broker, or some of the keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle import layout
from bundle.durable import write_file
from bundle.folder_tree import FolderTree
from bundle.seal import SealRejected, check_names, read_seal
from bundle.source import Piece, SourceUnavailable
from bundle.trust import NotSigned, Stale, Untrusted, roles
from bundle.trust.client import READ_BYTES, look, read_floor
from bundle.trust.errors import TrustRefused
from bundle.trust.repository import Repository
from tests.trust import DAY_S, START_S, Device, FleetTrust, a_seal


@pytest.fixture
def fleet(tmp_path: Path) -> FleetTrust:
    return FleetTrust(tmp_path / "fleet")


@pytest.fixture
def device(fleet: FleetTrust, tmp_path: Path) -> Device:
    return Device(tmp_path / "device", fleet.root(), lambda: fleet.now_s)


@pytest.fixture
def clockless(fleet: FleetTrust, tmp_path: Path) -> Device:
    return Device(tmp_path / "clockless", fleet.root(), lambda: 0.0)


def copy_of(fleet: FleetTrust, name: str) -> FolderTree:
    """The registry as it is now: a mirror, or what an attacker has kept."""
    folder = fleet.registry.with_name(name)
    shutil.copytree(fleet.registry, folder)
    return FolderTree(folder)


def change(path: Path, how: Callable[[dict[str, Any]], None]) -> None:
    """Change what is signed, and leave the signatures as they are."""
    document = json.loads(path.read_bytes())
    how(document["signed"])
    write_file(path, json.dumps(document).encode())


def metadata(fleet: FleetTrust, file: str) -> Path:
    return fleet.registry / layout.metadata(file)


def test_a_seal_that_the_threshold_signed_is_believed(
    fleet: FleetTrust, device: Device
) -> None:
    seal = fleet.publish("fashion", "1")
    assert read_seal(device.seal([fleet.tree], seal) or b"") == seal


def test_an_arbitrary_seal_in_place_of_the_signed_one_is_refused(
    fleet: FleetTrust, device: Device
) -> None:
    seal = fleet.publish("fashion", "1")
    named = fleet.repository.names("fashion")[0]
    evil = seal.model_copy(update={"sha256": "0" * 64, "chunks": ("0" * 64,)})
    data = evil.model_dump_json().encode().ljust(named.size_bytes)[: named.size_bytes]
    fleet.tree.write(layout.target_file(named.target, named.sha256), data)
    with pytest.raises(Untrusted, match=r"hash|length"):
        device.seal([fleet.tree], seal)


def test_metadata_changed_after_it_was_signed_is_refused(
    fleet: FleetTrust, device: Device
) -> None:
    seal = fleet.publish("fashion", "1")

    def redirect(signed: dict[str, Any]) -> None:
        signed["targets"]["fashion/1.1.json"]["hashes"]["sha256"] = "0" * 64

    change(metadata(fleet, "1.model.fashion.json"), redirect)
    with pytest.raises(Untrusted, match=r"model\.fashion was signed by 0/2"):
        device.seal([fleet.tree], seal)


@pytest.mark.parametrize(
    "file",
    [
        "timestamp.json",
        "2.snapshot.json",
        "2.root.json",
        "2.targets.json",
        "1.model.fashion.json",
    ],
)
def test_a_file_without_end_is_cut_off_at_its_limit(
    fleet: FleetTrust, device: Device, file: str
) -> None:
    fleet.publish("fashion", "1")
    asked: list[int] = []

    def read(path: str, offset: int, length: int) -> Piece:
        if path == layout.metadata(file):
            asked.append(length)
            return Piece(b"[" * length, 2**62)
        return fleet.tree.piece(path, offset, length)

    result = look(
        device.root_json,
        device.folder,
        [("endless", read)],
        clock_s=START_S,
        target=layout.seal_target("fashion", "1", 1),
    )
    with pytest.raises(Untrusted, match="longer than it may be"):
        result.check()
    role = file.removesuffix(".json").lstrip("0123456789.")
    assert sum(asked) <= 2 * roles.MAX_BYTES[roles.kind(role)] + 32 * 1024


def test_a_seal_without_end_is_cut_off_at_what_was_signed(
    fleet: FleetTrust, device: Device
) -> None:
    fleet.publish("fashion", "1")
    (named,) = fleet.repository.names("fashion")
    asked: list[int] = []

    def read(path: str, offset: int, length: int) -> Piece:
        if path == layout.target_file(named.target, named.sha256):
            asked.append(length)
            return Piece(b"{" * length, 2**62)
        return fleet.tree.piece(path, offset, length)

    result = look(
        device.root_json,
        device.folder,
        [("endless", read)],
        clock_s=START_S,
        target=named.target,
    )
    with pytest.raises(Untrusted, match="longer than it may be"):
        result.check()
    assert sum(asked) <= 2 * READ_BYTES


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_what_a_power_cut_left_of_the_metadata_is_got_over(
    fleet: FleetTrust, device: Device, left: float
) -> None:
    # python-tuf puts files in their places without waiting for the disk.
    seal = fleet.publish("fashion", "1")
    fleet.repository.rotate(roles.SNAPSHOT, None, fleet.key("snapshot-2"))
    fleet.sign()
    assert device.seal([fleet.tree], seal)
    kept = [each for each in device.folder.rglob("*") if each.is_file()]
    assert len(kept) >= 7
    for file in kept:
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * left)])
        assert device.seal([fleet.tree], seal), file


def test_metadata_nested_without_end_is_refused(
    fleet: FleetTrust, device: Device
) -> None:
    write_file(metadata(fleet, "timestamp.json"), b"[" * 8000)
    with pytest.raises(Untrusted):
        device.believes(fleet.tree)


def test_older_metadata_is_not_believed_after_newer(
    fleet: FleetTrust, device: Device
) -> None:
    fleet.publish("fashion", "1")
    old = copy_of(fleet, "old")
    second = fleet.publish("fashion", "2")
    device.seal([fleet.tree], second)
    with pytest.raises(Untrusted, match="must be >="):
        device.believes(old)


def test_an_old_snapshot_under_a_new_timestamp_is_refused(
    fleet: FleetTrust, device: Device
) -> None:
    fleet.publish("fashion", "1")
    old = metadata(fleet, "2.snapshot.json").read_bytes()
    fleet.publish("fashion", "2")
    write_file(metadata(fleet, "3.snapshot.json"), old)
    with pytest.raises(Untrusted, match="Expected snapshot version 3, got 2"):
        device.believes(fleet.tree)


def test_parts_of_different_moments_are_not_mixed(
    fleet: FleetTrust, device: Device
) -> None:
    fleet.publish("fashion", "1")
    old = metadata(fleet, "1.model.fashion.json").read_bytes()
    second = fleet.publish("fashion", "2")
    write_file(metadata(fleet, "2.model.fashion.json"), old)
    with pytest.raises(Untrusted, match=r"Expected model\.fashion v2, got v1"):
        device.seal([fleet.tree], second)


def test_a_freeze_is_noticed_by_the_clock(fleet: FleetTrust, device: Device) -> None:
    device.believes(fleet.tree)
    fleet.now_s += 8 * DAY_S
    with pytest.raises(Stale, match=r"timestamp\.json is expired"):
        device.believes(fleet.tree)


def test_a_device_without_a_clock_believes_what_is_fresh(
    fleet: FleetTrust, clockless: Device
) -> None:
    seal = fleet.publish("fashion", "1")
    assert clockless.seal([fleet.tree], seal)
    assert read_floor(clockless.folder).now_s(0.0) == START_S


def test_a_freeze_is_noticed_without_a_clock_by_what_was_signed_since(
    fleet: FleetTrust, clockless: Device
) -> None:
    frozen = copy_of(fleet, "frozen")
    clockless.believes(frozen)
    fleet.now_s += 8 * DAY_S
    fleet.repository.signing.renew(fleet.ring)
    clockless.believes(fleet.tree)
    # What it knew of the newest is lost, but not what time it is.
    shutil.rmtree(clockless.folder / "metadata")
    with pytest.raises(Stale):
        clockless.believes(frozen)


def test_a_freeze_is_noticed_without_a_clock_by_living_through_it(
    fleet: FleetTrust, clockless: Device
) -> None:
    clockless.believes(fleet.tree)
    clockless.believes(fleet.tree, elapsed_s=3 * DAY_S)
    with pytest.raises(Stale):
        clockless.believes(fleet.tree, elapsed_s=5 * DAY_S)


def test_a_device_without_a_clock_does_not_believe_what_expired_before_its_program(
    tmp_path: Path,
) -> None:
    fleet = FleetTrust(tmp_path / "old", now_s=1_700_000_000.0)
    device = Device(tmp_path / "device", fleet.root(), lambda: 0.0)
    with pytest.raises(Stale):
        device.believes(fleet.tree)


def test_one_stolen_key_of_two_signs_nothing(fleet: FleetTrust, device: Device) -> None:
    fleet.publish("fashion", "1")
    seal = fleet.draft("fashion", "2")
    settled = fleet.sign("targets-1")
    assert settled.shown == ()
    (waits,) = settled.waiting
    assert (waits.role, waits.missing, len(waits.may_sign)) == ("model.fashion", 1, 2)
    with pytest.raises(NotSigned):
        device.seal([fleet.tree], seal)


def test_one_stolen_key_with_both_online_keys_signs_no_model(
    fleet: FleetTrust, device: Device
) -> None:
    fleet.publish("fashion", "1")
    seal = fleet.draft("fashion", "2")
    fleet.sign("targets-1")
    draft = fleet.repository.drafts.read("model.fashion")
    assert draft is not None
    # The thief holds the server too, and shows it as if it were complete.
    fleet.repository.signing._show({"model.fashion": draft}, fleet.ring)
    with pytest.raises(Untrusted, match="signed by 1/2"):
        device.seal([fleet.tree], seal)


def test_a_stolen_timestamp_key_cannot_show_what_was_not_signed(
    fleet: FleetTrust, device: Device
) -> None:
    fleet.publish("fashion", "1")
    fast_forward(fleet, snapshot_version=99)
    with pytest.raises(SourceUnavailable, match=r"99\.snapshot\.json"):
        device.believes(fleet.tree)


def fast_forward(
    fleet: FleetTrust,
    *,
    version: int = 2**31,
    snapshot_version: int | None = None,
    at_s: float | None = None,
) -> None:
    """What a thief of the timestamp key can show."""
    repository, now_s = fleet.repository, fleet.now_s
    timestamp = repository.published.timestamp()
    assert timestamp is not None
    timestamp.signed.version = version
    if snapshot_version is not None:
        timestamp.signed.snapshot_meta.version = snapshot_version
    fleet.now_s = at_s or now_s
    repository.signing._sign_online(
        timestamp, roles.TIMESTAMP, repository.published.root(), fleet.ring
    )
    fleet.now_s = now_s
    fleet.tree.write(layout.metadata("timestamp.json"), timestamp.to_bytes())


def test_a_fast_forwarded_timestamp_is_recovered_from_by_rotation(
    fleet: FleetTrust, device: Device
) -> None:
    honest = copy_of(fleet, "honest")
    fast_forward(fleet)
    device.believes(fleet.tree)
    with pytest.raises(Untrusted, match="must be >="):
        device.believes(honest)
    shutil.copytree(honest.root, fleet.registry, dirs_exist_ok=True)
    (fleet.registry.parent / "trust" / "seen.json").unlink()
    fleet.repository.rotate(roles.TIMESTAMP, None, fleet.key("timestamp-2"))
    assert fleet.sign().shown == (roles.ROOT,)
    device.believes(fleet.tree)
    device.believes(fleet.tree)


def test_a_fast_forwarded_snapshot_is_recovered_from_by_rotation(
    fleet: FleetTrust, device: Device
) -> None:
    seal = fleet.publish("fashion", "1")
    snapshot = fleet.repository.published.snapshot()
    assert snapshot is not None
    snapshot.signed.version = 2**31
    snapshot.signed.meta["model.fashion.json"].version = 2**31
    fleet.repository.signing._sign_online(
        snapshot, roles.SNAPSHOT, fleet.repository.published.root(), fleet.ring
    )
    fleet.tree.write(
        layout.metadata(roles.file_name(roles.SNAPSHOT, 2**31)), snapshot.to_bytes()
    )
    fast_forward(fleet, snapshot_version=2**31)
    device.believes(fleet.tree)
    with pytest.raises(SourceUnavailable):
        device.seal([fleet.tree], seal)
    for role in roles.ONLINE:
        fleet.repository.rotate(role, None, fleet.key(f"{role}-2"))
    assert fleet.sign().shown == (roles.ROOT,)
    assert device.seal([fleet.tree], seal)


def test_time_that_a_stolen_timestamp_key_stamped_is_forgotten_with_the_key(
    fleet: FleetTrust, clockless: Device
) -> None:
    fast_forward(fleet, at_s=START_S + 50 * 365 * DAY_S)
    clockless.believes(fleet.tree)
    fleet.repository.rotate(roles.TIMESTAMP, None, fleet.key("timestamp-2"))
    fleet.sign()
    clockless.believes(fleet.tree)
    assert read_floor(clockless.folder).now_s(0.0) == START_S


def test_a_bundle_of_another_model_under_this_models_path_is_refused(
    fleet: FleetTrust, device: Device
) -> None:
    # Even the threshold of keys can make a mistake.
    seal = a_seal("digits", "1", 1)
    fleet.repository._draft_targets(
        "fashion", {"fashion/1.1.json": (seal.model_dump_json().encode(), False)}
    )
    fleet.sign()
    data = device.look(fleet.tree, target="fashion/1.1.json").target
    with pytest.raises(SealRejected, match="sealed is digits 1"):
        check_names(read_seal(data or b""), "fashion", "1", 1)


def test_a_models_role_names_nothing_of_another_model(
    fleet: FleetTrust, device: Device
) -> None:
    fleet.publish("digits", "1")
    data = a_seal("digits", "6", 6).model_dump_json().encode()
    fleet.repository._draft_targets("fashion", {"digits/6.6.json": (data, False)})
    fleet.sign()
    with pytest.raises(NotSigned):
        device.seal([fleet.tree], a_seal("digits", "6", 6))


def test_an_unsigned_version_that_a_broker_administrator_desires_is_not_signed(
    fleet: FleetTrust, device: Device
) -> None:
    fleet.publish("fashion", "1")
    fleet.draft("fashion", "2")
    with pytest.raises(NotSigned, match=r"fashion/2\.2\.json is not signed"):
        device.seal([fleet.tree], a_seal("fashion", "2", 2))
    with pytest.raises(NotSigned):
        device.seal([fleet.tree], a_seal("stranger", "1", 1))


def test_a_revoked_version_is_not_signed_any_more(
    fleet: FleetTrust, device: Device
) -> None:
    seal = fleet.publish("fashion", "1")
    fleet.publish("fashion", "2")
    assert [each.epoch for each in fleet.repository.revoke("fashion", "1")] == [1, 3]
    fleet.sign()
    with pytest.raises(NotSigned):
        device.seal([fleet.tree], seal)


def test_an_expired_root_is_refused_until_it_is_signed_anew(
    fleet: FleetTrust, device: Device
) -> None:
    device.believes(fleet.tree)
    fleet.now_s += 2 * 365 * DAY_S
    fleet.repository.signing.renew(fleet.ring)
    with pytest.raises(Stale, match=r"root\.json is expired"):
        device.believes(fleet.tree)
    fleet.repository.extend()
    fleet.sign()
    device.believes(fleet.tree)


def test_a_strangers_root_is_refused(
    fleet: FleetTrust, device: Device, tmp_path: Path
) -> None:
    stranger = FleetTrust(tmp_path / "stranger")
    with pytest.raises(Untrusted):
        device.believes(stranger.tree)
    fleet.tree.write(layout.metadata("2.root.json"), stranger.root())
    with pytest.raises(Untrusted, match="root was signed by 0/2"):
        device.believes(fleet.tree)


def test_a_source_that_lies_is_passed_over_for_one_that_tells_the_truth(
    fleet: FleetTrust, device: Device, tmp_path: Path
) -> None:
    stranger = FleetTrust(tmp_path / "stranger")
    seal = fleet.publish("fashion", "1")
    stranger.publish("fashion", "1", b"evil")
    target = layout.seal_target("fashion", "1", 1)
    found = device.look(stranger.tree, fleet.tree, target=target)
    assert found.source == "source1"
    assert read_seal(found.target or b"") == seal
    assert [each.source for each in found.failures] == ["source0"]


def test_a_source_that_was_frozen_is_passed_over_for_a_newer_one(
    fleet: FleetTrust, device: Device
) -> None:
    fleet.publish("fashion", "1")
    frozen = copy_of(fleet, "frozen")
    second = fleet.publish("fashion", "2")
    assert device.seal([frozen, fleet.tree], second)


def test_all_targets_keys_can_be_replaced_and_devices_follow(
    fleet: FleetTrust, device: Device
) -> None:
    seal = fleet.publish("fashion", "1")
    device.believes(fleet.tree)
    keys = fleet.repository.root().signed.roles[roles.TARGETS].keyids
    for number, old in enumerate(keys, start=4):
        new = fleet.key(f"targets-{number}")
        fleet.repository.rotate(roles.TARGETS, old, new)
    # The old keys cannot sign for the new ones.
    assert fleet.sign("root-1", "root-2", "targets-1", "targets-2").shown == ()
    device.believes(fleet.tree)
    assert set(fleet.sign("targets-4", "targets-6").shown) == {
        roles.ROOT,
        roles.TARGETS,
        "model.fashion",
    }
    assert device.seal([fleet.tree], seal)


def test_all_root_keys_can_be_replaced_and_devices_follow(
    fleet: FleetTrust, device: Device
) -> None:
    for number, old in enumerate(
        list(fleet.repository.root().signed.roles[roles.ROOT].keyids), start=4
    ):
        fleet.repository.rotate(roles.ROOT, old, fleet.key(f"root-{number}"))
    assert fleet.sign("root-4", "root-5", "root-6").shown == ()
    assert fleet.sign("root-1").shown == ()
    assert fleet.sign("root-2").shown == (roles.ROOT,)
    device.believes(fleet.tree)


def test_nothing_is_signed_on_top_of_a_registry_that_was_set_back(
    fleet: FleetTrust,
) -> None:
    fleet.publish("fashion", "1")
    old = copy_of(fleet, "old")
    fleet.publish("fashion", "2")
    shutil.rmtree(fleet.registry)
    old.root.rename(fleet.registry)
    # As the next command sees it.
    fleet.repository = Repository(
        fleet.tree, fleet.registry.parent / "trust", lambda: fleet.now_s
    )
    with pytest.raises(TrustRefused, match="somebody put an old one back"):
        fleet.publish("fashion", "3")
