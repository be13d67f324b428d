"""The daemon keeps the timestamp and the snapshot from expiring."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.trust import Stale, roles
from fleet.adapters.trust_home import TrustHome
from fleet.loops.renewal import Renewal
from tests.trust import DAY_S, Device, FleetTrust


@pytest.fixture
def fleet(tmp_path: Path) -> FleetTrust:
    return FleetTrust(tmp_path / "fleet")


def renewal(fleet: FleetTrust, keys: Path) -> Renewal:
    home = TrustHome(fleet.repository, keys.parent, lambda _: None)
    return Renewal(home)


def test_nothing_is_signed_anew_before_half_of_its_life_is_over(
    fleet: FleetTrust,
) -> None:
    renews = renewal(fleet, fleet.keys)
    assert renews.renew() == ()
    fleet.now_s += 3 * DAY_S
    assert renews.renew() == ()
    fleet.now_s += DAY_S
    assert renews.renew() == (roles.TIMESTAMP,)
    assert renews.renew() == ()


def test_agents_of_a_fleet_that_publishes_nothing_for_months_see_fresh_metadata(
    fleet: FleetTrust, tmp_path: Path
) -> None:
    device = Device(tmp_path / "device", fleet.root(), lambda: fleet.now_s)
    renews, renewed = renewal(fleet, fleet.keys), set()
    for _ in range(60):
        fleet.now_s += DAY_S
        renewed |= {*renews.renew()}
        device.believes(fleet.tree)
    assert renewed == {roles.SNAPSHOT, roles.TIMESTAMP}


def test_a_fleet_whose_online_keys_are_away_says_so_and_goes_on(
    fleet: FleetTrust, tmp_path: Path
) -> None:
    device = Device(tmp_path / "device", fleet.root(), lambda: fleet.now_s)
    renews = renewal(fleet, tmp_path / "nowhere" / "keys")
    fleet.now_s += 8 * DAY_S
    assert renews.renew() == ()
    with pytest.raises(Stale):
        device.believes(fleet.tree)


def test_what_was_signed_elsewhere_is_shown_by_the_daemon(
    fleet: FleetTrust, tmp_path: Path
) -> None:
    fleet.publish("fashion", "1")
    seal = fleet.draft("fashion", "2")
    fleet.repository.signing.sign(fleet.ring)
    renewal(fleet, fleet.keys).renew()
    device = Device(tmp_path / "device", fleet.root(), lambda: fleet.now_s)
    assert device.seal([fleet.tree], seal)
