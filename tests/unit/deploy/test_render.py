"""What `deploy/render.py` writes is what topology.py says, and opens nothing by itself."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy import render

GOOD_ENV = """
OVERSPILL_DEPLOY_AGENTS=gateway-1,gateway-2
OVERSPILL_DEPLOY_DEVICES=cam1
OVERSPILL_DEPLOY_MODELS=fashion
OVERSPILL_DEPLOY_CLOUD_URL=mqtts://mqtt.example.org:8883
"""


@pytest.fixture
def env(tmp_path: Path) -> Path:
    file = tmp_path / ".env"
    file.write_text(GOOD_ENV)
    return file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "secrets"


def passwords(out: Path) -> dict[str, str]:
    return render.read_passwords(out / "passwords")


def definitions(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        (out / "rabbitmq" / "definitions.json").read_text()
    )
    return document


def hashes(document: dict[str, Any]) -> dict[str, str]:
    return {user["name"]: user["password_hash"] for user in document["users"]}


def opens(password_hash: str, password: str) -> bool:
    coded = base64.b64decode(password_hash)
    return hashlib.sha256(coded[:4] + password.encode()).digest() == coded[4:]


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(render.app, list(args))
    return result.exit_code, result.output


def test_committed_definitions_are_what_topology_says() -> None:
    assert render.REFERENCE.read_text() == render.as_text(
        render.reference_definitions()
    )
    assert run("reference", "--check")[0] == 0


def test_nobody_can_log_in_with_the_committed_definitions() -> None:
    committed = json.loads(render.REFERENCE.read_text())
    # RabbitMQ refuses an empty password and matches none with an empty hash; an
    # integration test asks a real one.
    assert set(hashes(committed).values()) == {""}


def test_a_stale_committed_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "definitions.json"
    stale.write_text(render.REFERENCE.read_text().replace("quorum", "classic"))
    monkeypatch.setattr(render, "REFERENCE", stale)
    code, said = run("reference", "--check")
    assert code == 1
    assert "render.py reference" in said


def test_every_user_gets_a_password_of_its_own(env: Path, out: Path) -> None:
    code, said = run("secrets", "--env", str(env), "--out", str(out))
    assert code == 0, said
    made = passwords(out)
    assert len(set(made.values())) == len(made) == 7
    for user, password_hash in hashes(definitions(out)).items():
        assert opens(password_hash, made[f"rabbitmq/{user}"])
        assert not opens(password_hash, "")
    assert not any(password in said for password in made.values())


def test_only_the_owner_may_enter_the_folder_of_secrets(env: Path, out: Path) -> None:
    run("secrets", "--env", str(env), "--out", str(out))
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    for name in ("passwords", "worker.env", "fleet.env", "agents/gateway-2.env"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600
    # The brokers run under ids of their own and must read what is mounted for them.
    for name in ("rabbitmq/definitions.json", "mosquitto/passwords"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o644
        assert stat.S_IMODE((out / name).parent.stat().st_mode) == 0o755


def test_a_second_run_keeps_passwords_and_a_new_agent_gets_one(
    env: Path, out: Path
) -> None:
    run("secrets", "--env", str(env), "--out", str(out))
    before = passwords(out)
    env.write_text(GOOD_ENV.replace("gateway-2", "gateway-2,gateway-3"))
    code, said = run("secrets", "--env", str(env), "--out", str(out))
    assert code == 0
    after = passwords(out)
    assert after.keys() - before.keys() == {"rabbitmq/gateway-3"}
    assert {name: after[name] for name in before} == before
    assert "1 new" in said
    assert "gateway-3" in hashes(definitions(out))


def test_an_operators_own_password_is_used(env: Path, out: Path) -> None:
    out.mkdir()
    (out / "passwords").write_text("# mine\nrabbitmq/worker=correct-horse-battery\n")
    assert run("secrets", "--env", str(env), "--out", str(out))[0] == 0
    assert opens(hashes(definitions(out))["worker"], "correct-horse-battery")
    assert "worker:correct-horse-battery@" in (out / "worker.env").read_text()


def test_an_agent_taken_out_is_named_because_rabbitmq_keeps_it(
    env: Path, out: Path
) -> None:
    run("secrets", "--env", str(env), "--out", str(out))
    env.write_text(GOOD_ENV.replace(",gateway-2", ""))
    _, said = run("secrets", "--env", str(env), "--out", str(out))
    assert "delete_user gateway-2" in said
    assert "gateway-2" not in hashes(definitions(out))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("OVERSPILL_DEPLOY_AGENTS=worker", "another RabbitMQ user"),
        ("OVERSPILL_DEPLOY_AGENTS=Gateway.1", "not a valid id"),
        ("OVERSPILL_DEPLOY_AGENTS=a,a", "twice"),
        ("OVERSPILL_DEPLOY_DEVICES=agent", "agent's own name"),
        ("OVERSPILL_DEPLOY_CLOUD_URL=http://example.org", "not an address"),
        ("OVERSPILL_DEPLOY_CLOUD_URL=mqtt://a:b@example.org", "no user"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_and_nothing_is_written(
    tmp_path: Path, out: Path, wrong: str, named: str
) -> None:
    env = tmp_path / "wrong.env"
    env.write_text(wrong + "\n")
    code, said = run("secrets", "--env", str(env), "--out", str(out))
    assert code == 2
    assert named in said
    assert wrong.partition("=")[0] in said
    assert not out.exists()


@pytest.mark.parametrize("weak", ["short", "has a space in it", "slash/and:colon@host"])
def test_a_password_that_would_break_a_url_is_refused(
    env: Path, out: Path, weak: str
) -> None:
    out.mkdir()
    (out / "passwords").write_text(f"rabbitmq/admin={weak}\n")
    code, said = run("secrets", "--env", str(env), "--out", str(out))
    assert code == 2
    assert "line 1" in said
    assert weak not in said


def test_without_an_env_file_it_says_how_to_make_one(tmp_path: Path, out: Path) -> None:
    code, said = run("secrets", "--env", str(tmp_path / "none"), "--out", str(out))
    assert code == 2
    assert ".env.example" in said
