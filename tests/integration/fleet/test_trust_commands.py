"""What an operator types to set up trust, to sign, and to replace a key."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bundle.folder_tree import FolderTree
from bundle.seal import read_seal
from bundle.trust import NotSigned, roles
from fleet.__main__ import app
from fleet.adapters.state.database import FleetDatabase
from fleet.app import Fleet
from fleet.settings import FleetSettings
from lifecycle.clock import FakeClock, SystemClock
from tests.trust import Device, a_seal

Say = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(tmp_path / "home"))
    for name in ("AMQP_URL", "PASSPHRASE", "PASSPHRASE_FILE"):
        monkeypatch.delenv(f"OVERSPILL_FLEET_{name}", raising=False)
    return tmp_path / "home"


@pytest.fixture
def say(home: Path) -> Say:
    return lambda *words: CliRunner().invoke(app, [str(each) for each in words])


def done(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def failure(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return result.stderr


def a_bundle(folder: Path, version: str) -> Path:
    folder.mkdir()
    (folder / "m.tflite").write_bytes(version.encode() * 100)
    manifest = {
        "format": 1,
        "name": "fashion",
        "version": version,
        "model_file": "m.tflite",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def a_device(home: Path, folder: Path) -> Device:
    root = (home / "trust" / "root.json").read_bytes()
    return Device(folder, root, lambda: 0.0)


def test_without_trust_a_publish_says_what_to_run(say: Say, tmp_path: Path) -> None:
    said = failure(say("model", "publish", a_bundle(tmp_path / "1", "1")))
    assert "overspill trust init" in said
    assert "--dev" in said
    assert "overspill trust init" in failure(say("trust", "status"))


@pytest.mark.parametrize(
    "words",
    [["status"], ["sign"], ["rotate", "snapshot"], ["revoke", "fashion", "1"]],
    ids=" ".join,
)
def test_without_trust_each_command_says_how_to_begin(
    say: Say, words: list[str]
) -> None:
    assert "overspill trust init" in failure(say("trust", *words))


def test_a_key_that_was_named_and_did_not_sign_is_a_failure(
    say: Say, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERSPILL_FLEET_PASSPHRASE", "open sesame")
    say("trust", "init")
    offline = (home / "trust" / "offline").rename(tmp_path / "safe")
    say("model", "publish", a_bundle(tmp_path / "1", "1"))
    absent = tmp_path / "absent.key"
    assert f"{absent}: no key is there" in failure(
        say("trust", "sign", "--key", absent)
    )
    assert "needs 2 more" in say("trust", "sign").stderr

    key = offline / "targets-1.key"
    monkeypatch.setenv("OVERSPILL_FLEET_PASSPHRASE", "another")
    told = say("trust", "sign", "--key", key)
    assert told.exit_code == 1
    assert "passphrase is another" in told.stderr
    told = say("trust", "sign", "--key", key, "--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout)["locked"].keys() == {"targets-1"}

    drafts = home / "trust" / "drafts"
    away = ("trust", "sign", "--drafts")
    assert "no key is there" in failure(say(*away, drafts, "--key", absent))
    (tmp_path / "none").mkdir()
    assert "holds no draft" in failure(say(*away, tmp_path / "none", "--key", key))


def test_a_mistake_about_a_key_is_told_by_what_it_is(
    say: Say, home: Path, tmp_path: Path
) -> None:
    told = failure(say("trust", "key", tmp_path / "nowhere" / "a.key", "--dev"))
    assert "there is no folder" in told
    told = failure(say("trust", "init", "--root", tmp_path / "absent.pub", "--dev"))
    assert told.endswith("absent.pub: No such file or directory\n")
    assert "not a public key" not in told


def test_a_version_that_waits_for_signatures_is_not_called_unknown(
    say: Say, home: Path, tmp_path: Path
) -> None:
    say("trust", "init", "--dev")
    say("model", "publish", a_bundle(tmp_path / "1", "1"))
    (home / "trust" / "offline").rename(tmp_path / "safe")
    say("model", "publish", a_bundle(tmp_path / "2", "2"))
    told = failure(say("rollout", "start", "fashion", "2"))
    assert "fashion 2 still waits for signatures" in told
    assert "overspill trust status" in told


def test_a_draft_that_is_damaged_says_how_to_be_rid_of_it(say: Say, home: Path) -> None:
    say("trust", "init", "--dev")
    (home / "trust" / "drafts" / "model.fashion.json").write_text("{}")
    told = failure(say("trust", "status"))
    assert "model.fashion.json" in told
    assert "delete it" in told


def test_keys_for_development_are_made_in_one_step_and_said_loudly(
    say: Say, home: Path, tmp_path: Path
) -> None:
    result = say("trust", "init", "--dev")
    assert result.exit_code == 0, result.output
    assert "THESE KEYS ARE FOR DEVELOPMENT" in result.stderr
    for key in (home / "trust").rglob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    assert "already" in failure(say("trust", "init", "--dev"))
    published = done(say("model", "publish", a_bundle(tmp_path / "1", "1"), "--json"))
    assert published["visible"]
    assert say("trust", "status").exit_code == 0


def test_real_keys_need_a_passphrase(
    say: Say, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "OVERSPILL_FLEET_PASSPHRASE" in failure(say("trust", "init"))
    monkeypatch.setenv("OVERSPILL_FLEET_PASSPHRASE", "open sesame")
    made = done(say("trust", "init", "--json"))["made"]
    assert len(made) == 8
    assert all(b"ENCRYPTED" in Path(each).read_bytes() for each in made)
    assert done(say("trust", "status", "--json"))["waiting"] == []
    monkeypatch.delenv("OVERSPILL_FLEET_PASSPHRASE")
    rotated = done(say("trust", "rotate", "snapshot", "--dev", "--json"))
    assert "is encrypted" in rotated["locked"]["root-1"]
    assert rotated["waiting"][0]["missing"] == 2


def test_a_passphrase_file_that_others_can_read_is_refused(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "passphrase"
    file.write_text("open sesame\n")
    file.chmod(0o644)
    monkeypatch.setenv("OVERSPILL_FLEET_PASSPHRASE_FILE", str(file))
    assert "chmod 600" in failure(say("trust", "init"))
    file.chmod(0o600)
    assert say("trust", "init").exit_code == 0
    monkeypatch.delenv("OVERSPILL_FLEET_PASSPHRASE_FILE")
    monkeypatch.setenv("OVERSPILL_FLEET_PASSPHRASE", "another")
    assert "passphrase is another" in say("trust", "rotate", "snapshot").stderr


def test_a_ceremony_of_holders_on_machines_of_their_own(
    say: Say, home: Path, tmp_path: Path
) -> None:
    holders = [f"{role}-{n}" for role in ("root", "targets") for n in (1, 2, 3)]
    for holder in holders:
        (tmp_path / holder).mkdir()
        say("trust", "key", tmp_path / holder / f"{holder}.key", "--dev")
    given = [
        word
        for holder in holders
        for word in (f"--{holder[:-2]}", tmp_path / holder / f"{holder}.pub")
    ]
    begun = done(say("trust", "init", *given, "--dev", "--json"))
    assert [Path(each).stem for each in begun["made"]] == ["snapshot", "timestamp"]
    assert [each["missing"] for each in begun["waiting"]] == [2, 2]
    assert say("trust", "status").exit_code == 2

    # Each holder signs a copy of the drafts, and it is brought back.
    drafts = home / "trust" / "drafts"
    for holder in ("root-1", "root-3", "targets-1", "targets-2"):
        copy = tmp_path / holder / "drafts"
        shutil.copytree(drafts, copy)
        key = tmp_path / holder / f"{holder}.key"
        assert say("trust", "sign", "--drafts", copy, "--key", key).exit_code == 0
        shutil.copytree(copy, drafts, dirs_exist_ok=True)
    signed = done(say("trust", "sign", "--json"))
    assert signed["shown"] == ["root", "targets"]
    assert say("trust", "status").exit_code == 0

    published = say("model", "publish", a_bundle(tmp_path / "1", "1"))
    assert "model fashion needs 2 more signature(s)" in published.stderr
    assert "overspill trust sign --key FILE" in published.stderr
    device = a_device(home, tmp_path / "device")
    tree, seal = FolderTree(home / "registry"), a_seal("fashion", "1", 1)
    with pytest.raises(NotSigned):
        device.seal([tree], seal)
    keys = [tmp_path / f"targets-{n}" / f"targets-{n}.key" for n in (1, 3)]
    say("trust", "sign", "--key", keys[0])
    (listed,) = done(say("model", "list", "--json"))
    assert listed["state"] == "draft"
    say("trust", "sign", "--key", keys[1])
    assert device.seal([tree], seal)
    (listed,) = done(say("model", "list", "--json"))
    assert listed["state"] == "signed"


def test_a_way_back_is_signed_with_each_version_and_a_revoked_one_is_gone(
    say: Say, home: Path, tmp_path: Path
) -> None:
    say("trust", "init", "--dev")
    first = done(say("model", "publish", a_bundle(tmp_path / "1", "1"), "--json"))
    second = done(say("model", "publish", a_bundle(tmp_path / "2", "2"), "--json"))
    assert (first["epoch"], first["way_back"]) == (1, None)
    assert (second["epoch"], second["way_back"]) == (2, {"version": "1", "epoch": 3})
    device = a_device(home, tmp_path / "device")
    tree = FolderTree(home / "registry")
    # Agents are told which it is: it bars less than what is published in an epoch.
    back = device.seal([tree], a_seal("fashion", "1", 3))
    own = device.seal([tree], a_seal("fashion", "2", 2))
    assert read_seal(back or b"").way_back
    assert not read_seal(own or b"").way_back
    assert done(say("trust", "revoke", "fashion", "2", "--json"))["epochs"] == [2]
    with pytest.raises(NotSigned):
        device.seal([tree], a_seal("fashion", "2", 2))
    third = done(
        say(
            "model",
            "publish",
            a_bundle(tmp_path / "3", "3"),
            "--back-to",
            "1",
            "--json",
        )
    )
    assert (third["epoch"], third["way_back"]) == (4, {"version": "1", "epoch": 5})
    assert "no fashion 9" in failure(say("trust", "revoke", "fashion", "9"))


def test_a_lost_key_is_replaced_and_agents_follow(
    say: Say, home: Path, tmp_path: Path
) -> None:
    say("trust", "init", "--dev")
    say("model", "publish", a_bundle(tmp_path / "1", "1"))
    device = a_device(home, tmp_path / "device")
    (home / "trust" / "offline" / "targets-2.key").unlink()
    rotated = say("trust", "rotate", "targets", "--old", "targets-2", "--dev", "--json")
    assert (done(rotated)["old"], done(rotated)["new"]) == ("targets-2", "targets-4")
    assert device.seal([FolderTree(home / "registry")], a_seal("fashion", "1", 1))
    assert "say which key" in failure(say("trust", "rotate", "root"))
    assert "is no role" in failure(say("trust", "rotate", "toor", "--old", "x"))


def test_everything_is_signed_for_another_term(say: Say, home: Path) -> None:
    say("trust", "init", "--dev")
    renewed = done(say("trust", "sign", "--renew", "--json"))
    assert renewed["shown"] == ["root", "targets"]
    versions = {
        each["role"]: each["version"]
        for each in done(say("trust", "status", "--json"))["roles"]
    }
    assert (versions["root"], versions["targets"]) == (2, 2)


@pytest.mark.parametrize(("days_left", "code"), [(61, 0), (59, 2)])
def test_what_expires_within_two_months_is_said_by_the_exit_code(
    days_left: int, code: int, say: Say, home: Path
) -> None:
    ago_ms = round((roles.LIFE_S[roles.TARGETS] - days_left * roles.DAY_S) * 1000)
    clock = FakeClock(wall_ms=SystemClock().wall_ms() - ago_ms)
    with Fleet(FleetSettings(home=home), clock) as fleet:
        fleet.trust.begin(root=(), targets=(), passphrase=None)
        fleet.sign()
    # The daemon has seen to the rest meanwhile.
    assert say("trust", "sign").exit_code == 0
    said = say("trust", "status")
    assert said.exit_code == code, said.output
    assert ("overspill trust sign --renew" in said.stderr) == (code == 2)


def test_what_was_done_to_trust_is_in_the_audit_log(
    say: Say, home: Path, tmp_path: Path
) -> None:
    say("trust", "init", "--dev")
    say("model", "publish", a_bundle(tmp_path / "1", "1"))
    say("trust", "rotate", "timestamp", "--dev")
    with (
        FleetDatabase(str(home / "fleet.db")) as database,
        database.reading() as ledger,
    ):
        done_ = [each.what for each in ledger.audit()]
    assert [each for each in done_ if each != "trust.sign"] == [
        "trust.init",
        "model.publish",
        "trust.rotate",
    ]


def test_a_passphrase_is_asked_for_on_a_terminal(home: Path, tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    command = subprocess.Popen(
        [sys.executable, "-m", "fleet", "trust", "key", str(tmp_path / "a.key")],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        start_new_session=True,
    )
    os.close(terminal)
    for prompt in (b"a.key: ", b"confirmation: "):
        heard = b""
        while not heard.endswith(prompt):
            heard += os.read(main, 1)
        os.write(main, b"open sesame\n")
    said, _ = command.communicate(timeout=50)
    os.close(main)
    assert command.returncode == 0
    assert "made" in said
    assert b"ENCRYPTED" in (tmp_path / "a.key").read_bytes()
