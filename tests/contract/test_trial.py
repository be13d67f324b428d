"""A bad bundle is found out in its own process, and each kind of bad has its words."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.manifest import Manifest, parse_manifest
from edge_agent.adapters.golden import MAX_GOLDEN_BYTES, GoldenMismatch
from edge_agent.adapters.litert import ModelUnsupported
from edge_agent.adapters.trial import (
    TrialFailed,
    TrialLimits,
    TrialReport,
    check_speed,
    run_trial,
    try_bundle,
)
from edge_agent.core.tensors import BadInput

MODELS = Path(__file__).parent / "models"
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 12 - 0.4
INPUTS = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)

# Each trial starts an interpreter, and two cores may be busy with other tests.
pytestmark = pytest.mark.timeout(120)


def bundle(folder: Path, *, model: str = "dense", **changes: Any) -> Manifest:
    """An unpacked bundle that is good unless changed."""
    shutil.copy(MODELS / f"{model}.tflite", folder / "model.tflite")
    np.savez(folder / "golden.npz", in_x=INPUTS, out_logits=INPUTS @ WEIGHTS)
    said = {
        "format": 1,
        "name": "toy",
        "version": "7",
        "model_file": "model.tflite",
        "task": "classify",
        "labels": ["a", "b", "c"],
        "decision": {"output": "logits"},
        "golden": {"file": "golden.npz", "tolerance": 0.001},
        **changes,
    }
    data = json.dumps(said).encode()
    (folder / "manifest.json").write_bytes(data)
    return parse_manifest(data)


def make_hang(folder: Path) -> None:
    """A named pipe in place of the model: who opens it waits for ever."""
    (folder / "model.tflite").unlink()
    os.mkfifo(folder / "model.tflite")


async def failure(folder: Path, manifest: Manifest, **limits: Any) -> str:
    with pytest.raises(TrialFailed) as caught:
        await try_bundle(folder, manifest, **limits)
    return str(caught.value)


async def test_a_good_bundle_passes_and_says_what_it_did(tmp_path: Path) -> None:
    report = await try_bundle(tmp_path, bundle(tmp_path))
    assert isinstance(report, TrialReport)
    assert report.examples == 5
    assert report.worst_difference < 1e-5
    assert report.ms > 0


async def test_a_quantised_model_is_held_to_the_tolerance_of_its_manifest(
    tmp_path: Path,
) -> None:
    np.clip(INPUTS, -0.9, 0.9, out=INPUTS)
    loose = bundle(
        tmp_path, model="dense_int8", golden={"file": "golden.npz", "tolerance": 0.05}
    )
    assert (await try_bundle(tmp_path, loose)).examples == 5
    tight = bundle(
        tmp_path, model="dense_int8", golden={"file": "golden.npz", "tolerance": 1e-6}
    )
    assert "tolerance is 1e-06" in await failure(tmp_path, tight)


async def test_a_bundle_without_golden_examples_is_at_least_run(tmp_path: Path) -> None:
    manifest = bundle(tmp_path, golden=None)
    assert (await try_bundle(tmp_path, manifest)).examples == 0


async def test_a_model_that_answers_otherwise_than_its_golden_outputs_fails(
    tmp_path: Path,
) -> None:
    manifest = bundle(tmp_path)
    np.savez(tmp_path / "golden.npz", in_x=INPUTS, out_logits=INPUTS @ WEIGHTS + 0.5)
    said = await failure(tmp_path, manifest)
    assert said == "toy 7: golden outputs differ by 0.5, the tolerance is 0.001"


def in_process(folder: Path, manifest: Manifest) -> str:
    """What the child would say, without the price of a process."""
    with pytest.raises((BadInput, GoldenMismatch, ModelUnsupported)) as caught:
        run_trial(folder, threads=1)
    assert manifest.version == "7"
    return str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"in_y": INPUTS, "out_logits": INPUTS}, "it needs in_ arrays for the inputs"),
        ({"in_x": INPUTS}, "at least one out_ array"),
        ({"in_x": INPUTS, "out_logits": np.zeros((4, 3))}, "different lengths"),
        ({"in_x": INPUTS, "out_logits": np.zeros((5, 2))}, "has shape [1, 2]"),
        ({"in_x": INPUTS[:0], "out_logits": np.zeros((0, 3))}, "different lengths"),
        ({"in_x": INPUTS[:, :3], "out_logits": np.zeros((5, 3))}, "has shape [1, 3]"),
        ({"in_x": INPUTS, "out_logits": np.full((5, 3), np.nan)}, "is not a number"),
        ({"in_x": np.array([{}]), "out_logits": INPUTS}, "cannot be read"),
    ],
)
def test_golden_examples_that_cannot_be_used_fail_the_bundle(
    tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    manifest = bundle(tmp_path)
    np.savez(tmp_path / "golden.npz", **arrays)  # type: ignore[arg-type] # numpy's stub takes no dict
    assert said in in_process(tmp_path, manifest)


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_golden_file_that_is_damaged_or_gone_fails_the_bundle(
    tmp_path: Path, content: bytes | None
) -> None:
    manifest = bundle(tmp_path)
    (tmp_path / "golden.npz").unlink()
    if content is not None:
        (tmp_path / "golden.npz").write_bytes(content)
    assert "golden.npz cannot be read" in in_process(tmp_path, manifest)


def test_golden_examples_that_unpack_to_too_much_are_refused_unread(
    tmp_path: Path,
) -> None:
    manifest = bundle(tmp_path)
    with zipfile.ZipFile(
        tmp_path / "golden.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as golden:
        for name in ("in_x.npy", "out_logits.npy"):
            golden.writestr(name, bytes(MAX_GOLDEN_BYTES // 2 + 1))
    assert (tmp_path / "golden.npz").stat().st_size < MAX_GOLDEN_BYTES // 100
    assert "golden.npz" in in_process(tmp_path, manifest)


async def test_golden_examples_whose_header_promises_terabytes_fail_the_bundle(
    tmp_path: Path,
) -> None:
    manifest = bundle(tmp_path)
    huge = np.lib.format.magic(1, 0)
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9000000000000, 4)}"
    head = head.ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "golden.npz", "w") as golden:
        for name in ("in_x.npy", "out_logits.npy"):
            golden.writestr(name, huge + len(head).to_bytes(2, "little") + head)
    assert "MB of memory" in await failure(tmp_path, manifest)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decision": {"output": "scores"}}, "decides by output 'scores'"),
        ({"labels": ["a", "b"]}, "2 labels, output 'logits' has 3 classes"),
        (
            {"preprocess": {"input": "image", "width": 2, "height": 2, "channels": 1}},
            "feeds an image to 'image', the model takes ['x']",
        ),
        ({"model": "custom_op", "golden": None}, "operator MatrixDeterminant"),
        ({"model_file": "absent.tflite"}, "absent.tflite"),
    ],
)
def test_a_manifest_that_does_not_fit_its_model_fails_the_bundle(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    assert said in in_process(tmp_path, bundle(tmp_path, **changes))


async def test_an_unsupported_operator_is_named_to_the_operator(tmp_path: Path) -> None:
    manifest = bundle(tmp_path, model="flex_op", golden=None)
    said = await failure(tmp_path, manifest)
    assert said.startswith("toy 7: model.tflite needs the operator FlexMatrixDet")


async def test_a_model_damaged_anywhere_never_harms_the_agent(tmp_path: Path) -> None:
    manifest = bundle(tmp_path)
    whole = (tmp_path / "model.tflite").read_bytes()
    # Offsets of the tables, which the interpreter follows without looking back.
    for at in (4, 8, 36, 120, 300):
        damaged = bytearray(whole)
        damaged[at : at + 8] = b"\xff\x7f\xff\x7f\xff\x7f\xff\x7f"
        (tmp_path / "model.tflite").write_bytes(damaged)
        said = await failure(tmp_path, manifest)
        assert said.startswith("toy 7")
    (tmp_path / "model.tflite").write_bytes(whole[:500])
    assert "cannot be run" in await failure(tmp_path, manifest)


async def test_a_model_that_crashes_its_trial_fails_by_the_name_of_the_signal(
    tmp_path: Path,
) -> None:
    manifest = bundle(tmp_path)
    make_hang(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        trial = tasks.create_task(failure(tmp_path, manifest))
        deadline = time.monotonic() + 40
        while not (
            running := [each for each in trials_of(tmp_path) if has_runtime(each)]
        ):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        os.kill(int(running[0].name), signal.SIGSEGV)
    assert trial.result() == "toy 7 crashed its trial (SIGSEGV)"


async def test_a_model_that_hangs_is_ended_in_time(tmp_path: Path) -> None:
    manifest = bundle(tmp_path)
    make_hang(tmp_path)
    said = await failure(tmp_path, manifest, limits=TrialLimits(timeout_s=2))
    assert said == "toy 7 was not done in 2 s"
    assert not trials_of(tmp_path)


async def test_a_model_that_needs_too_much_memory_fails(tmp_path: Path) -> None:
    manifest = bundle(
        tmp_path, model="any_shape", decision=None, labels=[], preprocess=None
    )
    wide = np.zeros((1, 30_000_000), np.float32)
    np.savez_compressed(tmp_path / "golden.npz", in_x=wide, out_y=wide)
    said = await failure(tmp_path, manifest, limits=TrialLimits(memory_mb=64))
    assert "more than 64 MB of memory" in said or "crashed" in said


async def test_a_cancelled_trial_leaves_no_child_behind(tmp_path: Path) -> None:
    manifest = bundle(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        trial = tasks.create_task(try_bundle(tmp_path, manifest))
        deadline = time.monotonic() + 20
        while not trials_of(tmp_path):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        trial.cancel()
    assert not trials_of(tmp_path)


def test_a_trial_dies_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    bundle(tmp_path)
    make_hang(tmp_path)
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path)])
    deadline = time.monotonic() + 40
    try:
        while not any(has_runtime(trial) for trial in trials_of(tmp_path)):
            assert agent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        agent.kill()
        agent.wait(10)
    while trials_of(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)


AGENT = """
import asyncio, pathlib, sys
from bundle.manifest import parse_manifest
from edge_agent.adapters.trial import try_bundle
folder = pathlib.Path(sys.argv[1])
manifest = parse_manifest((folder / "manifest.json").read_bytes())
asyncio.run(try_bundle(folder, manifest))
"""


def trials_of(folder: Path) -> list[Path]:
    """The living trials of one bundle, as folders of /proc."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"edge_agent.adapters.trial" in command and bytes(folder) in command:
            found.append(process)
    return found


def has_runtime(process: Path) -> bool:
    """Whether the child is past its start, where it ties itself to its parent."""
    try:
        return "litert" in (process / "maps").read_text()
    except OSError:
        return False


async def test_a_candidate_is_timed_beside_what_it_would_replace(
    tmp_path: Path,
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
    bundle(before)
    report = await try_bundle(after, bundle(after), before=before)
    assert report.before_ms is not None
    assert report.before_ms > 0
    assert report.memory_mb >= 0
    # A damaged one says nothing of the candidate.
    (before / "model.tflite").write_bytes(b"")
    assert (await try_bundle(after, bundle(after), before=before)).before_ms is None


@pytest.mark.parametrize(
    ("ms", "before_ms", "passes"),
    [(3.0, 1.0, True), (3.1, 1.0, False), (0.4, 0.01, True), (900.0, None, True)],
)
def test_how_much_slower_a_candidate_may_be(
    ms: float, before_ms: float | None, passes: bool
) -> None:
    report = TrialReport(1, 0.0, ms, before_ms)
    if passes:
        check_speed("toy 8", report, 3.0)
    else:
        with pytest.raises(TrialFailed, match="3 times that is allowed"):
            check_speed("toy 8", report, 3.0)
