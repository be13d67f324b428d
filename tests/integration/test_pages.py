"""GET over a real socket: what a prober, a browser and a stranger get."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import pytest

from lifecycle import pages
from lifecycle.page import Page
from lifecycle.pages import (
    MAX_CONNECTIONS,
    MAX_REQUEST_BYTES,
    CannotListen,
    Pages,
)
from tests.integration.pages import ask

pytestmark = pytest.mark.integration


def well() -> Page:
    return Page.text(HTTPStatus.OK, "well")


def broken() -> Page:
    raise ZeroDivisionError


def served() -> Pages:
    return Pages("127.0.0.1", 0, {"/well": well, "/broken": broken})


@pytest.mark.parametrize(
    ("line", "status", "body"),
    [
        (b"GET /well HTTP/1.1", 200, b"well\n"),
        (b"GET /well?x=1 HTTP/1.0", 200, b"well\n"),
        (b"HEAD /well HTTP/1.1", 200, b""),
        (b"GET /nowhere HTTP/1.1", 404, b"there is only /well, /broken\n"),
        (b"POST /well HTTP/1.1", 405, b"only GET\n"),
        (b"GET /broken HTTP/1.1", 500, b"ZeroDivisionError\n"),
        (b"nonsense", 400, b"illegal request line: bytearray(b'nonsense')\n"),
    ],
)
async def test_a_request_gets_its_page(line: bytes, status: int, body: bytes) -> None:
    async with served() as server:
        answer = await ask(server.port, line + b"\r\nHost: here\r\n\r\n")
    head, _, said = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert said == body


async def test_a_request_without_an_end_is_refused_at_its_limit() -> None:
    async with served() as server:
        endless = b"GET /well HTTP/1.1\r\n" + b"A: b\r\n" * MAX_REQUEST_BYTES
        try:
            answer = await ask(server.port, endless)
        except ConnectionError:
            answer = b"HTTP/1.1 431"  # refused before it had been sent
        assert answer.split()[1] == b"431"
        assert b"well" in await ask(
            server.port, b"GET /well HTTP/1.1\r\nHost: h\r\n\r\n"
        )


async def test_who_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "CONNECTION_S", 0.1)
    async with served() as server:
        assert await ask(server.port, b"GET /we") == b""


async def test_connections_are_bounded_and_free_again_when_one_ends() -> None:
    async with served() as server:
        held = [
            await asyncio.open_connection("127.0.0.1", server.port)
            for _ in range(MAX_CONNECTIONS)
        ]
        asked = b"GET /well HTTP/1.1\r\nHost: here\r\n\r\n"
        assert await _perhaps(server.port, asked) == b""
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(10):
            while b"well" not in await _perhaps(server.port, asked):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def _perhaps(port: int, request: bytes) -> bytes:
    try:
        return await ask(port, request)
    except ConnectionError:
        return b""


async def test_a_port_that_is_taken_is_named() -> None:
    async with served() as first:
        with pytest.raises(CannotListen, match=f"127.0.0.1:{first.port}"):
            async with Pages("127.0.0.1", first.port, {}):
                pass
