from __future__ import annotations

import io

from rich.console import Console

from broker.messages import Medium, Priority
from overspill.load.account import Account, End, Ending
from overspill.load.arrivals import Steady
from overspill.load.mix import Bounds, Mix, Payload, Plan, Planned
from overspill.load.quantities import Weighted
from overspill.load.report import document, remarks, show

PAYLOAD = Payload("p", medium=Medium(media_type="image/png", data=b"p"))
PLAN = Plan(
    Steady.at(2),
    Mix(Weighted(("m",), (1.0,)), {"m": [PAYLOAD]}, Weighted((0.1,), (1.0,))),
    Bounds(for_s=1, requests=10),
)


def an_account() -> Account:
    account = Account(lost_after_s=1)
    for number, deadline_s in enumerate((0.1, 0.2)):
        planned = Planned(
            number, number * 0.5, 0, "m", Priority.NORM, deadline_s, PAYLOAD
        )
        account.offer(planned)
        account.began(planned, number * 0.5 + 0.02)
    account.hear(Ending(0, End.ANSWERED), 0.05)
    account.hear(Ending(1, End.FAILED, "the model failed"), 0.6)
    account.hear(Ending(1, End.FAILED, "the model failed"), 0.61)
    return account


def test_the_document_and_the_table_say_the_same() -> None:
    run = document(PLAN, an_account(), max_lateness_s=1, complete=True)
    page = io.StringIO()
    show(Console(file=page, width=160), [run])

    assert (run["offered"], run["answered"], run["failed"]) == (2, 1, 1)
    assert run["goodput"] == 0.5
    assert run["throughput_per_s"] == 2.0
    said = page.getvalue()
    for part in ("50.00 %", "deadline 100ms", "deadline 200ms", "the model failed"):
        assert part in said
    assert "2/s: 1 results came twice" in said


def test_a_late_generator_is_said_beside_the_figures() -> None:
    run = document(PLAN, an_account(), max_lateness_s=0.01, complete=True)

    assert run["valid"] is False
    assert any("NOT VALID" in line for line in remarks(run))


def test_nothing_sent_has_figures_too() -> None:
    run = document(PLAN, Account(lost_after_s=1), max_lateness_s=1, complete=False)
    show(Console(file=io.StringIO()), [run, run])

    assert (run["offered"], run["goodput"], run["throughput_per_s"]) == (0, None, None)
