from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from broker.codec import explain
from broker.messages import ID_PATTERN
from edge_agent.settings import AgentSettings


@pytest.fixture(autouse=True)
def nothing_else_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("OVERSPILL_AGENT_"):
            monkeypatch.delenv(name)


def test_an_agent_needs_no_setting_at_all() -> None:
    settings = AgentSettings()
    assert re.fullmatch(ID_PATTERN, settings.agent_id)
    assert settings.cloud_url is None
    assert settings.local_url is None
    assert settings.bundles == []
    assert settings.control_socket == settings.state_dir / "control.sock"


def test_bundles_in_the_environment_are_separated_as_in_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OVERSPILL_AGENT_BUNDLES", f"/a/tiny{os.pathsep}/b/small")
    assert AgentSettings().bundles == [Path("/a/tiny"), Path("/b/small")]
    monkeypatch.setenv("OVERSPILL_AGENT_BUNDLES", "/only")
    assert AgentSettings().bundles == [Path("/only")]


def test_models_that_may_not_be_captured_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OVERSPILL_AGENT_FORBID_CAPTURE", "fashion, faces")
    assert AgentSettings().forbid_capture == ["fashion", "faces"]
    monkeypatch.setenv("OVERSPILL_AGENT_FORBID_CAPTURE", "*")
    assert AgentSettings().forbid_capture == ["*"]
    with pytest.raises(ValidationError, match="model"):
        AgentSettings(forbid_capture=["fa*"])


def test_a_variable_left_empty_counts_as_not_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As `OVERSPILL_AGENT_CLOUD_URL=` stands in a file that a person fills in.
    for name in ("BUNDLES", "CLOUD_URL", "LOCAL_URL", "TRUSTED_ROOT", "AGENT_ID"):
        monkeypatch.setenv(f"OVERSPILL_AGENT_{name}", "")
    settings = AgentSettings()
    assert settings.bundles == []
    assert settings.cloud_url is None
    assert settings.local_url is None
    assert settings.trusted_root is None
    assert settings.agent_id


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERSPILL_AGENT_AGENT_ID", "from-environment")
    monkeypatch.setenv("OVERSPILL_AGENT_UPLINK_WINDOW", "7")
    settings = AgentSettings(agent_id="from-argument")
    assert settings.agent_id == "from-argument"
    assert settings.uplink_window == 7


def test_a_tilde_is_the_home_where_no_shell_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("OVERSPILL_AGENT_STATE_DIR", "~/agent")
    monkeypatch.setenv("OVERSPILL_AGENT_TRUSTED_ROOT", "~/keys")
    monkeypatch.setenv("OVERSPILL_AGENT_BUNDLES", "~/tiny:/b")
    settings = AgentSettings()
    assert settings.state_dir == Path("/home/somebody/agent")
    assert settings.trusted_root == Path("/home/somebody/keys")
    assert settings.bundles == [Path("/home/somebody/tiny"), Path("/b")]


def test_a_password_is_not_shown() -> None:
    settings = AgentSettings(
        cloud_url="mqtt://a:secret@cloud", local_url="mqtt://b:secret@local"
    )
    assert "secret" not in repr(settings)
    assert "secret" not in str(settings)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AGENT_ID", "Cam.1", "agent_id: String should match pattern"),
        ("AGENT_ID", "a/b", "agent_id"),
        ("EMBEDDED_PORT", "70000", "embedded_port: Input should be less than"),
        ("EMBEDDED_PORT", "mqtt", "embedded_port: Input should be a valid integer"),
        ("UPLINK_WINDOW", "0", "uplink_window"),
        ("DEFAULT_DEADLINE_S", "-1", "default_deadline_s"),
        ("DEFAULT_DEADLINE_S", "nan", "default_deadline_s"),
        ("RESEND_AFTER_S", "inf", "resend_after_s"),
        ("GROUP_COMMIT_MS", "soon", "group_commit_ms: Input should be a valid number"),
        ("OUTBOX_MAX_BYTES", "1", "outbox_max_bytes"),
        # What the wire cannot carry in one envelope can never be answered.
        ("MAX_PAYLOAD_BYTES", str(17 * 1024**2), "max_payload_bytes"),
        ("LOCAL", "perhaps", "local: Input should be a valid boolean"),
    ],
)
def test_a_bad_value_names_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"OVERSPILL_AGENT_{name}", value)
    with pytest.raises(ValidationError) as caught:
        AgentSettings()
    assert explain(caught.value).startswith(says)


def test_a_misspelt_argument_is_refused() -> None:
    wrong: dict[str, Any] = {"cloud": "mqtt://x"}
    with pytest.raises(ValidationError, match="cloud"):
        AgentSettings(**wrong)


@pytest.mark.parametrize("name", ["spill_budget", "spill_quota"])
@pytest.mark.parametrize("text", ["much", "0%", "120%", "5", "0MB/day", "5MB/year"])
def test_a_budget_or_quota_that_is_none_is_refused_at_the_start(
    name: str, text: str
) -> None:
    with pytest.raises(ValidationError, match=r"reads like|of nothing"):
        AgentSettings.model_validate({name: text})


def test_a_budget_and_a_quota_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OVERSPILL_AGENT_SPILL_BUDGET", "50MB/day")
    monkeypatch.setenv("OVERSPILL_AGENT_SPILL_QUOTA", "15%")
    settings = AgentSettings()
    assert (settings.spill_budget, settings.spill_quota) == ("50MB/day", "15%")
