"""Label queries: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.labels import (
    MAX_DEPTH,
    All,
    Any,
    BadQuery,
    Compares,
    Has,
    In,
    Not,
    Query,
    read_query,
    sees,
)

LYON = {
    "site": "lyon",
    "machine": "aarch64",
    "free_disk_mb": "128",
    "version": "1.10",
    "note": "not here",
}
EXAMPLE = (
    "site=lyon and machine in (aarch64, x86_64) and free_disk_mb >= 64 "
    "and not group=canary"
)


@pytest.mark.parametrize(
    ("text", "is_so"),
    [
        ("site=lyon", True),
        ("site = paris", False),
        ("site!=paris", True),
        ("group!=canary", True),
        ("group=canary", False),
        ("has site", True),
        ("has group", False),
        ("not has group", True),
        ("machine in (aarch64, x86_64)", True),
        ("machine not in (armv7l)", True),
        ("group not in (canary)", True),
        ("group in (canary)", False),
        ("free_disk_mb >= 64", True),
        ("free_disk_mb < 128", False),
        ("free_disk_mb <= 128.0", True),
        ("free_disk_mb = 128.0", True),
        ("free_disk_mb in (1, 1.28e2)", True),
        ("free_disk_mb > 9", True),
        # A version is no number of the same name, and text is in no order.
        ("version = 1.1", True),
        ("site > 3", False),
        ("missing < 3", False),
        ('note = "not here"', True),
        ('"not" = here or site=lyon', None),
        ("site=paris or site=lyon and has group", False),
        ("(site=paris or site=lyon) and not has group", True),
        ("not site=lyon or has machine", True),
        ("not (site=lyon or has machine)", False),
        (EXAMPLE, True),
    ],
)
def test_a_query_means_what_it_says(text: str, is_so: bool | None) -> None:
    if is_so is None:
        with pytest.raises(BadQuery):
            read_query(text)
    else:
        assert read_query(text).matches(LYON) is is_so


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "character 1 of '': expected a key"),
        ("site", "character 5 of 'site': expected =, !=, <"),
        ("site=", "expected a value, found the end"),
        ("site=lyon and", "character 14 of"),
        (
            "site=lyon machine=x",
            "character 11 of 'site=lyon machine=x': expected `and`",
        ),
        ("(site=lyon", "expected ), found the end"),
        ("site=lyon)", "expected `and`, `or` or the end, found ')'"),
        ("free_disk_mb > much", "expected a number after >, found 'much'"),
        ("machine in aarch64", "expected (, found 'aarch64'"),
        ("machine in ()", "expected a value, found ')'"),
        ("machine not aarch64", "expected `in` after `not`"),
        ("site=and", 'write "and" if it is one'),
        ("Site=lyon", "expected a key"),
        ('site="lyon', "character 6 of"),
        ("a" * 3000, "3000 characters, over 2000"),
        ("(" * 100 + "a=1" + ")" * 100, f"more than {MAX_DEPTH}"),
        ("not " * 400 + "a=1", f"more than {MAX_DEPTH}"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place(text: str, says: str) -> None:
    with pytest.raises(BadQuery) as refused:
        read_query(text)
    assert says in str(refused.value)


def test_an_operators_label_hides_what_an_agent_says_of_itself() -> None:
    said = sees({"group": "plain"}, {"group": "canary", "machine": "x86_64"})
    assert not read_query("group=canary").matches(said)
    assert read_query("machine=x86_64").matches(said)


KEYS = st.sampled_from(["site", "group", "n"])
VALUES = st.sampled_from(["lyon", "1", "01", "1.5", "in", "a b", "-3"])
NUMBERS = st.sampled_from(["1", "1.5", "-3", "1e3"])
QUERIES: st.SearchStrategy[Query] = st.recursive(
    st.builds(Has, KEYS)
    | st.builds(Compares, KEYS, st.sampled_from(["=", "!="]), VALUES)
    | st.builds(Compares, KEYS, st.sampled_from(["<", "<=", ">", ">="]), NUMBERS)
    | st.builds(In, KEYS, st.lists(VALUES, min_size=1, max_size=3).map(tuple)),
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(All, st.lists(inner, min_size=2, max_size=3).map(tuple))
        | st.builds(Any, st.lists(inner, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=12,
)


def written(query: Query) -> str:
    match query:
        case Has(key):
            return f"has {key}"
        case Compares(key, operator, value):
            return f'{key}{operator}"{value}"'
        case In(key, values):
            listed = ", ".join(f'"{each}"' for each in values)
            return f"{key} in ({listed})"
        case Not(of):
            return f"not ({written(of)})"
        case All(of):
            return " and ".join(f"({written(each)})" for each in of)
        case Any(of):
            return " or ".join(f"({written(each)})" for each in of)


@given(QUERIES, st.dictionaries(KEYS, VALUES))
def test_a_query_that_is_written_out_means_the_same(
    query: Query, said: dict[str, str]
) -> None:
    assert read_query(written(query)).matches(said) is query.matches(said)


@given(st.text(alphabet='site=<>!()," andorinhs1.\t', max_size=60))
def test_any_text_is_a_query_or_a_bad_one_and_nothing_else(text: str) -> None:
    with suppress(BadQuery):
        assert read_query(text).matches(LYON) in {True, False}
