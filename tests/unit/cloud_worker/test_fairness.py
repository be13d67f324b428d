from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cloud_worker.core.fairness import MOST_IDLE, Flow, Share, Shares

BURST = 4


def serve(shares: Shares, share: Share, rows: int = 1) -> None:
    shares.serve(share, rows)
    shares.leave(share)


def test_one_alone_is_never_too_far_ahead() -> None:
    shares = Shares(BURST)
    for _ in range(100):
        share = shares.arrive(("agent", "device"))
        assert shares.even()
        serve(shares, share)


def test_who_is_ahead_by_more_than_the_burst_lets_others_go_first() -> None:
    shares = Shares(BURST)
    quiet = shares.arrive(("quiet",))
    flood = [shares.arrive(("flood",)) for _ in range(10)]
    for each in flood[: BURST + 1]:
        serve(shares, each)
    assert not shares.even()
    assert shares.ahead(flood[-1])
    assert not shares.ahead(quiet)


def test_the_flood_goes_on_once_the_others_have_had_their_turn() -> None:
    shares = Shares(BURST)
    quiet = shares.arrive(("quiet",))
    flood = [shares.arrive(("flood",)) for _ in range(10)]
    for each in flood[: BURST + 1]:
        serve(shares, each)
    serve(shares, quiet)
    assert shares.even()


def test_who_leaves_and_returns_at_once_still_owes_what_it_took() -> None:
    shares = Shares(BURST)
    shares.arrive(("quiet",))
    for _ in range(BURST + 1):
        serve(shares, shares.arrive(("flood",)))
    assert not shares.even() or shares.ahead(shares.arrive(("flood",)))


def test_an_agent_with_many_devices_has_the_share_of_one_agent() -> None:
    shares = Shares(BURST)
    quiet = shares.arrive(("small", "cam"))
    crowd = [shares.arrive(("large", f"cam{n}")) for n in range(10)]
    for each in crowd[: BURST + 1]:
        serve(shares, each)
    assert not shares.even()
    assert all(shares.ahead(each) for each in crowd[BURST + 1 :])
    assert not shares.ahead(quiet)


def test_those_who_went_away_are_forgotten() -> None:
    shares = Shares(BURST)
    root = shares.arrive(("there",)).above
    assert root is not None
    for number in range(20 * MOST_IDLE):
        shares.leave(shares.arrive((f"d{number}",)))
    assert len(root.children) <= MOST_IDLE + 2


FLOWS = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"))


@given(st.lists(FLOWS, min_size=1, max_size=200))
def test_no_flow_that_waits_is_left_behind_by_more_than_the_bound(
    flows: list[Flow],
) -> None:
    shares = Shares(BURST)
    left = [(flow, shares.arrive(flow)) for flow in flows]
    agents: Counter[str] = Counter()
    while left:
        even = shares.even()
        may = [each for each in left if even or not shares.ahead(each[1])]
        assert may, "somebody may always go"
        (agent, _), share = may[0]
        left.remove(may[0])
        serve(shares, share)
        agents[agent] += 1
        for other in {flow[0] for flow, _ in left}:
            assert agents[agent] - agents[other] <= BURST + 1
