"""A network device that really loses and delays packets, for TCP to mend.

netem is a kernel module that not every kernel has; this needs only /dev/net/tun and
root. What is sent to `FAR` comes back from there to `NEAR`: source and destination
change places, which leaves the checksums right, and on the way some packets are lost.
So a client that connects to FAR reaches the server that listens on NEAR, and both
directions suffer. Nothing outside this machine can reach either address.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import struct
from pathlib import Path
from typing import Final, Self

NEAR: Final = "10.213.77.1"
FAR: Final = "10.213.77.2"
PACKET_BYTES: Final = 65536
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_ADDRESSES: Final = slice(12, 20)
_NAME: Final = "ovs-lossy"
_DEVICE: Final = Path("/dev/net/tun")


def why_not() -> str | None:
    """What is missing for a lossy link here; None when it can be made."""
    if os.geteuid() != 0:
        return "only root may make a network device"
    if not _DEVICE.exists():
        return f"this kernel has no {_DEVICE}"
    return None


class LossyLink:
    """A tun device between `NEAR` and `FAR`.

    Args:
        loss: the share of packets that are lost, each way.
        delay_s: each way.
        seed: decides which are lost.
    """

    def __init__(
        self, *, loss: float = 0.0, delay_s: float = 0.0, seed: int = 0
    ) -> None:
        self.loss = loss
        self.delay_s = delay_s
        self.carried = 0
        self.lost = 0
        self._draw = random.Random(seed)
        self._file = -1

    async def __aenter__(self) -> Self:
        self._file = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK)
        try:
            wanted = struct.pack("16sH22x", _NAME.encode(), _IFF_TUN_NO_PI)
            fcntl.ioctl(self._file, _TUNSETIFF, wanted)
            await _ip("address", "add", f"{NEAR}/30", "dev", _NAME)
            await _ip("link", "set", _NAME, "up")
        except BaseException:
            os.close(self._file)
            raise
        asyncio.get_running_loop().add_reader(self._file, self._carry)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._file)
        os.close(self._file)  # and with it goes the device
        self._file = -1

    def _carry(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(self._file, PACKET_BYTES)
                if packet[0] >> 4 != 4:
                    continue
                if self._draw.random() < self.loss:
                    self.lost += 1
                    continue
                source, target = packet[12:16], packet[16:20]
                turned = bytearray(packet)
                turned[_ADDRESSES] = target + source
                if self.delay_s:
                    loop.call_later(self.delay_s, self._deliver, bytes(turned))
                else:
                    self._deliver(bytes(turned))

    def _deliver(self, packet: bytes) -> None:
        if self._file < 0:
            return
        with contextlib.suppress(OSError):
            os.write(self._file, packet)
            self.carried += 1


async def _ip(*words: str) -> None:
    process = await asyncio.create_subprocess_exec("ip", *words)
    async with asyncio.timeout(10):
        if await process.wait():
            raise OSError(f"`ip {' '.join(words)}` failed")
