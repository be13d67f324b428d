"""One model version as the agent serves it: manifest, runner and threshold in one value.

Swapping the value swaps them all, so no request is ever answered by a mixture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bundle.manifest import Manifest
from cascade.policy import Judgement, Rule, judge
from edge_agent.core.answers import Array
from edge_agent.core.routing import ModelFacts


class Runner(Protocol):
    """What serving needs of a loaded model."""

    @property
    def predicted_ms(self) -> float:
        """How long the next answer is expected to take."""
        ...

    async def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once."""
        ...

    async def close(self) -> None:
        """Finish what was begun and free the model."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A model version in service."""

    manifest: Manifest
    runner: Runner
    input_shapes: Mapping[str, Sequence[int]]
    rule: Rule | None

    @property
    def facts(self) -> ModelFacts:
        """What routing needs to know."""
        limits = self.manifest.limits
        return ModelFacts(
            max_payload_bytes=limits.max_payload_bytes,
            max_pixels=limits.max_pixels,
            shapes=self.input_shapes,
            predicted_ms=self.runner.predicted_ms,
        )

    def judge(
        self, outputs: Mapping[str, Array], threshold: float | None = None
    ) -> Judgement | None:
        """What to think of these outputs; None when the manifest does not say.

        Args:
            outputs: of the model, by name.
            threshold: the one in force, where it is not the manifest's own.
        """
        decision = self.manifest.decision
        if decision is None or self.rule is None:
            return None
        output = outputs.get(decision.output)
        if output is None:
            return _lacks(decision.output)
        sure = None
        if decision.confidence_output is not None:
            sure = outputs.get(decision.confidence_output)
            if sure is None:
                return _lacks(decision.confidence_output)
        return judge(output, self.rule, confidence_output=sure, threshold=threshold)

    def label(self, judgement: Judgement | None) -> str | None:
        """The label of a judgement, where the manifest has one."""
        if judgement is None or judgement.label_index is None:
            return None
        labels = self.manifest.labels
        index = judgement.label_index
        return labels[index] if index < len(labels) else str(index)


def _lacks(output: str) -> Judgement:
    why = f"the model has no output {output!r}"
    return Judgement(None, 0.0, hard=True, why=why, unusable=True)


def rule_of(manifest: Manifest) -> Rule | None:
    """How to judge answers of this bundle; None when it has no decision."""
    decision = manifest.decision
    if decision is None:
        return None
    return Rule(
        score=decision.score,
        activation=decision.activation,
        temperature=decision.temperature,
        threshold=decision.threshold,
        task=manifest.task,
        norm=decision.norm,
        empty_is_sure=decision.empty == "sure",
    )
