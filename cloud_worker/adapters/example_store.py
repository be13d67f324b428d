"""Keep examples in one part of a folder, within quotas; blocks, so a thread calls it.

The part is the first whose lock is free, so a worker that starts again goes on where
its last life ended, and two workers never share one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from broker.codec import unpack
from broker.messages import Request, Result
from bundle.durable import part_beside, write_file
from cloud_worker.adapters.example_index import CannotKeep, Index, Row, telling
from cloud_worker.adapters.example_part import Part
from cloud_worker.core.example_record import Record, hashed_device, record
from cloud_worker.core.examples import (
    Again,
    Collection,
    Placed,
    Quotas,
    TurnedAway,
    cloud_margin,
)
from cloud_worker.core.results import Answer
from cloud_worker.core.spec import ServedModel

log = structlog.get_logger(__name__)

MAX_PARTS: Final = 1000
DEVICE_KEY: Final = "device-key"
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Captured:
    """A request that was answered and may be kept.

    `at_ms` is Unix time. `batched`: the first axis of its tensors is a batch of one.
    """

    request: Request
    agent: str
    result: Result | Answer
    model: ServedModel
    at_ms: int
    batched: bool

    @property
    def size_bytes(self) -> int:
        """What it holds in memory, roughly."""
        request = self.request
        asked = 0 if request.medium is None else len(request.medium.data)
        asked += sum(len(each.data) for each in (request.tensors or {}).values())
        result = self.result
        if isinstance(result, Answer):
            return asked + len(result.packed)
        return asked + sum(len(each.data) for each in result.outputs.values())


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one, and the reasons of those that went for it."""

    captured: Captured
    kept: bool
    again: bool = False
    evicted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fill:
    """How much is kept of a model."""

    examples: int
    size_bytes: int


class ExampleStore:
    """One worker's examples.

    Args:
        root: the folder, which workers may share; its parent has to exist.
        quotas: of each model, in this part.
        reserve_bytes: of the disk, that has to stay free.
    """

    def __init__(self, root: Path, *, quotas: Quotas, reserve_bytes: int) -> None:
        self._root = root
        self._quotas = quotas
        self._reserve_bytes = reserve_bytes
        self._owned: _Owned | None = None
        self._key = b""
        self._kept: dict[str, Collection] = {}
        self._seen_changes = -1
        self._told_about: set[str] = set()

    @property
    def folder(self) -> Path | None:
        """Of its part, once it has one."""
        return None if self._owned is None else self._owned.part.folder

    def fill(self) -> dict[str, Fill]:
        """How much is kept, by model."""
        return {
            name: Fill(len(kept), kept.size_bytes) for name, kept in self._kept.items()
        }

    def keep(self, captured: Iterable[Captured]) -> list[Told]:
        """Keep what is worth it. All or none: what was not told of is not kept.

        Raises:
            CannotKeep: the disk does not let it.
        """
        with telling():
            owned = self._opened()
            free = shutil.disk_usage(self._root).free
            if free < self._reserve_bytes:
                raise CannotKeep(
                    f"{self._root}: {free // 2**20} MB are free, and "
                    f"{self._reserve_bytes // 2**20} MB are to stay so"
                )
            self._look_for_changes(owned)
            batch = _Batch(owned, self._kept, self._quotas)
            try:
                with owned.index.writing():
                    told = [
                        self._keep_one(owned.part, batch, each) for each in captured
                    ]
            except BaseException:
                # What the books say is not what the index says any more.
                self._seen_changes = -1
                batch.undo()
                raise
            batch.delete_evicted()
            return told

    def close(self) -> None:
        """Let go of the part."""
        if self._owned is not None:
            self._owned.index.close()
            os.close(self._owned.lock)
            self._owned = None

    def _keep_one(self, part: Part, batch: _Batch, captured: Captured) -> Told:
        self._write_about(part, captured.model)
        return batch.keep(captured, self._record(captured))

    def _record(self, captured: Captured) -> Record:
        result, model = captured.result, captured.model
        if isinstance(result, Answer):
            result = Result.model_validate(unpack(result.packed))
        request = captured.request
        return record(
            request,
            result,
            margin=cloud_margin(result.outputs, model.decision, result.confidence),
            device=hashed_device(self._key, captured.agent, request.device),
            at_ms=captured.at_ms,
            batched=captured.batched,
        )

    def _write_about(self, part: Part, model: ServedModel) -> None:
        """Note how this version is fed and what its classes are, for who exports."""
        if model.key in self._told_about:
            return
        recipe = model.preprocess
        about = {
            "labels": list(model.labels),
            "preprocess": None if recipe is None else recipe.model_dump(),
        }
        path = part.about(model.name, model.version)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(path, json.dumps(about).encode())
        self._told_about.add(model.key)

    # --- the part -------------------------------------------------------------------

    def _opened(self) -> _Owned:
        if self._owned is None:
            self._root.mkdir(mode=0o700, exist_ok=True)
            self._key = device_key(self._root)
            self._owned = _own(self._root)
        return self._owned

    def _look_for_changes(self, owned: _Owned) -> None:
        """Read the index, at first and whenever somebody has purged from it."""
        part, index = owned.part, owned.index
        changes = index.changes_of_others()
        if changes == self._seen_changes:
            return
        rows: dict[str, list[Row]] = {}
        for row in index.rows():
            rows.setdefault(row.model, []).append(row)
        self._kept.clear()
        with index.writing():
            for model, of_model in rows.items():
                collection = self._kept[model] = Collection(self._quotas)
                for entry in collection.refill(each.entry for each in of_model):
                    part.delete(model, entry.digest)
                    index.take_out(model, entry.digest)
        self._seen_changes = changes


@dataclass(frozen=True, slots=True)
class _Owned:
    """A part, its index and its lock, which is held while its descriptor is open."""

    part: Part
    index: Index
    lock: int


class _Batch:
    """Some examples that are kept in one change of the index."""

    def __init__(
        self, owned: _Owned, kept: dict[str, Collection], quotas: Quotas
    ) -> None:
        self._part = owned.part
        self._index = owned.index
        self._kept = kept
        self._quotas = quotas
        self._written: set[tuple[str, str]] = set()
        self._evicted: set[tuple[str, str]] = set()

    def keep(self, captured: Captured, made: Record) -> Told:
        model, part, index = made.example.model, self._part, self._index
        collection = self._kept.setdefault(model, Collection(self._quotas))
        known = made.entry.digest in collection
        match collection.offer(made.entry):
            case Placed(entry, evicted):
                part.write(model, entry.digest, made.data)
                if not known:
                    self._written.add((model, entry.digest))
                self._evicted.discard((model, entry.digest))
                index.put(Row.of(made.example, entry))
                for gone in evicted:
                    index.take_out(model, gone.digest)
                    self._evicted.add((model, gone.digest))
                reasons = tuple(each.reason for each in evicted)
                return Told(captured, kept=True, evicted=reasons)
            case Again(entry):
                index.count_again(model, entry.digest, entry.count)
                return Told(captured, kept=True, again=True)
            case TurnedAway():
                return Told(captured, kept=False)

    def delete_evicted(self) -> None:
        """Delete the files that no row speaks of any more.

        A crash before this leaves them to `Part.mend`, and quotas take them out again.
        """
        for model, digest in self._evicted:
            self._part.delete(model, digest)

    def undo(self) -> None:
        """Delete what was written, as far as the disk lets it."""
        for model, digest in self._written:
            with suppress(OSError):
                self._part.delete(model, digest)


def device_key(root: Path) -> bytes:
    """The key that devices' names are hashed with; made when there is none.

    Raises:
        OSError: the disk does not let it.
    """
    path = root / DEVICE_KEY
    if not path.exists():
        # Linked into place: of two workers that start together, one makes it.
        made = part_beside(path)
        write_file(made, os.urandom(KEY_BYTES), mode=0o600)
        with suppress(FileExistsError):
            os.link(made, path)
        made.unlink()
    return path.read_bytes()[:KEY_BYTES]


def _own(root: Path) -> _Owned:
    part, lock = _first_free(root)
    try:
        index = part.own()
        try:
            lost, found = part.mend(index)
        except BaseException:
            index.close()
            raise
    except BaseException:
        os.close(lock)
        raise
    log.info(
        "examples_kept_in",
        folder=str(part.folder),
        rows_without_file=lost,
        files_taken_in=found,
    )
    return _Owned(part, index, lock)


def _first_free(root: Path) -> tuple[Part, int]:
    """The first part that nobody holds, and its lock."""
    for number in range(1, MAX_PARTS + 1):
        folder = root / f"part-{number}"
        folder.mkdir(mode=0o700, exist_ok=True)
        part = Part(folder)
        lock = part.lock()
        if lock is not None:
            return part, lock
    raise CannotKeep(f"{root}: all of {MAX_PARTS} parts are in use")
