"""A fleet whose trust is set up, once for all tests: keys cost time."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from fleet.__main__ import app

MakeHome = Callable[[Path], Path]


@pytest.fixture(scope="session")
def _dev_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("dev") / "home"
    result = CliRunner().invoke(app, ["trust", "init", "--dev", "--home", str(home)])
    assert result.exit_code == 0, result.output
    return home


@pytest.fixture
def trusted_home(_dev_home: Path) -> MakeHome:
    """Makes a home in which `overspill trust init --dev` was run."""

    def make(home: Path) -> Path:
        for name in ("trust", "registry"):
            shutil.copytree(_dev_home / name, home / name)
        return home

    return make


@pytest.fixture
def logs_apart() -> Iterator[None]:
    """What the daemon logs is not mixed with what commands print, for one test.

    No logger remembers it: other tests look at what is logged.
    """
    structlog.configure(
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    yield
    structlog.reset_defaults()
