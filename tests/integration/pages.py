"""Asking a process for its pages over HTTP, as a probe does."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, frozenset[tuple[str, str]]]
"""The name of a metric, and its labels."""


async def ask(port: int, request: bytes) -> bytes:
    """All that a server of this machine says to these bytes."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
    return answer


async def get(port: int, path: str) -> tuple[int, str]:
    """The status and body of one GET."""
    answer = await ask(port, f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def sample(name: str, **labels: str) -> Sample:
    """How `metrics` names a sample."""
    return name, frozenset(labels.items())


async def metrics(port: int) -> dict[Sample, float]:
    """Every sample that is told to Prometheus."""
    status, body = await get(port, "/metrics")
    assert status == 200
    return {
        sample(each.name, **each.labels): each.value
        for family in text_string_to_metric_families(body)
        for each in family.samples
    }
