"""Who may visit a fleet, read from the files that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overspill.simulate.guests import BadGuests, Guests, invite

URL = "mqtts://broker.example:8883?ca_file=/ca.pem"


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """What suffices."""
    passwords = tmp_path / "passwords"
    passwords.write_text(
        "admin=secret\n# of the fleet\n\nsim-2=two\nsim-1=o/n@e=1\n"
        "mosquitto/agent=other\nagent-1=real\n"
    )
    root = tmp_path / "root.json"
    root.write_text(json.dumps({"signed": {"_type": "root"}}))
    return {
        "broker": URL,
        "passwords": passwords,
        "prefix": "sim-",
        "agents": 2,
        "root": root,
        "model": "fashion",
        "serving": None,
    }


def bundle(tmp_path: Path, name: str) -> Path:
    (tmp_path / "manifest.json").write_text(json.dumps({"name": name, "version": "7"}))
    return tmp_path


def test_each_agent_connects_as_itself_and_only_names_with_the_prefix_do(
    given: dict[str, Any], tmp_path: Path
) -> None:
    serving = bundle(tmp_path, "fashion")
    assert invite(**{**given, "serving": serving}) == Guests(
        broker=URL,
        urls=(
            "mqtts://sim-1:o%2Fn%40e%3D1@broker.example:8883?ca_file=/ca.pem",
            "mqtts://sim-2:two@broker.example:8883?ca_file=/ca.pem",
        ),
        root=given["root"],
        model="fashion",
        serving=serving,
        version="7",
    )


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"passwords": None}, "--passwords is missing"),
        ({"passwords": Path("/nowhere")}, "/nowhere cannot be read"),
        ({"root": None}, "--root is missing"),
        ({"root": Path("/dev/null")}, "no root of a fleet"),
        ({"model": None}, "--model is missing"),
        ({"agents": 3}, "3 agents need as many identities, and 2 are known"),
        ({"prefix": "robot-"}, "and 0 are known whose names begin with 'robot-'"),
        ({"broker": "mqtt://who:what@broker.example"}, "names a user"),
        ({"broker": "amqp://broker.example"}, "does not name an MQTT broker"),
        ({"broker": "/nowhere"}, "neither the URL of a broker"),
        ({"serving": Path("/nowhere")}, "no folder of a bundle"),
    ],
    ids=str,
)
def test_what_is_missing_is_refused_with_where_it_comes_from(
    given: dict[str, Any], missing: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadGuests, match=said) as refused:
        invite(**{**given, **missing})
    assert "what@" not in str(refused.value)


def test_agents_come_with_a_bundle_of_the_model_that_they_serve(
    given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(BadGuests, match="holds a bundle of other, not of fashion"):
        invite(**{**given, "serving": bundle(tmp_path, "other")})
