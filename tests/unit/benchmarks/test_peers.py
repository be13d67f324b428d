"""The peers' benchmark counts rightly and says what it must."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from benchmarks.limits import report
from benchmarks.peers.accounts import Accounts, Answer, Sent, spread
from benchmarks.peers.arrivals import bursts, poisson
from benchmarks.peers.contenders import BY_NAME, CONTENDERS, OURS
from benchmarks.peers.results import Results, limits
from benchmarks.peers.roads import read_status
from benchmarks.peers.tables import markdown
from benchmarks.peers.wires import Ask, CeleryWire, DramatiqWire, OursWire, TaskiqWire
from broker.codec import decode, encode
from broker.messages import Request, Result, Status


def accounts_of(*intended_s: float, deadline_s: float = 1.0) -> Accounts:
    accounts = Accounts()
    for number, each in enumerate(intended_s):
        accounts.send(number, Sent(each, deadline_s))
    return accounts


def test_what_was_never_answered_is_lost_and_a_second_answer_a_duplicate() -> None:
    accounts = accounts_of(0.0, 0.0, 0.0)
    accounts.hear(Answer(0), 0.1)
    accounts.hear(Answer(0), 0.2)
    accounts.hear(Answer(1, ok=False), 0.1)
    summary = accounts.summary()
    assert (summary.answered, summary.duplicates) == (1, 1)
    assert (summary.refused, summary.unanswered) == (1, 1)


def test_latency_counts_from_the_time_it_should_have_been_sent() -> None:
    accounts = accounts_of(5.0, deadline_s=0.1)
    accounts.hear(Answer(0), 5.25)
    summary = accounts.summary()
    assert summary.p99_ms == pytest.approx(250)
    assert summary.goodput == 0


def test_a_good_answer_after_a_bad_one_is_an_answer() -> None:
    accounts = accounts_of(0.0)
    accounts.hear(Answer(0, ok=False), 0.1)
    accounts.hear(Answer(0), 0.2)
    summary = accounts.summary()
    assert (summary.answered, summary.refused, accounts.heard) == (1, 0, 1)


def test_an_answer_to_an_earlier_workload_is_passed_over() -> None:
    accounts = accounts_of(0.0)
    accounts.hear(Answer(99), 0.1)
    assert accounts.heard == 0


@given(
    answers=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60),
)
def test_every_request_is_in_exactly_one_column(
    answers: list[tuple[int, bool]],
) -> None:
    accounts = accounts_of(*[0.0] * 10)
    for at_s, (number, ok) in enumerate(answers):
        accounts.hear(Answer(number, ok), float(at_s))
    summary = accounts.summary()
    assert summary.answered + summary.refused + summary.unanswered == summary.sent
    assert summary.duplicates == sum(ok for _, ok in answers) - summary.answered
    assert summary.in_time <= summary.answered


def test_the_same_seed_sends_the_same_requests() -> None:
    def arrivals() -> object:
        return poisson(
            random.Random("one"),
            per_s=100,
            seconds=2,
            models=["a", "b"],
            deadlines_s=[0.03, 0.15],
        )

    assert arrivals() == arrivals()


def test_bursts_come_in_order_and_all_at_once() -> None:
    sent = bursts(
        random.Random(0),
        count=3,
        size=20,
        every_s=1.0,
        quiet_per_s=5.0,
        model="stub",
        deadline_s=0.2,
    )
    times = [each.at_s for each in sent]
    assert times == sorted(times)
    assert [times.count(at_s) for at_s in (0.5, 1.5, 2.5)] == [20, 20, 20]


def test_a_spread_tells_the_median_and_the_ends() -> None:
    told = spread([3.0, 1.0, 2.0])
    assert (told["median"], told["least"], told["greatest"]) == (2.0, 1.0, 3.0)


def test_our_request_is_one_that_a_worker_can_read() -> None:
    ask = Ask(7, "noop", bytes(1024), sent_ms=1000, expires_ms=1030)
    letter = OursWire().write(ask, "", "")
    (request,) = decode(letter.body, Request).items
    assert (request.id, request.expires_at_ms) == ("r7", 1030)
    assert letter.routing_key == "e1.bench.up.req.noop.norm"


def test_our_answers_are_counted_one_by_one() -> None:
    results = [
        Result(id=f"r{n}", device="cam", model="noop", status=status, version="2")
        for n, status in enumerate((Status.OK, Status.EXPIRED))
    ]
    read = OursWire().read(encode(*results), Basic.Properties())
    assert read == [Answer(0, ok=True, version="2"), Answer(1, ok=False, version="2")]


def test_a_revoked_celery_task_is_no_answer() -> None:
    body = json.dumps({"status": "REVOKED"}).encode()
    read = CeleryWire().read(body, Basic.Properties(correlation_id="4"))
    assert read == [Answer(4, ok=False)]


def test_each_peer_is_told_the_deadline_in_its_own_way() -> None:
    ask = Ask(7, "stub", b"x", sent_ms=1000, expires_ms=1150)
    celery = CeleryWire().write(ask, "q", "a").properties.headers
    dramatiq = json.loads(DramatiqWire().write(ask, "q", "a").body)
    assert celery is not None
    assert celery["expires"] == "1970-01-01T00:00:01.150000+00:00"
    assert dramatiq["options"] == {"max_age": 150}
    assert TaskiqWire().write(ask, "q", "a").properties.expiration == "150"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
)
async def test_an_http_answer_is_read_to_its_end(answer: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(answer + b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
    assert await read_status(reader) == 200
    assert await read_status(reader) == 503


def filled() -> Results:
    results = Results(notes={"in_process": {"ratio_32": 0.95, "ratio_1": 0.5}})
    for name, per_s in ((OURS, 3000.0), ("celery", 900.0), ("litserve", 2000.0)):
        mode = BY_NAME[name].modes[-1]
        for model in ("noop", "resnet"):
            results.add(name, mode, model, {"per_s": per_s, "memory_mb": 1.0})
        results.add(name, mode, "mixed", {"goodput": per_s / 4000, "p99_ms": None})
    results.add(OURS, "equal_safety", "kill", {"lost": 0.0})
    swap = {"swapped": 1.0, "ratio": 1.1, "failed": 0.0}
    results.add(OURS, "equal_safety", "swap", swap)
    return results


def test_servers_without_a_queue_do_not_count_as_queue_peers() -> None:
    found = {each.name: each for each in limits(filled(), [OURS, "celery", "litserve"])}
    assert found["resnet_over_best_queue_peer"].value == pytest.approx(3.333)
    assert found["mixed_goodput_over_best_peer"].value == pytest.approx(1.5)
    assert all(each.holds for each in found.values())


def test_a_swap_that_did_not_happen_does_not_hold() -> None:
    results = filled()
    results.add(OURS, "equal_safety", "swap", {"swapped": 0.0, "ratio": 1.0})
    results.add(OURS, "equal_safety", "swap", {"swapped": 0.0, "ratio": 1.0})
    found = {each.name: each for each in limits(results, [OURS])}
    assert not found["swap_took_place"].holds


def test_the_json_has_every_limit_with_its_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = filled()
    results.fail("ray-serve", "as_they_come", "install", "not installed: ray")
    figures = {"contenders": results.tables(), "failures": results.failures}
    assert report(figures, limits(results, list(BY_NAME)), as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"name", "value", "limit", "holds"} <= set(told["limits"][0])
    assert told["contenders"]["celery"]["equal_safety"]["noop"]["per_s"]["values"]
    assert told["failures"][0]["why"] == "not installed: ray"


def test_every_contender_has_a_mode_and_a_way_in() -> None:
    for each in CONTENDERS:
        assert each.modes
        assert each.queued or each.path("stub").startswith("/")


def test_the_tables_show_who_lost_and_which_limit_does_not_hold() -> None:
    results = filled()
    results.add("celery", "as_they_come", "kill", {"sent": 600.0, "lost": 4.0})
    results.fail("ray-serve", "as_they_come", "drains", "DidNotStart: no answer")
    found = [
        {"name": each.name, "value": each.value, "limit": each.limit}
        | {"at_least": each.at_least, "holds": False}
        for each in limits(results, [OURS, "celery"])
    ]
    told = markdown(
        {
            "contenders": results.tables(),
            "limits": found,
            "failures": results.failures,
        }
    )
    assert "| celery | as they come | 600 | 4 |" in told
    assert "**does not hold**" in told
    assert "DidNotStart" in told
