"""A registry's files in S3-compatible storage. The only user of obstore.

Credentials and the endpoint come from the environment, by the names that every such
program reads: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, and for
what is not Amazon's `AWS_ENDPOINT_URL`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from bundle.source import NotThere, Piece
from bundle.tree import BadPlace, Leaf, TreeUnavailable, check_path, read_whole

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CONNECT_S: Final = 5
REQUEST_S: Final = 30
RETRY_S: Final = 20
RETRIES: Final = 4
AT_ONCE: Final = 32


class ObjectTree:
    """A `Tree` in an object store, where a put is atomic and durable by itself.

    Args:
        store: obstore's, with its prefix.
        place: where it is, for people; without secrets.
    """

    def __init__(self, store: ObjectStore, place: str) -> None:
        self.place = place
        self._store = store

    def piece(self, path: str, offset: int, length: int) -> Piece:
        """At most `length` bytes of a file from `offset` on; fewer only at its end.

        Raises:
            NotThere: no such file, or no path.
            TreeUnavailable: the store does not answer, or refuses.
        """
        try:
            check_path(path)
        except ValueError as error:
            raise NotThere(str(error)) from error
        with self._translated(path):
            if length < 1:
                return Piece(b"", self._length(path))
            try:
                got = obstore.get(
                    self._store, path, options={"range": (offset, offset + length)}
                )
            except FileNotFoundError as error:
                raise NotThere(f"{path} is not in the registry") from error
            except BaseError:
                # A range that begins at the end or beyond is an error to most stores,
                # and every range of an empty file is.
                total = self._length(path)
                if offset < total:
                    raise
                return Piece(b"", total)
            return Piece(bytes(got.bytes()), got.meta["size"])

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """A whole file."""
        return read_whole(self, path, max_bytes)

    def size(self, path: str) -> int | None:
        """How many bytes a file has; None when there is none."""
        with self._translated(check_path(path)):
            try:
                return self._length(path)
            except NotThere:
                return None

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:  # noqa: ARG002 - the store keeps all that it acknowledges
        """Replace a file; readers see the old bytes or the new.

        Raises:
            ValueError: no path.
            TreeUnavailable: the store does not answer, or refuses.
        """
        with self._translated(check_path(path)):
            obstore.put(self._store, path, data)

    def write_copy(self, path: str, source: Path) -> None:
        """As `write`, in bounded memory (in parts, when it is long)."""
        with self._translated(check_path(path)):
            obstore.put(self._store, path, source)

    def write_all(self, files: Mapping[str, bytes], *, durable: bool = True) -> None:  # noqa: ARG002 - as for `write`
        """As `write` of each, several at a time."""
        with ThreadPoolExecutor(AT_ONCE) as writers:
            # Consumed, so that the first error is raised.
            list(writers.map(lambda each: self.write(*each), files.items()))

    def list(self, folder: str = "") -> Iterator[Leaf]:
        """Every file below a folder, in no order; none when there is no such folder."""
        prefix = check_path(folder) if folder else None
        with self._translated(folder or "everything"):
            for some in obstore.list(self._store, prefix):
                for each in some:
                    changed_ms = int(each["last_modified"].timestamp() * 1000)
                    yield Leaf(each["path"], each["size"], changed_ms)

    def names(self, folder: str) -> Sequence[str]:
        """The names of the files in a folder, sorted."""
        with self._translated(check_path(folder)):
            found = obstore.list_with_delimiter(self._store, folder)["objects"]
            return sorted(each["path"].rpartition("/")[2] for each in found)

    def delete(self, path: str) -> None:
        """Remove a file; none is there afterwards, also when none was before."""
        with self._translated(check_path(path)):
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError:
                return

    def _length(self, path: str) -> int:
        try:
            return obstore.head(self._store, path)["size"]
        except FileNotFoundError as error:
            raise NotThere(f"{path} is not in the registry") from error

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except BaseError as error:
            if _is_refusal(error):
                raise TreeUnavailable(
                    f"{self.place}: {path}: the store refuses these credentials: check "
                    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do"
                ) from error
            raise TreeUnavailable(
                f"{self.place}: {path}: {_first_words(error)}: check the network, "
                "AWS_ENDPOINT_URL and the bucket, then try again"
            ) from error


def open_bucket(url: str, *, retries: int = RETRIES) -> ObjectTree:
    """The tree at `s3://bucket/prefix`; asks the store nothing yet.

    Args:
        url: without credentials.
        retries: how often to ask again when the store is too busy or does not answer.

    Raises:
        BadPlace: the URL or a setting of the environment cannot be read.
    """
    try:
        store = S3Store.from_url(
            url,
            client_options={
                # Only where the endpoint says http:// by itself.
                "allow_http": True,
                "connect_timeout": timedelta(seconds=CONNECT_S),
                "timeout": timedelta(seconds=REQUEST_S),
            },
            retry_config={
                "max_retries": retries,
                "retry_timeout": timedelta(seconds=RETRY_S),
            },
        )
    except (BaseError, ValueError) as error:
        raise BadPlace(f"{url}: {_first_words(error)}") from error
    return ObjectTree(store, url)


def _is_refusal(error: BaseError) -> bool:
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return True
    # A deletion is a list of keys: it succeeds, and its answer tells what each came to.
    return "AccessDenied" in str(error)


def _first_words(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]
