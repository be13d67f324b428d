"""The agent's side: verified in a child, over sources that may lie, stall or be down."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typing_extensions import override

from bundle import layout
from bundle.folder_tree import FolderTree
from bundle.source import NotThere, Piece, Source, SourceUnavailable
from bundle.trust import NotSigned, Stale
from bundle.trust.client import read_floor
from edge_agent.adapters.trusted_seals import TrustedSeals
from lifecycle.clock import SystemClock
from tests.trust import START_S, FleetTrust

pytestmark = pytest.mark.timeout(120)


class FleetClock(SystemClock):
    """The fleet's time, as a device's clock tells it."""

    def __init__(self, fleet: FleetTrust) -> None:
        self._fleet = fleet

    @override
    def wall_ms(self) -> int:
        return int(self._fleet.now_s * 1000)


class FolderSource:
    """A folder as a source, that remembers what it was asked."""

    def __init__(self, tree: FolderTree, name: str = "folder") -> None:
        self.name = name
        self.tree = tree
        self.asked: list[str] = []

    async def read(self, path: str, offset: int, length: int) -> Piece:
        self.asked.append(path)
        return self.tree.piece(path, offset, length)


class Silent:
    """A source that never answers, or cannot."""

    name = "silent"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def read(self, path: str, offset: int, length: int) -> Piece:
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()
        raise AssertionError


@pytest.fixture
def fleet(tmp_path: Path) -> FleetTrust:
    return FleetTrust(tmp_path / "fleet")


@pytest.fixture
def trusting(fleet: FleetTrust, tmp_path: Path) -> Callable[..., TrustedSeals]:
    root = tmp_path / "root.json"
    root.write_bytes(fleet.root())

    def make(*sources: Source, deadline_s: float = 30.0) -> TrustedSeals:
        return TrustedSeals(
            root,
            tmp_path / "trust",
            sources,
            clock=FleetClock(fleet),
            deadline_s=deadline_s,
        )

    return make


async def test_a_signed_seal_comes_and_the_newest_is_asked_once_a_refresh(
    fleet: FleetTrust, trusting: Callable[..., TrustedSeals]
) -> None:
    first, second = fleet.publish("fashion", "1"), fleet.publish("fashion", "2")
    source = FolderSource(fleet.tree)
    seals = trusting(source)
    await seals.refresh()
    assert await seals.seal_for("fashion", "1", 1) == first
    assert await seals.seal_for("fashion", "2", 2) == second
    assert source.asked.count(layout.metadata("timestamp.json")) == 1
    assert source.asked.count(layout.metadata("2.root.json")) == 1


async def test_a_seal_is_refused_by_name_when_it_is_not_signed(
    fleet: FleetTrust, trusting: Callable[..., TrustedSeals], tmp_path: Path
) -> None:
    fleet.publish("fashion", "1")
    seals = trusting(FolderSource(fleet.tree))
    with pytest.raises(NotSigned, match=r"folder: fashion/9\.9\.json is not signed"):
        await seals.seal_for("fashion", "9", 9)
    fleet.now_s += 30 * 86_400
    with pytest.raises(Stale, match=r"timestamp\.json is expired"):
        await seals.refresh()
    assert read_floor(tmp_path / "trust").stamped_s >= START_S


async def test_sources_are_asked_in_turn_until_one_tells_the_truth(
    fleet: FleetTrust, trusting: Callable[..., TrustedSeals], tmp_path: Path
) -> None:
    stranger = FleetTrust(tmp_path / "stranger")
    stranger.publish("fashion", "1", b"evil")
    seal = fleet.publish("fashion", "1")
    seals = trusting(
        Silent(SourceUnavailable("no link")),
        FolderSource(stranger.tree, "liar"),
        FolderSource(fleet.tree),
    )
    assert await seals.seal_for("fashion", "1", 1) == seal


async def test_a_source_that_says_when_to_come_back_is_quoted(
    trusting: Callable[..., TrustedSeals],
) -> None:
    seals = trusting(Silent(SourceUnavailable("busy", retry_after_s=7.0)))
    with pytest.raises(SourceUnavailable, match="silent: busy") as raised:
        await seals.refresh()
    assert raised.value.retry_after_s == 7.0


async def test_a_registry_without_trust_is_no_source(
    trusting: Callable[..., TrustedSeals],
) -> None:
    seals = trusting(Silent(NotThere("there is no such file")))
    with pytest.raises(SourceUnavailable, match=r"no metadata/timestamp\.json"):
        await seals.refresh()


async def test_a_source_that_stalls_is_ended_by_the_deadline(
    trusting: Callable[..., TrustedSeals],
) -> None:
    seals = trusting(Silent(), deadline_s=2.0)
    with pytest.raises(SourceUnavailable, match="not refreshed in 2 s"):
        await seals.refresh()


class Slow(FolderSource):
    """A source that answers each question at the last moment."""

    def __init__(self, tree: FolderTree, wait_s: float) -> None:
        super().__init__(tree, "slow")
        self.wait_s = wait_s

    @override
    async def read(self, path: str, offset: int, length: int) -> Piece:
        self.asked.append(path)
        await asyncio.sleep(self.wait_s)
        raise NotThere(path) if path.endswith(".root.json") else SourceUnavailable(path)


@pytest.mark.parametrize("wait_s", [3.0, 60.0])
async def test_a_slow_source_leaves_time_to_ask_another(
    fleet: FleetTrust, trusting: Callable[..., TrustedSeals], wait_s: float
) -> None:
    seal = fleet.publish("fashion", "1")
    slow, good = Slow(fleet.tree, wait_s), FolderSource(fleet.tree, "good")
    trust = trusting(slow, good, deadline_s=8.0)
    assert await trust.seal_for("fashion", "1", 1) == seal


async def test_nothing_but_trust_metadata_is_read_for_the_child(
    fleet: FleetTrust, trusting: Callable[..., TrustedSeals]
) -> None:
    fleet.publish("fashion", "1")
    source = FolderSource(fleet.tree)
    await trusting(source).seal_for("fashion", "1", 1)
    folders = {path.split("/")[0] for path in source.asked}
    assert folders == {layout.METADATA, layout.TARGETS}


def test_the_agent_itself_imports_neither_tuf_nor_cryptography() -> None:
    code = (
        "import sys, edge_agent.adapters.trusted_seals;"
        "print([m for m in ('tuf', 'securesystemslib', 'cryptography', 'urllib3')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_a_source_that_lags_has_no_last_word_while_another_cannot_be_asked(
    fleet: FleetTrust, trusting: Callable[..., TrustedSeals]
) -> None:
    fleet.publish("fashion", "1")
    lags = FolderSource(fleet.tree, "lags")
    seals = trusting(lags, Silent(SourceUnavailable("no route")))
    with pytest.raises(SourceUnavailable, match=r"2\.2\.json is not signed.*no route"):
        await seals.seal_for("fashion", "2", 2)
