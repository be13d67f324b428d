"""A disk under SQLite that remembers every write and fails when told to.

It is a VFS over SQLite's own, put into the library that Python's `sqlite3` uses, so
that the product runs as it is: its statements, its pragmas, its SQLite. `apsw` has
such shims ready-made, but carries an SQLite of its own, and the product's calls would
have to be translated to it; LD_PRELOAD and strace need a compiler or a tracer and
know no SQLite error codes.

Only files in one folder are watched. `-shm` is shared memory and never written
through a VFS: a power cut loses it, and SQLite makes it anew from the log.
"""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_int,
    c_int64,
    c_void_p,
)
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias

OK: Final = 0
FULL: Final = 13
IOERR_READ: Final = 10 | 1 << 8
IOERR_SHORT_READ: Final = 10 | 2 << 8
IOERR_WRITE: Final = 10 | 3 << 8
IOERR_FSYNC: Final = 10 | 4 << 8
IOERR_TRUNCATE: Final = 10 | 6 << 8
CANTOPEN: Final = 14


class Op(StrEnum):
    """What SQLite asks of a disk."""

    OPEN = "open"
    READ = "read"
    WRITE = "write"
    TRUNCATE = "truncate"
    SYNC = "sync"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Made:
    """A file that was not there has been opened."""

    file: str


@dataclass(frozen=True, slots=True)
class Wrote:
    """Bytes were handed to the system; nothing says that they are on the disk."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncated:
    """A file was made shorter, or longer."""

    file: str
    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    """What was written to the file before `before` in the trace is on the disk."""

    file: str
    before: int


@dataclass(frozen=True, slots=True)
class SyncFailed:
    """A sync failed: Linux then counts the writes before it as done, which they are not."""

    file: str
    before: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A file was deleted; `sync` says that its folder was synced after."""

    file: str
    sync: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that the program promised or did at this point."""

    what: str
    id: str
    detail: bytes = b""


Step: TypeAlias = Made | Wrote | Truncated | Synced | SyncFailed | Removed | Mark
Fault: TypeAlias = Callable[[Op, str, int], int]
"""(what is asked, the file's name, the size that it would have) → SQLite's result code."""


def _healthy(op: Op, file: str, size: int) -> int:
    return OK


@dataclass(slots=True)
class WatchedDisk:
    """What happened to the files of a folder, and what shall go wrong with them.

    Attributes:
        trace: every step in order.
        fault: asked before each step; anything but `OK` is what SQLite gets instead.
        asked: how often each was asked for.
    """

    folder: Path
    trace: list[Step] = field(default_factory=list)
    fault: Fault = _healthy
    asked: dict[Op, int] = field(default_factory=lambda: dict.fromkeys(Op, 0))

    def mark(self, what: str, id_: str, detail: bytes = b"") -> None:
        """Write down what the program did here."""
        self.trace.append(Mark(what, id_, detail))

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self.fault = _healthy


# --- SQLite's structures, as sqlite3.h has them -----------------------------------------


class _File(Structure):
    pass


class _Vfs(Structure):
    pass


_READ = CFUNCTYPE(c_int, POINTER(_File), c_void_p, c_int, c_int64)
_WRITE = CFUNCTYPE(c_int, POINTER(_File), c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, POINTER(_File), c_int64)
_SYNC = CFUNCTYPE(c_int, POINTER(_File), c_int)
_SIZE = CFUNCTYPE(c_int, POINTER(_File), POINTER(c_int64))
_CLOSE = CFUNCTYPE(c_int, POINTER(_File))
_OPEN = CFUNCTYPE(c_int, POINTER(_Vfs), c_void_p, POINTER(_File), c_int, POINTER(c_int))
_DELETE = CFUNCTYPE(c_int, POINTER(_Vfs), c_char_p, c_int)


class _Methods(Structure):
    _fields_ = (
        ("version", c_int),
        ("close", _CLOSE),
        ("read", _READ),
        ("write", _WRITE),
        ("truncate", _TRUNCATE),
        ("sync", _SYNC),
        ("size", _SIZE),
        # Locks, controls, shared memory and mapped memory stay SQLite's own.
        ("rest", c_void_p * 12),
    )


_File._fields_ = (("methods", POINTER(_Methods)),)
_Vfs._fields_ = (
    ("version", c_int),
    ("file_size", c_int),
    ("longest_path", c_int),
    ("next", c_void_p),
    ("name", c_char_p),
    ("data", c_void_p),
    ("open", _OPEN),
    ("delete", _DELETE),
    ("rest", c_void_p * 14),
)

# Callbacks that C may still hold must never be collected.
_KEPT: Final[list[object]] = []
_NUMBERS: Final = itertools.count()


class _Shim:
    """The functions that stand in for those of SQLite's own VFS."""

    def __init__(self, disk: WatchedDisk, below: Any) -> None:
        self.disk = disk
        self.below = below
        self._prefix = str(disk.folder) + os.sep
        self._names: dict[int, str] = {}
        self._tables: dict[int, tuple[_Methods, _Methods]] = {}
        self._lock = threading.Lock()
        self.vfs = _Vfs.from_buffer_copy(below.contents)
        self.vfs.name = f"watched-{next(_NUMBERS)}".encode()
        self.vfs.open = _OPEN(self._open)
        self.vfs.delete = _DELETE(self._delete)
        _KEPT.append(self)

    # Each returns a result code and must not raise: an error in a callback is printed
    # and forgotten by ctypes.

    def _open(self, _vfs: Any, path: Any, file: Any, flags: int, out: Any) -> int:
        name = ctypes.string_at(path).decode() if path else ""
        if not name.startswith(self._prefix):
            return int(self.below.contents.open(self.below, path, file, flags, out))
        short = name.removeprefix(self._prefix)
        if code := self._ask(Op.OPEN, short, 0):
            # SQLite closes nothing that has no methods.
            file.contents.methods = None
            return code
        new = not Path(name).exists()
        code = int(self.below.contents.open(self.below, path, file, flags, out))
        if code == OK:
            self._names[ctypes.addressof(file.contents)] = short
            self._stand_in(file)
            if new:
                self.disk.trace.append(Made(short))
        return code

    def _stand_in(self, file: Any) -> None:
        """Give the file a table of methods in which some are ours."""
        own = file.contents.methods
        address = ctypes.addressof(own.contents)
        with self._lock:
            if address not in self._tables:
                theirs = _Methods.from_buffer_copy(own.contents)
                ours = _Methods.from_buffer_copy(own.contents)
                ours.read = _READ(self._reading(theirs))
                ours.write = _WRITE(self._writing(theirs))
                ours.truncate = _TRUNCATE(self._truncating(theirs))
                ours.sync = _SYNC(self._syncing(theirs))
                self._tables[address] = theirs, ours
        file.contents.methods = ctypes.pointer(self._tables[address][1])

    def _ask(self, op: Op, name: str, size: int) -> int:
        self.disk.asked[op] += 1
        return self.disk.fault(op, name, size)

    def _name(self, file: Any) -> str:
        return self._names[ctypes.addressof(file.contents)]

    def _reading(self, theirs: _Methods) -> Callable[..., int]:
        def read(file: Any, to: int, count: int, offset: int) -> int:
            if code := self._ask(Op.READ, self._name(file), offset + count):
                return code
            return int(theirs.read(file, to, count, offset))

        return read

    def _writing(self, theirs: _Methods) -> Callable[..., int]:
        def write(file: Any, data: int, count: int, offset: int) -> int:
            name = self._name(file)
            if code := self._ask(Op.WRITE, name, offset + count):
                return code
            code = int(theirs.write(file, data, count, offset))
            if code == OK:
                step = Wrote(name, offset, ctypes.string_at(data, count))
                self.disk.trace.append(step)
            return code

        return write

    def _truncating(self, theirs: _Methods) -> Callable[..., int]:
        def truncate(file: Any, size: int) -> int:
            name = self._name(file)
            if code := self._ask(Op.TRUNCATE, name, size):
                return code
            code = int(theirs.truncate(file, size))
            if code == OK:
                self.disk.trace.append(Truncated(name, size))
            return code

        return truncate

    def _syncing(self, theirs: _Methods) -> Callable[..., int]:
        def sync(file: Any, flags: int) -> int:
            name = self._name(file)
            before = len(self.disk.trace)
            if code := self._ask(Op.SYNC, name, 0):
                self.disk.trace.append(SyncFailed(name, before))
                return code
            code = int(theirs.sync(file, flags))
            if code == OK:
                self.disk.trace.append(Synced(name, before))
            return code

        return sync

    def _delete(self, _vfs: Any, path: bytes, sync: int) -> int:
        name = path.decode()
        short = name.removeprefix(self._prefix)
        watched = name.startswith(self._prefix)
        if watched and (code := self._ask(Op.DELETE, short, 0)):
            return code
        code = int(self.below.contents.delete(self.below, path, sync))
        if watched and code == OK:
            self.disk.trace.append(Removed(short, bool(sync)))
        return code


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[WatchedDisk]:
    """While it lasts, SQLite files of `folder` that are opened are watched."""
    disk = WatchedDisk(folder)
    library = _library()
    shim = _Shim(disk, library.sqlite3_vfs_find(None))
    library.sqlite3_vfs_register(byref(shim.vfs), 1)
    try:
        yield disk
    finally:
        library.sqlite3_vfs_unregister(byref(shim.vfs))
        library.sqlite3_vfs_register(shim.below, 1)


def _library() -> ctypes.CDLL:
    """The SQLite that Python's own `sqlite3` calls, and no other."""
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    library.sqlite3_vfs_find.restype = POINTER(_Vfs)
    library.sqlite3_vfs_find.argtypes = (c_char_p,)
    library.sqlite3_vfs_register.argtypes = (c_void_p, c_int)
    library.sqlite3_vfs_unregister.argtypes = (c_void_p,)
    return library
