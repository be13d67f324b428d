"""BentoML: an HTTP service whose adaptive batcher learns the cost of a call."""

from __future__ import annotations

import bentoml

from benchmarks.peers.apps import served

LATENCY_MS = 60_000  # its own bound answers 503; the others have none


@bentoml.service(
    workers=1,
    traffic={"timeout": 60, "max_concurrency": 4096},
    logging={"access": {"enabled": False}},
)
class Served:
    """Every model behind a path of its own, each with a batcher."""

    def __init__(self) -> None:
        served.load()

    @bentoml.api(
        batchable=True, max_batch_size=served.MAX_BATCH, max_latency_ms=LATENCY_MS
    )
    def noop(self, data: list[str]) -> list[int]:
        return served.answers("noop", [served.decoded(each) for each in data])

    @bentoml.api(
        batchable=True, max_batch_size=served.MAX_BATCH, max_latency_ms=LATENCY_MS
    )
    def stub(self, data: list[str]) -> list[int]:
        return served.answers("stub", [served.decoded(each) for each in data])

    @bentoml.api(
        batchable=True, max_batch_size=served.MAX_BATCH, max_latency_ms=LATENCY_MS
    )
    def resnet(self, data: list[str]) -> list[int]:
        return served.answers("resnet", [served.decoded(each) for each in data])
