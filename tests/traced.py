"""Follow a process through its system calls, and end it or fail it at one of them.

What changes the disk is counted, whichever thread does it. A kill just before one such
call leaves the disk exactly as a kill anywhere since the one before would have: so to
try each of them is to try every system call.

Tried on x86-64. The numbers for aarch64 were never run, and to fail a call there would take
other registers than those that are written here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TRACEME, _POKEUSER, _SYSCALL, _SETOPTIONS, _INFO = 0, 6, 24, 0x4200, 0x420E
_OPTIONS: Final = 0x1 | 0x8 | 0x100000  # sysgood, follow threads, die with the tracer
_WALL: Final = 0x40000000
_ENTRY, _EXIT = 1, 2
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_OPEN_FLAGS: Final = os.O_CREAT | os.O_TRUNC
# Where x86-64 keeps the number of a call, and what it gives.
_ORIG_RAX, _RAX = 15 * 8, 10 * 8

_X86: Final = {
    "write": 1,
    "pwrite": 18,
    "openat": 257,
    "ftruncate": 77,
    "rename": 82,
    "renameat": 264,
    "renameat2": 316,
    "mkdir": 83,
    "mkdirat": 258,
    "rmdir": 84,
    "unlink": 87,
    "unlinkat": 263,
    "fsync": 74,
    "fdatasync": 75,
    "fallocate": 285,
    "sendfile": 40,
    "copy_file_range": 326,
}
_ARM: Final = {
    "write": 64,
    "pwrite": 68,
    "openat": 56,
    "ftruncate": 46,
    "renameat": 38,
    "renameat2": 276,
    "mkdirat": 34,
    "unlinkat": 35,
    "fsync": 82,
    "fdatasync": 83,
    "fallocate": 47,
    "sendfile": 71,
    "copy_file_range": 285,
}
CALLS: Final = {
    number: name
    for name, number in (_X86 if platform.machine() == "x86_64" else _ARM).items()
}
_TO_A_FILE: Final = {"write", "pwrite", "ftruncate", "fsync", "fdatasync", "fallocate"}
# Which arguments of a call are names.
_NAMES: Final = {
    "openat": (1,),
    "rename": (0, 1),
    "renameat": (1, 3),
    "renameat2": (1, 3),
    "mkdir": (0,),
    "mkdirat": (1,),
    "rmdir": (0,),
    "unlink": (0,),
    "unlinkat": (1,),
}
_NEVER_FULL: Final = {"unlink", "unlinkat", "rmdir"}
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class _Info(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    )


@dataclass(frozen=True, slots=True)
class Traced:
    """What came of one process.

    Attributes:
        calls: those that changed the disk, by name, up to its end.
        code: its exit code; None when it was killed.
        paths: of each call, the files or folders that it was about.
    """

    calls: tuple[str, ...]
    code: int | None
    paths: tuple[tuple[Path, ...], ...] = ()


def traced(
    work: Callable[[], int],
    folder: Path,
    *,
    kill_at: int | None = None,
    full_from: int | None = None,
) -> Traced:
    """Run `work` in a child of this process, which must have one thread.

    Args:
        work: gives the child's exit code.
        folder: on whose files writes count.
        kill_at: the call, from 0, before which the child is killed.
        full_from: the call, from 0, from which on the disk is full; x86-64 only.
    """
    pid = os.fork()
    if pid == 0:
        code = 97
        try:
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            code = work()
        finally:
            os._exit(code)
    os.waitpid(pid, 0)
    _ptrace(_SETOPTIONS, pid, _OPTIONS)
    return _Follower(pid, folder, kill_at, full_from).run()


def forked(work: Callable[[], int]) -> int:
    """Run `work` in a child and give its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 97
        try:
            code = work()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


class _Follower:
    def __init__(
        self, pid: int, folder: Path, kill_at: int | None, full_from: int | None
    ) -> None:
        self._pid = pid
        self._folder = folder
        self._kill_at = kill_at
        self._full_from = full_from
        self._calls: list[str] = []
        self._paths: list[tuple[Path, ...]] = []
        self._failing: set[int] = set()

    def run(self) -> Traced:
        _ptrace(_SYSCALL, self._pid)
        while True:
            thread, status = os.waitpid(-1, _WALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                if thread == self._pid:
                    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
                    return Traced(tuple(self._calls), code, tuple(self._paths))
                continue
            stopped_by = os.WSTOPSIG(status)
            deliver = 0
            if stopped_by == _SYSCALL_STOP:
                if not self._at_call(thread):
                    return self._killed()
            elif stopped_by not in (signal.SIGTRAP, signal.SIGSTOP):
                deliver = stopped_by
            _ptrace(_SYSCALL, thread, deliver)

    def _at_call(self, thread: int) -> bool:
        """Count, and fail, what changes the disk; False when it is the last one."""
        info = _Info()
        _ptrace(_INFO, thread, ctypes.byref(info), ctypes.sizeof(info))
        if info.op == _EXIT and thread in self._failing:
            self._failing.discard(thread)
            _ptrace(_POKEUSER, thread, -errno.ENOSPC, _RAX)
        if info.op != _ENTRY:
            return True
        name = CALLS.get(info.number)
        if name is None or not self._changes(thread, name, info):
            return True
        at = len(self._calls)
        if at == self._kill_at:
            return False
        self._calls.append(name)
        self._paths.append(_about(thread, name, info))
        full = self._full_from is not None and at >= self._full_from
        if full and name not in _NEVER_FULL:
            self._failing.add(thread)
            _ptrace(_POKEUSER, thread, -1, _ORIG_RAX)
        return True

    def _changes(self, thread: int, name: str, info: _Info) -> bool:
        if name == "openat":
            return bool(info.args[2] & _OPEN_FLAGS)
        if name in _TO_A_FILE:
            where = _opened(thread, info.args[0])
            return where is not None and where.is_relative_to(self._folder)
        return True

    def _killed(self) -> Traced:
        os.kill(self._pid, signal.SIGKILL)
        while True:
            thread, status = os.waitpid(-1, _WALL)
            ended = os.WIFEXITED(status) or os.WIFSIGNALED(status)
            if thread == self._pid and ended:
                return Traced(tuple(self._calls), None)


def _about(thread: int, name: str, info: _Info) -> tuple[Path, ...]:
    """What a call is about: by the names that it gives, or what it has open."""
    if name not in _NAMES:
        where = _opened(thread, info.args[0])
        return () if where is None else (where,)
    with Path(f"/proc/{thread}/mem").open("rb", 0) as memory:
        found = []
        for argument in _NAMES[name]:
            memory.seek(info.args[argument])
            found.append(Path(os.fsdecode(memory.read(4096).partition(b"\0")[0])))
    return tuple(found)


def _opened(thread: int, descriptor: int) -> Path | None:
    try:
        return Path(f"/proc/{thread}/fd/{descriptor}").readlink()
    except OSError:
        return None


def _ptrace(request: int, pid: int, data: object = 0, address: int = 0) -> None:
    done = _libc.ptrace(request, pid, address, data)
    # It may have been killed from elsewhere; then there is nothing to follow.
    if done < 0 and ctypes.get_errno() != errno.ESRCH:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {pid}")
