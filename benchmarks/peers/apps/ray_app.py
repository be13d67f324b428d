"""Ray Serve: one replica, its `@serve.batch` decorator on each model."""

from __future__ import annotations

import asyncio
import os

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.apps import served

BATCH = {
    "max_batch_size": served.MAX_BATCH,
    "batch_wait_timeout_s": served.LINGER_S,
}


@serve.deployment(num_replicas=1, max_ongoing_requests=4096)
class Served:
    """Every model behind one path."""

    def __init__(self) -> None:
        served.load()

    @serve.batch(**BATCH)
    async def noop(self, bodies: list[bytes]) -> list[int]:
        return served.answers("noop", bodies)

    @serve.batch(**BATCH)
    async def stub(self, bodies: list[bytes]) -> list[int]:
        return await asyncio.to_thread(served.answers, "stub", bodies)

    @serve.batch(**BATCH)
    async def resnet(self, bodies: list[bytes]) -> list[int]:
        return await asyncio.to_thread(served.answers, "resnet", bodies)

    async def __call__(self, request: Request) -> dict[str, int]:
        asked = await request.json()
        model = getattr(self, asked["model"])
        return {"label": await model(served.decoded(asked["data"]))}


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 1024 * 1024,
        _node_ip_address="127.0.0.1",
        runtime_env={
            "env_vars": {
                name: value
                for name, value in os.environ.items()
                if name.startswith(("BENCH_", "PYTHONPATH", "TF_"))
            }
        },
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": served.PORT},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(Served.bind(), blocking=True)  # type: ignore[attr-defined] # ray adds it
