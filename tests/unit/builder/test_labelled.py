from __future__ import annotations

import numpy as np
import pytest

from builder.core.labelled import check_classes, check_skipped, digests, labelled
from builder.core.refusal import BuildRefused

PICTURES = np.zeros((4, 3, 3), np.uint8)


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(BuildRefused, match="labels do not match: 4 examples"):
        labelled(PICTURES, np.zeros(3, np.int64))


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(BuildRefused, match="from 0 to 2, and there are 2 classes"):
        labelled(PICTURES, np.array([0, 1, 2, 1]), ("a", "b"))


def test_a_label_that_is_no_class_is_refused_by_name() -> None:
    with pytest.raises(BuildRefused, match="no class: dgo"):
        labelled(PICTURES, np.array(["cat", "dog", "dgo", "cat"]), ("cat", "dog"))


def test_nothing_and_words_and_what_is_not_finite_are_refused() -> None:
    with pytest.raises(BuildRefused, match="empty"):
        labelled(PICTURES[:0], np.zeros(0, np.int64))
    with pytest.raises(BuildRefused, match="are numbers"):
        labelled(np.array(["a", "b"]), np.array([0, 1]))
    with pytest.raises(BuildRefused, match="NaN or infinity, rows 1"):
        labelled(np.array([[1.0], [np.nan]]), np.array([0, 1]))


def test_names_become_indexes_in_their_order() -> None:
    data = labelled(PICTURES, np.array(["dog", "cat", "dog", "cat"]))
    assert data.names == ("cat", "dog")
    assert data.labels.tolist() == [1, 0, 1, 0]


def test_grey_pictures_get_their_channel_and_their_scale() -> None:
    data = labelled(PICTURES + 255, np.array([0, 1, 0, 1]), scale=1 / 255, offset=-1.0)
    assert data.is_picture
    taken = data.model_inputs(slice(0, 2))
    assert taken.shape == (2, 3, 3, 1)
    assert taken.dtype == np.float32
    assert np.allclose(taken, 0)


def test_token_ids_stay_whole_numbers() -> None:
    data = labelled(np.array([[5, 2], [1, 9]], np.int64), np.array([0, 1]))
    assert data.model_inputs(slice(None)).dtype == np.int32


def test_one_class_is_refused() -> None:
    with pytest.raises(BuildRefused, match="one class"):
        check_classes(labelled(PICTURES, np.zeros(4, np.int64), ("a",)))


def test_an_empty_class_is_refused_by_name() -> None:
    data = labelled(PICTURES, np.array([0, 0, 1, 1]), ("a", "b", "c"))
    with pytest.raises(BuildRefused, match=r"fewer than 1 examples: c \(0\)"):
        check_classes(data)


def test_what_cannot_be_read_is_allowed_up_to_a_share() -> None:
    data = labelled(PICTURES, np.array([0, 1, 0, 1]), skipped=("a/broken.png",))
    check_skipped(data, 0.2)
    with pytest.raises(BuildRefused, match=r"1 of 5 .* a/broken.png"):
        check_skipped(data, 0.1)


def test_equal_examples_have_equal_digests_and_others_do_not() -> None:
    one, two, three = digests(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]]))
    assert one == two != three


def test_columns_are_named_one_for_each_number_of_a_row() -> None:
    rows = np.zeros((2, 3), np.float32)
    names = ("a", "b", "c")
    assert labelled(rows, np.array([0, 1]), columns=names).columns == names
    with pytest.raises(BuildRefused, match=r"2 columns are named.*shape \[3\]"):
        labelled(rows, np.array([0, 1]), columns=names[:2])


def test_whole_numbers_are_tokens_and_bytes_and_floats_are_not() -> None:
    ids = np.array([[5, 2], [1, 9]])
    labels = np.array([0, 1])
    assert labelled(ids, labels).vocabulary == 10
    assert labelled(ids.astype(np.float32), labels).vocabulary is None
    assert labelled(PICTURES, np.arange(len(PICTURES)) % 2).vocabulary is None
