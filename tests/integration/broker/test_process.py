"""What is started here ends here, with all that it started itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from broker.process import alive, birth_of, end, spawn
from tests.waiting import until

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("timeout_s", [0.0, 5.0])
async def test_a_process_ends_with_those_that_it_started(
    tmp_path: Path, timeout_s: float
) -> None:
    child, leader = await _leader_with_child(tmp_path)
    await end({leader: birth_of(leader)}, timeout_s)
    assert not alive(leader)
    assert not alive(child)


async def test_orphans_of_a_process_that_died_by_itself_end_too(tmp_path: Path) -> None:
    child, leader = await _leader_with_child(tmp_path)
    birth = birth_of(leader)
    await end({leader: "another process that had this id"}, 0.0)
    assert alive(leader)
    assert alive(child)
    (tmp_path / "go").touch()
    await until(lambda: not alive(leader))
    assert alive(child)
    await end({leader: birth}, 0.0)
    assert not alive(child)


async def _leader_with_child(folder: Path) -> tuple[int, int]:
    shell = shutil.which("sh")
    assert shell is not None
    told = folder / "child"
    script = (
        f"sleep 60 & echo $! > {told}.new; mv {told}.new {told}; "
        f"while [ ! -e {folder}/go ]; do sleep 0.05; done"
    )
    leader = spawn([shell, "-c", script], {"PATH": "/usr/bin:/bin"}, folder / "log")
    await until(told.exists)
    return int(told.read_text()), leader
