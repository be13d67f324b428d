"""A publish that is cut short at any write: agents see the old or the new, never half."""

from __future__ import annotations

from pathlib import Path

import pytest
from typing_extensions import override

from bundle.folder_tree import FolderTree
from bundle.trust import roles
from bundle.trust.repository import Repository
from tests.trust import Device, FleetTrust


class Cut(Exception):
    """The power went."""


class CuttingTree(FolderTree):
    """A registry that takes so many writes and no more."""

    def __init__(self, root: Path, writes: int) -> None:
        super().__init__(root)
        self.left = writes

    @override
    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        if self.left == 0:
            raise Cut(path)
        self.left -= 1
        super().write(path, data, durable=durable)


@pytest.mark.parametrize("writes", range(6))
@pytest.mark.parametrize("rotated", [False, True])
def test_a_publish_cut_short_at_any_write_is_finished_by_the_next(
    tmp_path: Path, writes: int, rotated: bool
) -> None:
    fleet = FleetTrust(tmp_path / "fleet")
    first = fleet.publish("fashion", "1")
    device = Device(tmp_path / "device", fleet.root(), lambda: fleet.now_s)
    assert device.seal([fleet.tree], first)
    if rotated:
        fleet.repository.rotate(roles.SNAPSHOT, None, fleet.key("snapshot-2"))
    second = fleet.draft("fashion", "2")

    cutting = Repository(
        CuttingTree(fleet.registry, writes),
        tmp_path / "fleet/trust",
        lambda: fleet.now_s,
    )
    cutting.signing.sign(fleet.ring)
    cut = False
    try:
        cutting.signing.settle(fleet.ring)
    except Cut:
        cut = True
    assert cut == (writes < (4 if rotated else 3))
    if not rotated:
        # With new keys there is a moment in which a device waits, and says so.
        assert device.seal([fleet.tree], first)

    # Whoever comes next, with nothing in memory, goes on from the disk.
    after = Repository(fleet.tree, tmp_path / "fleet/trust", lambda: fleet.now_s)
    after.signing.sign(fleet.ring)
    assert not after.signing.settle(fleet.ring).waiting
    assert device.seal([fleet.tree], second)
    assert device.seal([fleet.tree], first)
