"""The folder of a run: gone after it, unless somebody needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from overspill.demo.workplace import FolderInUse, workplace


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_temporary_folder_is_gone_afterwards(temporary: Path) -> None:
    with workplace(None, keep=False) as place:
        (place.folder / "log").touch()

    assert list(temporary.iterdir()) == []


def test_it_stays_when_asked_for() -> None:
    with workplace(None, keep=True) as place:
        (place.folder / "log").touch()

    assert (place.folder / "log").exists()


def test_it_stays_after_a_failure_which_says_where() -> None:
    with (
        pytest.raises(ValueError, match="broken") as caught,
        workplace(None, keep=False) as place,
    ):
        raise ValueError("broken")

    assert place.folder.exists()
    assert str(place.folder) in caught.value.__notes__[0]


def test_it_is_gone_after_an_interruption(temporary: Path) -> None:
    with pytest.raises(KeyboardInterrupt), workplace(None, keep=False):
        raise KeyboardInterrupt

    assert list(temporary.iterdir()) == []


def test_a_chosen_folder_is_kept_and_must_be_empty(temporary: Path) -> None:
    chosen = temporary / "a" / "b"
    with workplace(chosen, keep=False) as place:
        (place.folder / "log").touch()

    assert (chosen / "log").exists()
    with pytest.raises(FolderInUse, match="not empty"), workplace(chosen, keep=False):
        pass
