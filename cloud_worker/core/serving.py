"""A model as it answers now: its versions, and which requests each of them gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloud_worker.core.policy import Shares, choose
from cloud_worker.core.spec import ServedModel


@dataclass(frozen=True, slots=True)
class Serving:
    """The versions of one model that answer; `shares` sum to 1."""

    versions: Mapping[str, ServedModel]
    shares: Shares

    @classmethod
    def only(cls, model: ServedModel) -> Serving:
        """One version for all requests."""
        return cls({model.version: model}, {model.version: 1.0})

    @property
    def max_batch(self) -> int:
        """Rows in the largest batch of any version."""
        return max(model.max_batch for model in self.versions.values())

    def choose(self, request: str) -> ServedModel:
        """The version for a request of this id, however often it is sent."""
        return self.versions[choose(self.shares, request)]
