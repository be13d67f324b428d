"""The registry over TLS from a real server, and from servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker.messages import UpdatePolicy
from bundle import layout
from bundle.source import NotThere, SourceUnavailable
from edge_agent.adapters.day_file import DayFile
from edge_agent.adapters.https_source import BadRegistryUrl, HttpsSource
from edge_agent.adapters.sources import sources_of
from edge_agent.adapters.trusted_seals import TrustedSeals
from edge_agent.loops.metering import Metering
from edge_agent.loops.pulling import Puller
from lifecycle.clock import SystemClock
from tests.trust import FleetTrust
from tests.waiting import until

pytestmark = pytest.mark.integration

BLOB = bytes(range(256)) * 1000
PATH = "blobs/" + "a" * 64
MUCH = 2**30
Speak = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
    )
    if issuer is not None:
        names = [x509.DNSName(name), x509.IPAddress(ip_address("127.0.0.1"))]
        if name != "localhost":
            names = [x509.DNSName(name)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    return builder.sign(signer or key, hashes.SHA256())


class Authority:
    """A private certificate authority."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _certificate("test authority", self._key)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(
            self._certificate.public_bytes(serialization.Encoding.PEM)
        )

    def server_context(self, name: str = "localhost") -> ssl.SSLContext:
        """What a server of that name shows."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, self._certificate.subject, self._key)
        pem = self._folder / f"{name}.pem"
        pem.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def serving(speak: Speak, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """An HTTP server that answers each head of a request as it is told; its port."""

    talking: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await speak(head, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()
            talking.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in list(talking):
            writer.close()
        await until(lambda: not talking)


class Files:
    """A server of static files that answers ranges, as any does."""

    def __init__(self, folder: Path | None = None) -> None:
        self.asked: list[str] = []
        self._folder = folder

    def _file(self, path: str) -> bytes | None:
        if self._folder is None:
            return BLOB if path == PATH else None
        file = self._folder / path
        return file.read_bytes() if file.is_file() else None

    async def __call__(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        line, *headers = head.decode().splitlines()
        path = line.split()[1]
        self.asked.append(path)
        content = self._file(path.removeprefix("/registry/"))
        if content is None:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone")
            return
        stated = next(each for each in headers if each.startswith("Range: bytes="))
        first, last = map(int, stated.removeprefix("Range: bytes=").split("-"))
        if first >= len(content):
            writer.write(
                b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n"
                b"Content-Range: bytes */%d\r\n\r\n" % len(content)
            )
            return
        data = content[first : last + 1]
        writer.write(
            b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n"
            b"Content-Range: bytes %d-%d/%d\r\n\r\n"
            % (len(data), first, first + len(data) - 1, len(content))
        )
        writer.write(data)


def source(port: int, authority: Authority, timeout_s: float = 5.0) -> HttpsSource:
    return HttpsSource(
        f"https://localhost:{port}/registry/",
        ca_file=authority.ca_file,
        timeout_s=timeout_s,
        connections=2,
    )


async def test_ranges_come_over_verified_tls_and_connections_are_kept(
    authority: Authority,
) -> None:
    files = Files()
    async with serving(files, authority.server_context()) as port:
        https = source(port, authority)
        first = await https.read(PATH, 0, 1000)
        assert (first.data, first.total_bytes) == (BLOB[:1000], len(BLOB))
        pieces = await asyncio.gather(
            *(https.read(PATH, at, 50_000) for at in range(0, len(BLOB), 50_000))
        )
        assert b"".join(each.data for each in pieces) == BLOB
        beyond = await https.read(PATH, len(BLOB), 10)
        assert (beyond.data, beyond.total_bytes) == (b"", len(BLOB))
        with pytest.raises(NotThere, match="has no deltas"):
            await https.read("deltas/a/b.json", 0, 10)
        asked = len(files.asked)
        with pytest.raises(NotThere):
            await https.read("desired/agent-1", 0, 10)
        assert len(files.asked) == asked
        https.close()


async def test_what_is_signed_and_what_was_sealed_come_over_https_alone(
    authority: Authority, tmp_path: Path
) -> None:
    clock = SystemClock()
    fleet = FleetTrust(tmp_path / "fleet", clock.wall_ms() / 1000)
    bundle = BLOB[:100_000]
    sealed = fleet.publish("fashion", "1", bundle)
    fleet.tree.write(layout.blob(sealed.sha256), bundle)
    root = tmp_path / "root.json"
    root.write_bytes(fleet.root())
    async with serving(Files(fleet.registry), authority.server_context()) as port:
        https = source(port, authority)
        trust = TrustedSeals(root, tmp_path / "trust", [https], clock=clock)
        seal = await trust.seal_for("fashion", "1", 1)
        assert seal == sealed
        day = Metering(DayFile(tmp_path / "day.json"), local_now_s=lambda: 0.0)
        pulls = Puller([https], tmp_path / "parts", metering=day, rng=random.Random(1))
        packed = await pulls.pull(
            seal, None, policy=UpdatePolicy(), superseded=lambda: False
        )
        https.close()
    assert packed.read_bytes() == bundle


async def test_a_server_that_an_unknown_authority_signed_is_not_believed(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other")
    async with serving(Files(), stranger.server_context()) as port:
        with pytest.raises(SourceUnavailable, match="signed by the CA"):
            await source(port, authority).read(PATH, 0, 10)


async def test_a_server_of_another_name_is_not_believed(authority: Authority) -> None:
    async with serving(Files(), authority.server_context("elsewhere")) as port:
        with pytest.raises(SourceUnavailable, match="names this host"):
            await source(port, authority).read(PATH, 0, 10)


def answering(text: bytes, *, close: bool = False) -> Speak:
    async def speak(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        if close:
            writer.close()

    return speak


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n",
            "302",
        ),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "500 Oh"),
        (
            b"HTTP/1.1 206 P\r\nContent-Range: bytes 7-7/99\r\nContent-Length: 1\r\n\r\n0",
            "got from 7",
        ),
        (b"HTTP/1.1 206 P\r\nContent-Length: 10\r\n\r\n0123456789", "which range"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "does not answer ranges"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "cannot read from"),
    ],
)
async def test_an_answer_that_is_none_is_named(
    authority: Authority, answer: bytes, says: str
) -> None:
    async with serving(answering(answer), authority.server_context()) as port:
        with pytest.raises(SourceUnavailable, match=says):
            await source(port, authority).read(PATH, 0, 10)


async def test_a_server_that_breaks_off_is_told_from_one_that_ends(
    authority: Authority,
) -> None:
    cut = (
        b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/10\r\n"
        b"Content-Length: 10\r\n\r\n0123"
    )
    speak = answering(cut, close=True)
    async with serving(speak, authority.server_context()) as port:
        with pytest.raises(SourceUnavailable):
            await source(port, authority).read(PATH, 0, 10)


async def test_a_busy_server_says_when_to_ask_again(authority: Authority) -> None:
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
    async with serving(answering(busy), authority.server_context()) as port:
        with pytest.raises(SourceUnavailable) as said:
            await source(port, authority).read(PATH, 0, 10)
        assert said.value.retry_after_s == 7.0


async def test_a_server_that_trickles_meets_the_deadline(authority: Authority) -> None:
    async def trickle(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-99999/100000\r\n"
            b"Content-Length: 100000\r\n\r\n"
        )
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with serving(trickle, authority.server_context()) as port:
        began_s = time.monotonic()
        with pytest.raises(SourceUnavailable, match=r"within 0\.5 s"):
            await source(port, authority, timeout_s=0.5).read(PATH, 0, 100_000)
        assert time.monotonic() - began_s < 5.0


async def test_endless_data_is_not_read(authority: Authority) -> None:
    sent = 0

    async def endless(_head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(
            b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/10\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):
            while sent < MUCH and not writer.is_closing():
                writer.write(b"x" * 65536)
                await writer.drain()
                # A drain that need not wait would never let the reader's end be heard.
                await asyncio.sleep(0)
                sent += 65536

    async with serving(endless, authority.server_context()) as port:
        piece = await source(port, authority).read(PATH, 0, 10)
        assert len(piece.data) == 10
        assert sent < MUCH


async def test_a_server_that_is_not_there_is_named(
    authority: Authority, free_port: int
) -> None:
    with pytest.raises(SourceUnavailable, match="cannot read from localhost"):
        await source(free_port, authority).read(PATH, 0, 10)


async def test_names_that_are_looked_up_for_ever_take_no_thread_from_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = threading.Event()

    def never(*_: object, **__: object) -> list[object]:
        resolver.wait(20)
        raise OSError("temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    source = HttpsSource("https://registry.invalid/x", timeout_s=0.1, connections=2)
    before = threading.active_count()
    try:
        for _ in range(2):
            reads = (source.read(PATH, 0, 100) for _ in range(4))
            for said in await asyncio.gather(*reads, return_exceptions=True):
                assert isinstance(said, SourceUnavailable)
        # As many threads hang as there may be connections, and no more.
        assert threading.active_count() == before + 2
        async with asyncio.timeout(1):
            assert await asyncio.to_thread(lambda: "the disk is written to")
    finally:
        resolver.set()
    # The resolver is well again.
    with pytest.raises(SourceUnavailable, match="name resolution"):
        await source.read(PATH, 0, 100)


@pytest.mark.parametrize(
    "url",
    [
        "http://registry.example/x",
        "https://user:secret@host/x",
        "ftp://host",
        "https:///x",
        "https://host/x?y=1",
    ],
)
async def test_a_url_that_names_no_registry_is_refused(url: str) -> None:
    with pytest.raises(BadRegistryUrl, match="write https://host/path"):
        HttpsSource(url)


async def test_sources_are_asked_in_the_order_that_was_chosen(
    authority: Authority,
) -> None:
    mqtt = source(1, authority)
    mqtt.name = "mqtt"

    def names(*order: str, url: str | None = "https://host/") -> list[str]:
        found = sources_of(
            order,  # type: ignore[arg-type]
            mqtt,
            registry_url=url,
            ca_file=authority.ca_file,
            timeout_s=1.0,
            connections=1,
        )
        return [each.name for each in found]

    assert names("https", "mqtt") == ["https", "mqtt"]
    assert names("mqtt", "https") == ["mqtt", "https"]
    assert names("mqtt", "https", url=None) == ["mqtt"]
    assert names("https", url=None) == ["mqtt"]
