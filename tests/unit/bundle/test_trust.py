"""Epochs, the floor of time, and what is light enough for an agent to import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.source import SourceUnavailable
from bundle.trust import NotSigned, Stale, Untrusted, roles
from bundle.trust.epochs import next_epochs
from bundle.trust.looks import Failure, Look
from bundle.trust.moment import RELEASED_S, TimeFloor

TIMES = st.floats(0, 4e9)
KEYS = st.sampled_from([("a",), ("b",), ()])


@given(st.lists(st.booleans(), max_size=30))
def test_epochs_only_grow_and_none_is_used_twice(publishes: list[bool]) -> None:
    used: list[int] = []
    for way_back in publishes:
        epochs = next_epochs(max(used, default=0), way_back=way_back)
        used.append(epochs.own)
        if epochs.way_back is not None:
            used.append(epochs.way_back)
    assert used == sorted(set(used))


@given(
    st.lists(st.tuples(TIMES, TIMES, st.just(("a",)), TIMES), max_size=10), TIMES, TIMES
)
def test_the_floor_of_time_never_goes_back_while_the_key_is_the_same(
    seen: list[tuple[float, float, tuple[str, ...], float]],
    clock_s: float,
    later_s: float,
) -> None:
    floor, before_s = TimeFloor(), 0.0
    for signed_s, stamped_s, keys, elapsed_s in seen:
        floor = floor.seen(signed_s=signed_s, stamped_s=stamped_s, stamped_by=keys)
        floor = floor.after(elapsed_s)
        assert floor.now_s(0.0) >= max(before_s, signed_s, stamped_s, RELEASED_S)
        before_s = floor.now_s(0.0)
    assert floor.now_s(clock_s) >= clock_s
    assert TimeFloor.from_json(floor.to_json()) == floor


def test_time_passes_for_a_device_without_a_clock() -> None:
    floor = TimeFloor().seen(signed_s=0.0, stamped_s=2e9, stamped_by=("a",))
    assert floor.after(60.0).after(60.0).now_s(0.0) == 2e9 + 120.0


def test_what_a_replaced_key_stamped_is_forgotten() -> None:
    floor = TimeFloor().seen(signed_s=1.9e9, stamped_s=4e9, stamped_by=("stolen",))
    assert not floor.trusts(("new",))
    assert floor.unstamped().now_s(0.0) == 1.9e9
    after = floor.seen(signed_s=1.9e9, stamped_s=2e9, stamped_by=("new",))
    assert after.now_s(0.0) == 2e9


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"signed_s":"x","stamped_s":0,"stamped_by":[]}',
        b'{"signed_s":NaN,"stamped_s":0,"stamped_by":[]}',
    ],
)
def test_a_damaged_floor_is_said_to_be_one(damaged: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever reading it says
        TimeFloor.from_json(damaged)


def test_a_time_after_its_own_expiry_is_no_time() -> None:
    def at(signed_at: object, expires: str = "2027-01-01T00:00:00Z") -> float:
        signed = {"signed_at_s": signed_at, "expires": expires}
        return roles.signed_at_s(json.dumps({"signed": signed}).encode())

    assert at(1_790_000_000) == 1_790_000_000
    assert at(1_900_000_000) == 0.0
    assert at("1790000000") == at(True) == at(-1) == at(None) == 0.0


def test_no_model_can_take_the_name_of_a_role() -> None:
    for name in roles.TOP:
        assert roles.model_role(name) not in roles.TOP
        assert roles.model_of(roles.model_role(name)) == name
        assert roles.model_of(name) is None
    assert roles.kind("model.fashion") == roles.TARGETS


def test_a_look_tells_the_gravest_refusal_and_silence_only_when_nobody_spoke() -> None:
    silent = Failure("mqtt", "no link", None)
    Look("https", b"", [silent]).check()
    with pytest.raises(SourceUnavailable, match="mqtt: no link") as raised:
        Look(None, None, [silent]).check(7.0)
    assert raised.value.retry_after_s == 7.0
    for refusal in (Stale, Untrusted):
        with pytest.raises(refusal, match="https: no"):
            Look(None, None, [silent, Failure("https", "no", refusal)]).check()
    # Whoever is silent may have what was signed since.
    unsigned = Failure("https", "no", NotSigned)
    with pytest.raises(SourceUnavailable, match="https: no"):
        Look(None, None, [silent, unsigned]).check()
    with pytest.raises(NotSigned, match="https: no"):
        Look(None, None, [unsigned]).check()


def test_what_an_agent_imports_of_trust_brings_no_cryptography() -> None:
    code = (
        "import sys, bundle.trust, bundle.trust.looks, bundle.trust.moment,"
        "bundle.trust.epochs, bundle.seal, bundle.pack;"
        "sys.exit(bool({'cryptography', 'tuf', 'urllib3'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
