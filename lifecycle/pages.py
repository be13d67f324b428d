"""Answer GET on a few paths: health, readiness, metrics. Not a web server.

In the event loop, so that an answer proves that it turns, and what a page reads needs no
lock: a thread (as prometheus_client brings one) would go on saying "well" beside a loop
that stands still. h11 reads the protocol; a framework would bring the agent ten times
the code for three paths. A connection carries one request. Requests, their time and
their number are bounded, so a stranger costs 8 KB and seconds, never the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, Self

import h11
import structlog

from lifecycle.page import Page

log = structlog.get_logger(__name__)

MAX_REQUEST_BYTES: Final = 8 * 1024
MAX_CONNECTIONS: Final = 16
CONNECTION_S: Final = 5.0
READ_BYTES: Final = 4096


class CannotListen(OSError):
    """The port is taken, or the host is not one of this machine."""


class Pages:
    """Serves `pages` while its block lasts.

    Args:
        host: the address to listen on.
        port: 0 takes a free one.
        pages: for each path, what makes its page; must not block.

    Attributes:
        port: the port it listens on, inside the block.

    Raises (on entry):
        CannotListen: nothing can listen there.
    """

    def __init__(
        self, host: str, port: int, pages: Mapping[str, Callable[[], Page]]
    ) -> None:
        self._host = host
        self.port = port
        self._pages = dict(pages)
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self.port, limit=MAX_REQUEST_BYTES
            )
        except OSError as error:
            raise CannotListen(
                f"cannot serve health and metrics at {self._host}:{self.port} "
                f"({error.strerror or error}): choose another http_host or http_port"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("health served", url=f"http://{self._host}:{self.port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            async with asyncio.timeout(CONNECTION_S):
                writer.write(await self._reply(reader))
                await writer.drain()
        except (OSError, TimeoutError) as error:
            log.debug("health client gone", error=str(error))
        finally:
            self._open.discard(writer)
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader) -> bytes:
        peer = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_BYTES)
        try:
            while (event := peer.next_event()) is h11.NEED_DATA:
                peer.receive_data(await reader.read(READ_BYTES))
        except h11.RemoteProtocolError as error:
            page = Page.text(HTTPStatus(error.error_status_hint), str(error))
            return _written(peer, page, whole=True)
        if not isinstance(event, h11.Request):
            return b""  # closed without a request
        return _written(peer, self._page(event), whole=event.method != b"HEAD")

    def _page(self, request: h11.Request) -> Page:
        if request.method not in {b"GET", b"HEAD"}:
            return Page.text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET")
        path = request.target.partition(b"?")[0].decode("ascii", "replace")
        make = self._pages.get(path)
        if make is None:
            known = ", ".join(self._pages)
            return Page.text(HTTPStatus.NOT_FOUND, f"there is only {known}")
        try:
            return make()
        except Exception as error:
            # All there is: it is somebody else's function, and whoever asks is told.
            log.exception("page failed", path=path)
            return Page.text(HTTPStatus.INTERNAL_SERVER_ERROR, type(error).__name__)


def _written(peer: h11.Connection, page: Page, *, whole: bool) -> bytes:
    head = h11.Response(
        status_code=page.status.value,
        reason=page.status.phrase.encode(),
        headers=[
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ],
    )
    # `send` gives None only for a ConnectionClosed.
    parts = [peer.send(head) or b""]
    if whole:
        parts.append(peer.send(h11.Data(data=page.body)) or b"")
    return b"".join(parts)
