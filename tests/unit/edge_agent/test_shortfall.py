"""How much worse the edge's answer is believed to be."""

from __future__ import annotations

import numpy as np
import pytest

from bundle.calibration import CloudReading
from edge_agent.core.answers import Answer, AnswerStatus, Source
from edge_agent.core.shortfall import cloud_amount, cloud_probabilities, edge_amount

LABELS = ("a", "b", "c")
READING = CloudReading(output="logits")
P = np.array([0.2, 0.7, 0.1])


def said(label: str | None, output: object = None, **more: float) -> Answer:
    outputs = None if output is None else {"logits": np.asarray(output, np.float32)}
    return Answer(
        "r",
        "d",
        AnswerStatus.ANSWERED,
        Source.CLOUD,
        label=label,
        outputs=outputs,
        confidence=more.get("confidence"),
    )


CLOUD = said("b", [np.log(P)])


def test_the_excess_is_what_the_cloud_believes_of_both_answers() -> None:
    for label, excess, error in (("a", 0.5, 0.8), ("b", 0.0, 0.3), ("c", 0.6, 0.9)):
        edge = said(label)
        assert edge_amount("excess", edge, CLOUD, READING, LABELS) == pytest.approx(
            excess, abs=1e-6
        )
        assert edge_amount("error", edge, CLOUD, READING, LABELS) == pytest.approx(
            error, abs=1e-6
        )


def test_the_clouds_own_answer_has_no_excess_and_some_error() -> None:
    assert cloud_amount("excess", CLOUD, READING, LABELS) == 0.0
    assert cloud_amount("error", CLOUD, READING, LABELS) == pytest.approx(0.3)
    unread = said("b", confidence=0.9)
    assert cloud_amount("error", unread, READING, LABELS) == pytest.approx(0.1)
    assert cloud_amount("error", said("b"), READING, LABELS) is None


@pytest.mark.parametrize(
    "cloud",
    [
        said("b"),
        said("b", [[np.nan, 1.0, 2.0]]),
        said("b", []),
        said("b", [[1.0, 2.0]]),
        said("b", [[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]]),
        said("b", [[9.0, 1.0, 0.0]]),  # its best class is not the one it names
    ],
)
def test_what_cannot_be_read_counts_as_plain_disagreement(cloud: Answer) -> None:
    assert cloud_probabilities(cloud, READING, LABELS) is None
    assert edge_amount("excess", said("a"), cloud, READING, LABELS) == 1.0
    assert edge_amount("excess", said("b"), cloud, READING, LABELS) == 0.0


def test_without_labels_there_is_nothing_to_compare() -> None:
    assert edge_amount("excess", said(None), CLOUD, READING, LABELS) is None


def test_a_class_without_a_name_is_known_by_its_number() -> None:
    cloud = said("1", [np.log(P)])
    assert edge_amount("excess", said("0"), cloud, READING, ()) == pytest.approx(0.5)


def test_a_temperature_makes_the_cloud_less_sure() -> None:
    hot = CloudReading(output="logits", temperature=5.0)
    cool = edge_amount("excess", said("a"), CLOUD, READING, LABELS)
    warm = edge_amount("excess", said("a"), CLOUD, hot, LABELS)
    assert warm is not None
    assert cool is not None
    assert warm < cool
