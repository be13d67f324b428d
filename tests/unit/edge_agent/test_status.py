"""What `overspill-agent status` says of a model's cascade."""

from __future__ import annotations

import json

from bundle.manifest import parse_manifest
from edge_agent.__main__ import _cascade
from edge_agent.core.watch import Surroundings, Watch, WatchOptions
from edge_agent.status import cascade_families
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
    seen.adjust(Surroundings(link_down_s=5.0), 0.0)
    seen.look(0.0)
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
