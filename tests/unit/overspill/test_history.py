"""A device's history, written and read back."""

from __future__ import annotations

from overspill.demo.history import Reply, Sent, as_line, read

SENT = Sent("cam1-1", index=7, truth=3, stage="first", at_ms=10.0)
REPLY = Reply(
    "cam1-1", at_ms=12.5, status="answered", final=True, source="edge", label="Bag"
)


def written(*events: Sent | Reply) -> list[str]:
    return [as_line(each) for each in events]


def test_what_was_written_is_read_back() -> None:
    (found,) = read("cam1", written(SENT, REPLY))

    assert (found.device, found.id, found.index, found.truth) == (
        "cam1",
        "cam1-1",
        7,
        3,
    )
    assert (found.stage, found.at_ms, found.attempts) == ("first", 10.0, 1)
    assert found.replies == [REPLY]
    assert found.outcome == REPLY


def test_a_resent_request_stays_one_and_keeps_its_first_time() -> None:
    again = Sent("cam1-1", 7, 3, "first", at_ms=5010.0, attempt=2)

    (found,) = read("cam1", written(SENT, again, REPLY))

    assert (found.attempts, found.at_ms) == (2, 10.0)


def test_a_line_that_was_cut_off_costs_that_line_only() -> None:
    lines = [as_line(SENT), as_line(REPLY)[:20]]

    (found,) = read("cam1", lines)

    assert found.replies == []
    assert found.outcome is None


def test_a_reply_to_what_was_never_sent_is_left_out() -> None:
    stranger = Reply("cam1-9", at_ms=1.0, status="answered", final=True)

    (found,) = read("cam1", written(stranger, SENT))

    assert found.replies == []
