"""What `overspill-agent status` says of a model's cascade."""

from __future__ import annotations

import json

from bundle.manifest import parse_manifest
from edge_agent.__main__ import _cascade, _update
from edge_agent.core.health import Account
from edge_agent.core.slots import Slots
from edge_agent.core.threshold import Surroundings
from edge_agent.core.watch import Watch, WatchOptions
from edge_agent.metrics import cascade_families
from lifecycle.metrics import Family
from tests.calibrations import manifest


def watch() -> Watch:
    stated = parse_manifest(json.dumps(manifest(kind="spill", limit=0.1)).encode())
    return Watch(stated, WatchOptions())


def test_a_model_without_a_decision_has_no_line() -> None:
    assert list(_cascade(None)) == []


def test_threshold_promise_and_drift_are_said_with_their_reasons() -> None:
    seen = watch()
    for _ in range(200):
        seen.judged(0.1, spilled=True, deadline_s=1.0, may_audit=True, chances=(0.5, 1))
    seen.threshold.adjust(Surroundings(link_down_s=5.0), 0.0)
    seen.books.look(0.0)
    threshold, target, drift = _cascade(seen.shown())
    assert threshold == "threshold none is spilled of 0.6: the link is down"
    assert target.startswith("target spill 0.1: broken, 100.00% (")
    assert drift.startswith("DRIFT since request")
    assert "lower" in drift


def test_metrics_say_only_what_is_known() -> None:
    families: dict[str, Family] = {
        each.name.removeprefix("overspill_agent_"): each
        for each in cascade_families({"m": watch().shown()}, {"left": 0.5})
    }
    assert families["threshold"].values == {("m",): 0.6}
    assert families["promise_standing"].values == {
        ("m", "kept"): 1.0,
        ("m", "at_risk"): 0.0,
        ("m", "broken"): 0.0,
    }
    assert families["spill_budget_left"].values == {(): 0.5}
    bare = manifest()
    del bare["calibration"]
    plain = Watch(parse_manifest(json.dumps(bare).encode()), WatchOptions())
    families = {
        each.name: each for each in cascade_families({"m": plain.shown()}, None)
    }
    assert families["overspill_agent_promise_value"].values == {}
    assert families["overspill_agent_drift_alarm"].values == {}
    assert "overspill_agent_spill_budget_left" not in families


def test_an_update_is_said_with_its_epoch_and_what_was_counted() -> None:
    slots = Slots("m", active="2", epoch=3, floor=3, staged="4", staged_epoch=5)
    account = Account(requests=7, errors=1, spilled=2, compared=2, agreed=1)
    account.ran(1.0)
    health = account.report(60.0).model_dump()
    staged, epoch, counted = _update({**slots.shown(), "health": health})
    assert staged == "staged 4 in epoch 5"
    assert epoch == "epoch 3, nothing below 3 is taken"
    assert counted.startswith("in 60 s 7 requests, 1 failed, 2 spilled, agreed with")
    assert list(_update({**Slots("m").shown(), "health": None})) == []
