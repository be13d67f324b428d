"""Examples on a disk: kept once, found again after a crash, never in another's part."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from broker.messages import EdgeOpinion, Medium, Reason, Request, Result, Status, Tensor
from bundle.manifest import Decision
from cloud_worker.adapters.example_index import CannotKeep, Index, Row
from cloud_worker.adapters.example_part import INDEX, Part, parts_of
from cloud_worker.adapters.example_store import Captured, ExampleStore, device_key
from cloud_worker.core.example_record import Unreadable, hashed_device
from cloud_worker.core.examples import Quota, Quotas
from cloud_worker.core.spec import ModelSpec, ServedModel

LABELS = ("shirt", "bag")
MODEL = ServedModel(
    name="fashion",
    version="9",
    spec=ModelSpec(inputs=(), outputs=(), batched=True),
    max_batch=8,
    decision=Decision(output="out", activation="probabilities"),
    labels=LABELS,
    capture=True,
)


def quotas(examples: int = 100, size_bytes: int = 10**7) -> Quotas:
    whole = Quota(examples, size_bytes)
    return Quotas(whole, whole, whole)


def store(root: Path, examples: int = 100) -> ExampleStore:
    return ExampleStore(root, quotas=quotas(examples), reserve_bytes=0)


def captured(
    number: int,
    *,
    edge: str | None = "bag",
    cloud: str = "shirt",
    sure: float = 0.9,
    at_ms: int = 1_000,
    reason: Reason = Reason.HARD,
) -> Captured:
    picture = np.full((1, 4), number, np.float32)
    said = np.array([[sure, 1 - sure]], np.float32)
    request = Request(
        id=f"r-{number}",
        device="cam1",
        model="fashion",
        reason=reason,
        expires_at_ms=1,
        tensors={"x": Tensor(dtype="float32", shape=[1, 4], data=picture.tobytes())},
        edge=EdgeOpinion(label=edge, confidence=0.4, version="3"),
    )
    result = Result(
        id=request.id,
        device="cam1",
        model="fashion",
        status=Status.OK,
        version="9",
        label=cloud,
        confidence=sure,
        outputs={"out": Tensor(dtype="float32", shape=[1, 2], data=said.tobytes())},
    )
    return Captured(request, "agent-1", result, MODEL, at_ms, batched=True)


def rows(part: Path) -> list[Row]:
    index = Part(part).open()
    try:
        return list(index.rows())
    finally:
        index.close()


def files(part: Path) -> set[str]:
    return {each.stem for each in part.rglob("*.example")}


def test_an_example_holds_what_was_asked_and_what_both_models_said(
    tmp_path: Path,
) -> None:
    root = tmp_path / "examples"
    kept = store(root)
    (told,) = kept.keep([captured(7, sure=0.75)])
    assert told.kept
    part = Part(root / "part-1")
    (row,) = rows(part.folder)
    example = part.read("fashion", row.digest)
    assert example.inputs.tensors == captured(7).request.tensors
    assert example.edge == EdgeOpinion(label="bag", confidence=0.4, version="3")
    assert (example.cloud.label, example.cloud.version) == ("shirt", "9")
    assert np.frombuffer(example.cloud.outputs["out"].data, np.float32)[0] == 0.75
    assert row.margin == pytest.approx(0.5)
    assert (row.label, row.edge_label, row.reason) == ("shirt", "bag", "hard")
    about = json.loads(part.about("fashion", "9").read_text())
    assert about == {"labels": ["shirt", "bag"], "preprocess": None}


def test_a_device_is_named_by_a_hash_that_the_folder_s_key_makes(
    tmp_path: Path,
) -> None:
    root = tmp_path / "examples"
    kept = store(root)
    kept.keep([captured(1)])
    (row,) = rows(root / "part-1")
    path = Part(root / "part-1").path("fashion", row.digest)
    assert b"cam1" not in path.read_bytes()
    assert b"agent-1" not in path.read_bytes()
    assert row.device == hashed_device(device_key(root), "agent-1", "cam1")
    for secret in (path, root / "device-key", root / "part-1" / INDEX):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_an_image_is_kept_as_it_was_sent(tmp_path: Path) -> None:
    medium = Medium(media_type="image/png", data=b"\x89PNG and so on")
    plain = captured(1)
    request = plain.request.model_copy(update={"tensors": None, "medium": medium})
    kept = store(tmp_path / "examples")
    kept.keep([Captured(request, "a", plain.result, MODEL, 1, batched=True)])
    (row,) = rows(tmp_path / "examples" / "part-1")
    example = Part(tmp_path / "examples" / "part-1").read("fashion", row.digest)
    assert example.inputs.medium == medium


def test_the_same_inputs_are_one_file_with_a_count_also_after_a_restart(
    tmp_path: Path,
) -> None:
    root = tmp_path / "examples"
    kept = store(root)
    kept.keep([captured(1), captured(1)])
    kept.close()
    again = store(root)
    (told,) = again.keep([captured(1)])
    assert told.again
    (row,) = rows(root / "part-1")
    assert row.count == 3
    assert files(root / "part-1") == {row.digest}


def test_what_is_worth_least_goes_with_its_file(tmp_path: Path) -> None:
    root = tmp_path / "examples"
    kept = store(root, examples=2)
    kept.keep([captured(1, edge="shirt"), captured(2, sure=0.6)])
    (told,) = kept.keep([captured(3, sure=0.9)])
    assert told.evicted == ("hard",)
    left = rows(root / "part-1")
    assert len(left) == 2
    assert all(each.edge_label == "bag" for each in left)
    assert files(root / "part-1") == {each.digest for each in left}
    (told,) = kept.keep([captured(4, edge="shirt")])
    assert not told.kept
    assert kept.fill()["fashion"].examples == 2


def test_two_workers_on_one_folder_have_a_part_each(tmp_path: Path) -> None:
    root = tmp_path / "examples"
    one, two = store(root), store(root)
    one.keep([captured(1)])
    two.keep([captured(1), captured(2)])
    assert (one.folder, two.folder) == (root / "part-1", root / "part-2")
    assert [len(rows(each.folder)) for each in parts_of(root)] == [1, 2]
    # Both hash with one key, whoever came first.
    assert (
        len({each.device for part in parts_of(root) for each in rows(part.folder)}) == 1
    )
    one.close()
    three = store(root)
    three.keep([captured(3)])
    assert three.folder == root / "part-1"
    assert len(rows(root / "part-1")) == 2


def test_a_file_without_a_row_is_taken_in_and_a_row_without_a_file_out(
    tmp_path: Path,
) -> None:
    """As a kill between the file and its row, or between the row and its file, leaves."""
    root = tmp_path / "examples"
    kept = store(root)
    kept.keep([captured(1), captured(2), captured(3)])
    kept.close()
    part = Part(root / "part-1")
    first, second, third = rows(part.folder)
    index = part.open()
    with index.writing():
        index.take_out("fashion", first.digest)
    index.close()
    part.delete("fashion", second.digest)
    half = part.path("fashion", third.digest).with_name(".x.example.part")
    half.write_bytes(b"half")
    again = store(root)
    again.keep([])
    left = {each.digest: each for each in rows(part.folder)}
    assert left == {first.digest: first, third.digest: third}
    assert not half.exists()
    assert again.fill()["fashion"].examples == 2


def test_a_file_that_is_damaged_is_not_taken_in(tmp_path: Path) -> None:
    root = tmp_path / "examples"
    kept = store(root)
    kept.keep([captured(1)])
    kept.close()
    part = Part(root / "part-1")
    (row,) = rows(part.folder)
    path = part.path("fashion", row.digest)
    was = np.full(4, 1, np.float32).tobytes()
    assert was in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(was, was[::-1]))
    with pytest.raises(Unreadable, match="not those that its name says"):
        part.read("fashion", row.digest)
    (part.folder / INDEX).unlink()
    store(root).keep([])
    assert rows(part.folder) == []
    assert files(part.folder) == set()


def test_a_damaged_index_is_made_again_from_the_files(tmp_path: Path) -> None:
    root = tmp_path / "examples"
    kept = store(root)
    kept.keep([captured(1), captured(2)])
    kept.close()
    before = rows(root / "part-1")
    (root / "part-1" / INDEX).write_bytes(b"no database at all" * 100)
    again = store(root)
    again.keep([captured(3)])
    after = rows(root / "part-1")
    assert [each for each in after if each in before] == before
    assert len(after) == 3
    assert (root / "part-1" / f"{INDEX}.damaged").exists()


def test_what_another_process_purges_does_not_count_any_more(tmp_path: Path) -> None:
    root = tmp_path / "examples"
    kept = store(root, examples=2)
    kept.keep([captured(1, edge="shirt"), captured(2, edge="shirt")])
    purging = Part(root / "part-1").open()
    gone = next(purging.rows())
    with purging.writing():
        Part(root / "part-1").delete("fashion", gone.digest)
        purging.take_out("fashion", gone.digest)
    purging.close()
    (told,) = kept.keep([captured(3, edge="shirt")])
    assert told.kept
    assert told.evicted == ()


def test_a_disk_under_its_reserve_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "examples"
    kept = ExampleStore(root, quotas=quotas(), reserve_bytes=2**62)
    with pytest.raises(CannotKeep, match="MB are free"):
        kept.keep([captured(1)])


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    kept = store(tmp_path / "nowhere" / "examples")
    with pytest.raises(CannotKeep, match="No such file or directory"):
        kept.keep([captured(1)])


def test_an_index_of_a_later_version_is_left_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "examples"
    (root / "part-1").mkdir(parents=True)
    with sqlite3.connect(root / "part-1" / INDEX) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(CannotKeep, match="schema 99"):
        store(root).keep([captured(1)])
    with pytest.raises(CannotKeep, match="schema 99"):
        Index(root / "part-1" / INDEX)


# --- crashes ------------------------------------------------------------------------

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from tests.contract.test_example_store import captured, store
kept = store(Path(sys.argv[1]), examples=20)
number = int(sys.argv[2])
while True:
    kept.keep([captured(number + each, sure=0.5 + (number % 7) / 20) for each in range(3)])
    print(number, flush=True)
    number += 2
"""


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_a_kill_at_any_moment_leaves_whole_examples_and_an_index_of_them(
    tmp_path: Path,
) -> None:
    root = tmp_path / "examples"
    for life in range(4):
        with child(WRITE_FOR_EVER, root, 1000 * life) as process:
            assert process.stdout is not None
            for _ in range(3):
                assert process.stdout.readline()
            time.sleep(0.003 * life)
            process.kill()
        kept = store(root, examples=20)
        kept.keep([])
        kept.close()
        part = Part(root / "part-1")
        listed = rows(part.folder)
        assert {each.digest for each in listed} == files(part.folder)
        assert 0 < len(listed) <= 20
        for each in listed:
            assert Row.of(part.read("fashion", each.digest), each.entry) == each
        assert not list(part.folder.rglob("*.part"))


FULL = """
import resource, sys
from pathlib import Path
from cloud_worker.adapters.example_index import CannotKeep
from tests.contract.test_example_store import captured, store
kept = store(Path(sys.argv[1]))
kept.keep([captured(1)])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), most))
try:
    kept.keep([captured(2), captured(3)])
except CannotKeep as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
print(sum(each.kept for each in kept.keep([captured(2), captured(4)])))
print(kept.fill()["fashion"].examples)
"""


@pytest.mark.parametrize(("what", "limit_bytes"), [("example", 16), ("index", 1000)])
def test_a_file_that_may_not_grow_costs_what_was_to_be_kept_and_nothing_else(
    tmp_path: Path, what: str, limit_bytes: int
) -> None:
    root = tmp_path / "examples"
    with child(FULL, root, limit_bytes) as process:
        said, _ = process.communicate(timeout=50)
    why, kept, filled = said.splitlines()[-3:]
    assert ("File too large" if what == "example" else "the index of examples") in why
    assert (kept, filled) == ("2", "3")
    listed = rows(root / "part-1")
    assert {each.digest for each in listed} == files(root / "part-1")
