"""What is desired, from sources of which one lies: another is asked, and soon."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.codec import encode
from broker.messages import MAX_READ_BYTES, Desired, DesiredModel
from bundle.source import NotThere, Piece, SourceUnavailable
from edge_agent.core.fit import PutOff
from edge_agent.loops.desired import MAX_DESIRED_BYTES, read_desired

MODEL = DesiredModel(model="fashion", version="2", generation=2)
SAID = encode(Desired(agent="cam-1", models=[MODEL]))
Says = Callable[[int, int], Piece]


class Told:
    """A source that answers as a test says."""

    def __init__(self, name: str, says: Says) -> None:
        self.name = name
        self.reads = 0
        self._says = says

    async def read(self, path: str, offset: int, length: int) -> Piece:
        self.reads += 1
        return self._says(offset, length)


def honest(offset: int, length: int) -> Piece:
    return Piece(SAID[offset : offset + length], len(SAID))


def trickles(offset: int, _length: int) -> Piece:
    return Piece(b"x", MAX_DESIRED_BYTES)


def ends_early(_offset: int, _length: int) -> Piece:
    return Piece(b"", len(SAID))


def tells_of_more(_offset: int, length: int) -> Piece:
    return Piece(b"x" * length, 2**62)


def gives_more(_offset: int, length: int) -> Piece:
    return Piece(b"x" * (MAX_DESIRED_BYTES + 1), length)


def has_none(_offset: int, _length: int) -> Piece:
    raise NotThere("there is no such file")


LIES: list[Says] = [trickles, ends_early, tells_of_more, gives_more]


@pytest.mark.parametrize("lie", LIES)
async def test_a_source_that_lies_of_what_is_desired_is_left_for_another(
    lie: Says,
) -> None:
    liar = Told("liar", lie)
    found = await read_desired([liar, Told("good", honest)], "cam-1")
    assert found == {"fashion": MODEL}
    assert liar.reads == 1


@pytest.mark.parametrize("lie", LIES)
async def test_with_liars_alone_it_is_unknown_and_not_nothing(lie: Says) -> None:
    with pytest.raises(SourceUnavailable, match="of liar"):
        await read_desired([Told("liar", lie), Told("new", has_none)], "cam-1")


async def test_what_is_longer_than_a_read_comes_in_several() -> None:
    said = SAID.ljust(2 * MAX_READ_BYTES + 1, b"\0")
    source = Told("good", lambda at, n: Piece(said[at : at + n], len(said)))
    with pytest.raises(PutOff, match="unreadable"):
        await read_desired([source], "cam-1")
    assert source.reads == 3
