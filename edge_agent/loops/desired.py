"""Read what the fleet desires of this agent, from whoever may tell it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from broker.codec import WireError, decode
from broker.messages import MAX_READ_BYTES, Desired, DesiredModel
from bundle import layout
from bundle.source import NotThere, Source, SourceUnavailable
from edge_agent.core.fit import PutOff

MAX_DESIRED_BYTES: Final = 4 * 1024 * 1024


async def read_desired(
    sources: Collection[Source], agent: str
) -> dict[str, DesiredModel] | None:
    """What an agent should serve, by model; None when nothing was ever desired of it.

    Raises:
        SourceUnavailable: one that might know cannot be asked.
        PutOff: what came cannot be read.
    """
    path = f"{layout.DESIRED}/{agent}"
    data = await _read_whole(sources, path, MAX_DESIRED_BYTES)
    if data is None:
        return None
    try:
        envelope = decode(data, Desired)
    except WireError as error:
        raise PutOff(f"the desired state is unreadable: {error}") from error
    for desired in envelope.items:
        if desired.agent == agent:
            return {each.model: each for each in desired.models}
    return None


async def _read_whole(
    sources: Collection[Source], path: str, max_bytes: int
) -> bytes | None:
    """A small file of the registry, from the first source that has it.

    Returns:
        None when every source says that there is no such file.

    Raises:
        SourceUnavailable: one that might have it cannot be asked, or told nonsense.
    """
    unavailable: SourceUnavailable | None = None
    for source in sources:
        try:
            return await _read(source, path, max_bytes)
        except NotThere:
            continue
        except SourceUnavailable as error:
            unavailable = error
    if unavailable is not None:
        raise unavailable
    return None


async def _read(source: Source, path: str, max_bytes: int) -> bytes:
    data = b""
    while True:
        piece = await source.read(path, len(data), MAX_READ_BYTES)
        data += piece.data
        if max(len(data), piece.total_bytes) > max_bytes:
            raise SourceUnavailable(
                f"{path} of {source.name} is over {max_bytes} bytes"
            )
        if len(data) == piece.total_bytes:
            return data
        # Whoever gives a byte at a time would hold up every look.
        if len(piece.data) != MAX_READ_BYTES:
            raise SourceUnavailable(
                f"{path} of {source.name} was cut short, or changed while it was read"
            )
