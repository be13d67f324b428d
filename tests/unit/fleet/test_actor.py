"""Who the audit log says it was."""

from __future__ import annotations

import pytest

from fleet.adapters.actor import person


def test_a_person_is_a_user_on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("LOGNAME", "alice")
    user, _, machine = person().partition("@")
    assert user == "alice"
    assert machine


def test_under_sudo_it_is_who_called_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.setenv("SUDO_USER", "alice")
    assert person().startswith("alice@")
    assert person().endswith(" (as root)")
