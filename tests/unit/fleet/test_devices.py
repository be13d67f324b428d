"""What is known of an agent after its reports."""

from __future__ import annotations

from broker.messages import Report, SlotReport
from fleet.core.devices import observe


def report(at_ms: int, version: str) -> Report:
    return Report(
        agent="liar",
        at_ms=at_ms,
        slots=[SlotReport(model="fashion", active=version)],
        counters={"answered": at_ms},
        facts={"runtime": version},
    )


def test_the_newest_report_that_arrived_replaces_all_but_the_first_time() -> None:
    first = observe(None, "a", report(5, "1"), now_ms=1000)
    # The agent's clock went back; the order of arrival counts.
    then = observe(first, "a", report(3, "2"), now_ms=2000)
    assert then.agent == "a"
    assert (then.first_seen_ms, then.last_seen_ms, then.reports) == (1000, 2000, 2)
    slot = then.slot("fashion")
    assert slot is not None
    assert slot.active == "2"
    assert then.counters == {"answered": 3}
    assert then.slot("other") is None


def test_after_the_fleet_clock_went_back_an_agent_falls_silent_as_before() -> None:
    first = observe(None, "a", report(5, "1"), now_ms=10_000_000)
    then = observe(first, "a", report(6, "1"), now_ms=1_000_000)
    assert not then.silent(1_090_000, silent_after_s=90)
    assert then.silent(1_091_000, silent_after_s=90)
