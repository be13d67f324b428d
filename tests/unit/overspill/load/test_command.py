"""What is wrong with a command line is said before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from overspill.commands.load import load
from overspill.load.sweep import read_steps

USUAL = ("--model", "m", "--payload", "1KiB", "--via", "device", "--rate", "9/s")


def refused(*arguments: str) -> str:
    alone = typer.Typer()
    alone.command()(load)
    found = CliRunner().invoke(alone, arguments)
    assert found.exit_code == 2, found.output
    return " ".join(found.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--bursts", "9/s:1s"), "give one of --rate, --bursts and --trace"),
        (("--deadline", "soon"), "'soon' is no duration"),
        (("--class", "urgent"), "'urgent' is no class: hi, norm, bulk are"),
        (("--model", "a.b"), "'a.b' is not a valid id"),
        (("--envelope", "4"), "--envelope is not for devices"),
        (("--payload", "2KiB"), "give one for all models"),
        (("--picture", "a.png"), "add --sweep"),
        (("--picture", "a.gif", "--sweep", "1,2"), "must end in .png or .svg"),
        (("--json", "/nowhere/a.json"), "cannot be written"),
        (("--url", "amqp://host"), "does not name an MQTT broker"),
        (("--via", "mqtt", "--url", "mqtt://host"), "names no agent"),
        (
            ("--via", "mqtt", "--url", "mqtt://a:b@host", "--agents", "2"),
            "2 agents need",
        ),
        (("--broker", "."), "devices connect to an agent's local broker"),
        (("--via", "queue", "--broker", "/nowhere"), "holds no private broker"),
        (("--sweep", "much"), "is no rate"),
        (("--sweep", "0%,5%"), "rates over 0"),
    ],
)
def test_a_wrong_command_line_says_what_to_write(
    arguments: tuple[str, ...], says: str
) -> None:
    assert says in refused(*USUAL, *arguments)


def test_a_trace_must_name_what_there_is(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("offset_s,payload\n0,shirt.png\n")
    usual = (each for each in USUAL if each not in {"--rate", "9/s"})

    said = refused(*usual, "--trace", str(trace))

    assert "the trace names payload 'shirt.png'" in said


def test_what_no_envelope_holds_is_not_sent() -> None:
    usual = (each.replace("1KiB", "17KiB") for each in USUAL)
    said = refused(
        *usual,
        *("--via", "queue", "--url", "amqp://host", "--envelope", "1024"),
    )

    assert "over the limit of 16777216 bytes" in said


def test_steps_are_shares_of_the_rate_or_rates() -> None:
    assert read_steps("20%,110%", 50) == pytest.approx((0.2, 1.1))
    assert read_steps("100,200,400/s", 50) == pytest.approx((2, 4, 8))
