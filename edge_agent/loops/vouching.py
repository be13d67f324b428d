"""Ask who signed what is desired, and whether it may be taken here and now."""

from __future__ import annotations

import asyncio

from broker.messages import DesiredModel
from bundle.seal import Seal, SealRejected
from edge_agent.core.fit import PutOff, check_fits, put_off_until
from edge_agent.loops.update_ports import Here, Trust


class Vouching:
    """What is known of the desired versions.

    Args:
        trust: who says which bundles are good.
        here: what the machine is, and what time it is there.
    """

    def __init__(self, trust: Trust, here: Here) -> None:
        self._trust = trust
        self._here = here
        self._alone = asyncio.Lock()
        # Whether trust is newer than what is desired: it is refreshed once a look.
        self._refreshed = False

    def desired_anew(self) -> None:
        """What is desired was read again: it may be signed since."""
        self._refreshed = False

    async def seal(self, desired: DesiredModel) -> Seal:
        """What was signed of the desired version, if it may be taken here.

        Raises:
            NotSigned, SealRejected, ModelRefused: it may not.
            Untrusted, SourceUnavailable, OSError: it cannot be told now.
        """
        async with self._alone:
            if not self._refreshed:
                # Said before: what is desired in the meantime may be signed since.
                self._refreshed = True
                try:
                    await self._trust.refresh()
                except BaseException:
                    self._refreshed = False
                    raise
            seal = await self._trust.seal_for(
                desired.model, desired.version, desired.epoch
            )
        signed = (seal.name, seal.version, seal.epoch)
        if signed != (desired.model, desired.version, desired.epoch):
            raise SealRejected(
                f"asked for {desired.model} {desired.version} in epoch {desired.epoch}, "
                f"sealed is {seal.name} {seal.version} in epoch {seal.epoch}"
            )
        name = f"{seal.name} {seal.version}"
        check_fits(name, seal.requires, self._here.device())
        return seal

    def check_time(self, desired: DesiredModel) -> None:
        """Return if now is a time for it.

        Raises:
            PutOff: its maintenance window is closed, or the time is not known.
        """
        why = put_off_until(desired.policy.window, self._here.local_now())
        if why is not None:
            raise PutOff(why)
