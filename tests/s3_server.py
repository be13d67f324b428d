"""A small stand-in for S3, as far as its public protocol is used here.

Objects by key with ranges, listings in pages, uploads in parts, and refusals. It
checks who signs and not the signature. With OVERSPILL_TEST_S3 (such as
`s3://bucket/prefix`, and the AWS_… variables) the same tests run on a real store.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from typing_extensions import override

ACCESS_KEY = "tests"
PAGE = 3


class Bucket(ThreadingHTTPServer):
    """One bucket, in memory."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.asked: list[str] = []
        self.down = False

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # Headers and body in one packet: two would wait for each other (Nagle).
    wbufsize = -1
    server: Bucket

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """A listing, or an object or a range of it."""
        key, query = self._asked()
        if self._refused():
            return
        if not key:
            self._list(query)
            return
        data = self.server.objects.get(key)
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            self._answer(200, data)
            return
        start, end = int(found[1]), int(found[2] or len(data) - 1)
        if start >= len(data):
            self._answer(416, b"<Error><Code>InvalidRange</Code></Error>")
            return
        end = min(end, len(data) - 1)
        said = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        self._answer(206, data[start : end + 1], said)

    def do_HEAD(self) -> None:
        """An object without its bytes."""
        self.do_GET()

    def do_PUT(self) -> None:
        """An object, or one part of it."""
        key, query = self._asked()
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._refused():
            return
        if "uploadId" in query:
            parts = self.server.parts[query["uploadId"]]
            parts[int(query["partNumber"])] = data
        else:
            self.server.objects[key] = data
        self._answer(200, b"", {"ETag": '"e"'})

    def do_POST(self) -> None:
        """The beginning or the end of an upload in parts, or several deletions."""
        key, query = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._refused():
            return
        if "uploads" in query:
            upload = f"upload-{len(self.server.parts)}"
            self.server.parts[upload] = {}
            said = f"<UploadId>{upload}</UploadId><Bucket>b</Bucket>"
            self._xml(
                "InitiateMultipartUploadResult", f"{said}<Key>{escape(key)}</Key>"
            )
        elif "uploadId" in query:
            parts = self.server.parts.pop(query["uploadId"])
            self.server.objects[key] = b"".join(parts[n] for n in sorted(parts))
            said = f"<Bucket>b</Bucket><Key>{escape(key)}</Key><ETag>e</ETag>"
            self._xml("CompleteMultipartUploadResult", said)
        else:
            keys = re.findall(r"<Key>([^<]*)</Key>", body.decode())
            for each in keys:
                self.server.objects.pop(each, None)
            gone = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in keys)
            self._xml("DeleteResult", gone)

    def do_DELETE(self) -> None:
        """No object, whether or not there was one."""
        key, _ = self._asked()
        if self._refused():
            return
        self.server.objects.pop(key, None)
        self._answer(204, b"")

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        self.server.asked.append(f"{self.command} {self.path}")
        query = {
            name: values[-1]
            for name, values in parse_qs(parts.query, keep_blank_values=True).items()
        }
        return unquote(parts.path).lstrip("/").partition("/")[2], query

    def _refused(self) -> bool:
        if self.server.down:
            self._answer(503, b"<Error><Code>SlowDown</Code></Error>")
            return True
        signed_by = self.headers.get("Authorization", "")
        if f"Credential={ACCESS_KEY}/" in signed_by:
            return False
        self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        return True

    def _list(self, query: dict[str, str]) -> None:
        prefix = query.get("prefix", "")
        after = query.get("continuation-token", "")
        keys = sorted(k for k in self.server.objects if k.startswith(prefix))
        folders = set()
        if "delimiter" in query:
            deeper = [k for k in keys if "/" in k[len(prefix) :]]
            keys = [k for k in keys if k not in deeper]
            folders = {prefix + k[len(prefix) :].split("/")[0] + "/" for k in deeper}
        left = [key for key in keys if key > after]
        page, more = left[:PAGE], len(left) > PAGE
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.000Z"
        said = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{now}</LastModified>"
            f"<ETag>e</ETag><Size>{len(self.server.objects[key])}</Size></Contents>"
            for key in page
        )
        said += "".join(
            f"<CommonPrefixes><Prefix>{each}</Prefix></CommonPrefixes>"
            for each in sorted(folders)
        )
        token = (
            f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if more else ""
        )
        said += f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        self._xml("ListBucketResult", said)

    def _xml(self, name: str, inside: str) -> None:
        self._answer(200, f"<{name}>{inside}</{name}>".encode())

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        said = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "ETag": '"e"'}
        for name, value in {**said, **(headers or {})}.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def bucket() -> Iterator[Bucket]:
    """A bucket that answers while the block lasts."""
    server = Bucket()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
