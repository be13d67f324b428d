"""What can be read and written inside one transaction."""

from __future__ import annotations

from sqlalchemy import Connection

from fleet.adapters.state.devices import DevicePages
from fleet.adapters.state.record import RecordPages
from fleet.adapters.state.rollouts import RolloutPages
from fleet.adapters.state.versions import VersionPages
from fleet.adapters.state.whole import WholePages


class Ledger(DevicePages, VersionPages, RolloutPages, RecordPages, WholePages):
    """Agents, versions, rollouts and the audit log, as of one moment.

    Args:
        connection: in a transaction; a `Ledger` is of no use after it.
    """

    def __init__(self, connection: Connection) -> None:
        RecordPages.__init__(self, connection)
