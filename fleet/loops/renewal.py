"""Keep what agents see from expiring: the online keys sign anew, long before it does."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from bundle.trust.errors import KeyRejected, NoTrust, TrustRefused
from fleet.adapters.trust_home import TrustHome

log = structlog.get_logger(__name__)

EVERY_S: Final = 3600.0
FAULTS: Final = (KeyRejected, NoTrust, TrustRefused, OSError)


class Renewal:
    """The loop.

    Args:
        trust: the keys of the snapshot and the timestamp, and the registry.
        every_s: how often it looks; a timestamp lives for days.
    """

    def __init__(self, trust: TrustHome, *, every_s: float = EVERY_S) -> None:
        self._signing = trust.repository.signing
        self._ring = trust.ring()
        self._every_s = every_s

    async def run(self) -> None:
        """Renew when half of a life is over, until cancelled."""
        while True:
            await asyncio.to_thread(self.renew)
            await asyncio.sleep(self._every_s)

    def renew(self) -> tuple[str, ...]:
        """Show what was signed elsewhere and renew what is due; blocks.

        Returns:
            The roles that were renewed. What stops it is logged: an agent says so
            too, once what it sees has expired.
        """
        try:
            settled = self._signing.settle(self._ring)
            if settled.shown:
                log.info("signed metadata is shown", roles=list(settled.shown))
            renewed = self._signing.renew(self._ring)
        except NoTrust:
            return ()
        except FAULTS as error:
            log.error("trust is not renewed", reason=str(error))
            return ()
        if renewed:
            log.info("trust is renewed", roles=list(renewed))
        return renewed
