"""The registry over HTTPS: any server of static files that answers ranges.

The standard library's client, in threads: it costs an agent at rest nothing, where
urllib3 or aiohttp would cost it megabytes. The server's certificate is verified, no
redirect is followed, and nothing is read beyond what was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from bundle import layout
from bundle.source import NotThere, Piece, SourceUnavailable
from edge_agent.adapters.own_threads import OwnThreads

READ_BYTES: Final = 64 * 1024
MAX_RETRY_AFTER_S: Final = 3600.0
_RANGE: Final = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})\Z")
_SECONDS: Final = re.compile(r"\d{1,6}\Z")


class BadRegistryUrl(ValueError):
    """A URL that does not name a registry; says what to write instead."""


class HttpsSource:
    """Files of the registry below one URL.

    Args:
        url: `https://host/path`; plain http only to this machine itself.
        ca_file: who may sign the server's certificate; None: the system's own.
        timeout_s: for one range from connecting to its last byte.
        connections: kept open while they are of use.

    Raises:
        BadRegistryUrl: `url` is not such a URL.
        OSError: `ca_file` cannot be read, or holds no certificate.
    """

    name = "https"

    def __init__(
        self,
        url: str,
        *,
        ca_file: Path | None = None,
        timeout_s: float = 20.0,
        connections: int = 4,
    ) -> None:
        parts = urlsplit(url)
        local = parts.hostname in {"127.0.0.1", "::1", "localhost"}
        if parts.scheme not in {"https", *({"http"} if local else ())}:
            raise BadRegistryUrl(f"{url!r}: write https://host/path of the registry")
        if not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
            raise BadRegistryUrl(f"{url!r}: write https://host/path, and nothing more")
        self._host, self._port = parts.hostname, parts.port
        self._folder = parts.path.rstrip("/")
        self._context = _context(ca_file) if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._idle: list[http.client.HTTPConnection] = []
        self._threads = OwnThreads(connections, "https-source")

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """At most `length` bytes of the file from `offset` on; fewer only at its end.

        Raises:
            NotThere: the server says so, or it is no public file of a registry.
            SourceUnavailable: not reached, not verified, or not in time.
        """
        if not layout.is_public(path):
            raise NotThere(f"{path} is not served over HTTPS")
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._threads.free()
        except TimeoutError:
            raise SourceUnavailable(
                f"all connections to {self._host} wait for an answer"
            ) from None
        connection = self._idle.pop() if self._idle else self._new()
        kept = False
        try:
            async with asyncio.timeout(self._timeout_s + 1.0):
                piece = await self._threads.run(
                    lambda: self._read(connection, path, offset, length)
                )
            kept = connection.sock is not None
        except TimeoutError:
            raise SourceUnavailable(self._too_slow()) from None
        except RuntimeError as error:
            raise SourceUnavailable(f"no thread to read with: {error}") from error
        finally:
            if kept:
                self._idle.append(connection)
            else:
                # Also what a thread still waits for, when nobody waits for it.
                _end(connection)
        return piece

    def close(self) -> None:
        """Close what is kept open."""
        while self._idle:
            _end(self._idle.pop())

    def _new(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(
                self._host, self._port, timeout=self._timeout_s
            )
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._timeout_s, context=self._context
        )

    def _read(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        offset: int,
        length: int,
    ) -> Piece:
        give_up_s = time.monotonic() + self._timeout_s
        reused = connection.sock is not None
        try:
            try:
                response = self._ask(connection, path, offset, length)
            except (http.client.HTTPException, OSError) as error:
                # A server may close what was idle; that says nothing of the file.
                if not reused or isinstance(error, TimeoutError):
                    raise
                connection.close()
                response = self._ask(connection, path, offset, length)
            return self._answer(connection, response, path, offset, length, give_up_s)
        except TimeoutError:
            raise SourceUnavailable(self._too_slow()) from None
        except ssl.SSLError as error:
            raise SourceUnavailable(
                f"TLS with {self._host} failed ({error.reason or error}): check that its "
                "certificate names this host and is signed by the CA that was given"
            ) from error
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise SourceUnavailable(
                f"cannot read from {self._host}: {str(error) or type(error).__name__}"
            ) from error

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        offset: int,
        length: int,
    ) -> http.client.HTTPResponse:
        if connection.sock is not None:
            connection.sock.settimeout(self._timeout_s)
        connection.request(
            "GET",
            f"{self._folder}/{quote(path)}",
            headers={
                "Range": f"bytes={offset}-{offset + length - 1}",
                "Accept-Encoding": "identity",
            },
        )
        return connection.getresponse()

    def _answer(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        path: str,
        offset: int,
        length: int,
        give_up_s: float,
    ) -> Piece:
        if response.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            # A range that begins at the end or beyond.
            connection.close()
            _, total = _range(response)
            return Piece(b"", total)
        due, total = self._due(response, path, offset, length)
        data = bytearray()
        while len(data) < due:
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            if connection.sock is not None:
                connection.sock.settimeout(left_s)
            # read1: what is there, so that a server that trickles meets the deadline.
            some = response.read1(min(READ_BYTES, due - len(data)))
            if not some:
                raise SourceUnavailable(
                    f"{self._host} broke off after {len(data)} of {due} bytes of {path}"
                )
            data += some
        if response.length:
            connection.close()  # more than was asked for is not waited for
        return Piece(bytes(data), total)

    def _due(
        self, response: http.client.HTTPResponse, path: str, offset: int, length: int
    ) -> tuple[int, int]:
        """How many bytes are to come, and how many the file has."""
        match response.status:
            case http.client.PARTIAL_CONTENT:
                begin, total = _range(response)
                if begin != offset:
                    raise ValueError(f"asked for bytes from {offset}, got from {begin}")
            case http.client.OK if offset == 0 and response.length is not None:
                total = response.length
            case http.client.OK:
                raise ValueError("it does not answer ranges")
            case http.client.NOT_FOUND | http.client.GONE:
                raise NotThere(f"{self._host} has no {path}")
            case http.client.FORBIDDEN:  # as a bucket says that it lacks a file
                raise NotThere(f"{self._host} does not show {path}")
            case status:
                raise SourceUnavailable(
                    f"{self._host} says {status} {response.reason[:80]} to {path}",
                    _retry_after_s(response),
                )
        return min(length, max(0, total - offset)), total

    def _too_slow(self) -> str:
        return f"{self._host} did not answer within {self._timeout_s:g} s"


def _context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=None if ca_file is None else str(ca_file)
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _range(response: http.client.HTTPResponse) -> tuple[int, int]:
    """Where the bytes begin, and how many the file has in all."""
    stated = _RANGE.match(response.getheader("Content-Range") or "")
    if stated is None:
        raise ValueError("it does not say which range it gives")
    return int(stated[1] or 0), int(stated[3])


def _retry_after_s(response: http.client.HTTPResponse) -> float | None:
    stated = response.getheader("Retry-After") or ""
    if _SECONDS.match(stated) is None:
        return None
    return min(float(stated), MAX_RETRY_AFTER_S)


def _end(connection: http.client.HTTPConnection) -> None:
    """Close a connection, and wake the thread that reads from it."""
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):  # it was closed already
            sock.shutdown(socket.SHUT_RDWR)
    connection.close()
