"""One whole system as processes in a folder: it starts together and ends together."""

from overspill.system.places import AgentPlace
from overspill.system.preflight import CannotStart
from overspill.system.whole import System

__all__ = ["AgentPlace", "CannotStart", "System"]
