"""Where a worker reads model updates: a folder or a bucket, and nothing else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cloud_worker.settings import WorkerSettings


@pytest.mark.parametrize("place", ["/srv/registry", "s3://models/fleet"])
def test_a_registry_is_a_folder_or_a_bucket(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERSPILL_WORKER_REGISTRY", place)
    monkeypatch.setenv("OVERSPILL_WORKER_AMQP_URL", "amqp://localhost")
    monkeypatch.setenv("OVERSPILL_WORKER_MODELS", "/srv/models")
    assert str(WorkerSettings().registry) == place


def test_another_kind_of_place_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OVERSPILL_WORKER_REGISTRY", "gs://models")
    with pytest.raises(ValidationError, match=r"use a folder or s3://bucket/prefix"):
        WorkerSettings()
