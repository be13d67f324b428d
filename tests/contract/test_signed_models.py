"""A worker that was given a root loads what the fleet's keys have signed, to the byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bundle.folder_seal import FolderSeal, read_folder_seal, seal_folder, verify_folder
from bundle.seal import SealRejected
from cloud_worker.__main__ import app
from cloud_worker.adapters.library import Holdings, Library
from cloud_worker.adapters.repository import NoRepository
from cloud_worker.adapters.signed_models import (
    LOOK_AGAIN_S,
    NoTrustedRoot,
    SignedModels,
    signed_models,
)
from cloud_worker.core.shelf import Key
from lifecycle.clock import SystemClock
from tests.trust import DAY_S, FleetTrust


class Pool:
    """A repository of models, and a worker that looks at it."""

    def __init__(self, fleet: FleetTrust, folder: Path) -> None:
        self.fleet = fleet
        self.models = folder / "models"
        self.now_s = 0.0
        self.signed = SignedModels(
            fleet.root(),
            folder / "worker-trust",
            fleet.tree,
            monotonic=lambda: self.now_s,
            wall_s=lambda: fleet.now_s,
        )
        self.library = Library(
            self.models, max_batch=8, settle_s=-1.0, refusal=self.signed.refusal
        )

    def put(self, version: str) -> Path:
        folder = self.models / "fashion" / version
        (folder / "variables").mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(version.encode())
        (folder / "variables" / "variables.index").write_bytes(b"index")
        return folder

    def sign(self, folder: Path) -> FolderSeal:
        seal = seal_folder(folder, folder.parent.name, folder.name)
        data = seal.model_dump_json().encode()
        self.fleet.repository.draft_folder(seal.name, seal.version, data)
        assert not self.fleet.sign().waiting
        return seal

    def served(self) -> list[str]:
        holdings: Holdings = self.library.look()
        return sorted(key.version for key in holdings.candidates)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(FleetTrust(tmp_path / "fleet"), tmp_path)


def test_a_signed_version_is_served_and_an_unsigned_one_is_passed_over(
    pool: Pool,
) -> None:
    pool.sign(pool.put("1"))
    pool.put("2")
    assert pool.served() == ["1"]


def test_a_worker_with_a_trust_dir_remembers_over_a_restart_and_others_do_not(
    pool: Pool, tmp_path: Path
) -> None:
    pool.sign(pool.put("1"))
    old = shutil.copytree(pool.fleet.registry, tmp_path / "old")
    pool.sign(pool.put("2"))
    assert pool.served() == ["1", "2"]
    shutil.rmtree(pool.fleet.registry)
    old.rename(pool.fleet.registry)

    def restarted(trust_dir: Path) -> list[str]:
        signed = SignedModels(pool.fleet.root(), trust_dir, pool.fleet.tree)
        library = Library(pool.models, max_batch=8, settle_s=-1, refusal=signed.refusal)
        return [key.version for key in library.look().candidates]

    assert restarted(tmp_path / "new") == ["1"]
    with pytest.raises(NoRepository, match="timestamp version 2 must be >= 3"):
        restarted(tmp_path / "worker-trust")


def test_the_list_of_what_would_be_served_knows_what_is_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(
        FleetTrust(tmp_path / "fleet", SystemClock().wall_ms() / 1000), tmp_path
    )
    root = tmp_path / "root.json"
    root.write_bytes(pool.fleet.root())
    pool.sign(pool.put("1"))
    unsigned = pool.put("2")
    monkeypatch.setenv("OVERSPILL_WORKER_TRUSTED_ROOT", str(root))
    monkeypatch.setenv("OVERSPILL_WORKER_REGISTRY", str(pool.fleet.registry))
    words = ["models", "--models", str(pool.models), "--json"]
    listed = CliRunner().invoke(app, words)
    assert listed.exit_code == 0, listed.output
    said = json.loads(listed.stdout)
    (model,) = said["models"]
    assert [each["version"] for each in model["versions"]] == ["1"]
    (passed_over,) = said["passed_over"]
    assert passed_over["path"] == str(unsigned)
    assert "is not signed" in passed_over["reason"]
    monkeypatch.delenv("OVERSPILL_WORKER_REGISTRY")
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 1
    assert "set OVERSPILL_WORKER_REGISTRY" in told.stderr


def test_a_version_that_is_signed_later_is_served_then(pool: Pool) -> None:
    pool.sign(pool.put("1"))
    second = pool.put("2")
    assert pool.served() == ["1"]
    pool.sign(second)
    pool.now_s += LOOK_AGAIN_S
    assert pool.served() == ["1", "2"]


def test_with_nothing_signed_a_worker_says_what_to_run(pool: Pool) -> None:
    pool.put("1")
    with pytest.raises(NoRepository, match="overspill model publish --cloud"):
        pool.library.look()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda f: (f / "saved_model.pb").write_bytes(b"evil"), "is not what was"),
        (lambda f: (f / "extra.py").write_bytes(b"evil"), "was not sealed"),
        (lambda f: (f / "variables" / "variables.index").unlink(), "is missing"),
        (lambda f: (f / "link").symlink_to("/etc/passwd"), "is a link"),
    ],
)
def test_a_version_that_was_changed_after_it_was_signed_is_not_loaded(
    pool: Pool, harm: Callable[[Path], object], reason: str
) -> None:
    pool.sign(pool.put("1"))
    second = pool.put("2")
    pool.sign(second)
    assert pool.served() == ["1", "2"]
    harm(second)
    assert pool.served() == ["1"]
    refusal = pool.signed.refusal(second, "fashion", "2", "another state")
    assert refusal is not None
    assert reason in refusal


def test_the_seal_of_another_model_or_version_does_not_fit(pool: Pool) -> None:
    seal = pool.sign(pool.put("1"))
    other = seal.model_copy(update={"version": "2"})
    with pytest.raises(SealRejected, match="this is fashion 2, sealed was fashion 1"):
        verify_folder(other, seal)
    pool.put("2")
    data = seal.model_dump_json().encode()
    pool.fleet.repository.draft_folder("fashion", "2", data)
    pool.fleet.sign()
    assert pool.served() == ["1"]


def test_a_pool_starts_though_the_fleets_daemon_was_down_for_long(pool: Pool) -> None:
    pool.sign(pool.put("1"))
    pool.fleet.now_s += 60 * DAY_S
    assert pool.served() == ["1"]


def test_a_root_without_a_registry_is_an_error_and_no_root_is_none(
    tmp_path: Path,
) -> None:
    assert signed_models(None, None, None) is None
    root = tmp_path / "root.json"
    root.write_bytes(b"{}")
    with pytest.raises(NoTrustedRoot, match="OVERSPILL_WORKER_REGISTRY"):
        signed_models(root, None, None)


def test_noise_is_no_seal_of_a_folder() -> None:
    with pytest.raises(SealRejected):
        read_folder_seal(b'{"kind": "overspill.seal"}')
    with pytest.raises(SealRejected):
        read_folder_seal(b"[" * 3_000_000)


def test_holdings_are_by_model_and_version(pool: Pool) -> None:
    pool.sign(pool.put("1"))
    assert list(pool.library.look().candidates) == [Key("fashion", "1")]
