import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import topics
from broker.messages import Priority

IDS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)


@given(agent=IDS, model=IDS, priority=st.sampled_from(Priority))
def test_a_request_topic_is_read_back_from_its_routing_key(
    agent: str, model: str, priority: Priority
) -> None:
    key = topics.as_routing_key(topics.requests(agent, model, priority))

    assert topics.read_request_key(key) == topics.RequestAddress(agent, model, priority)
    assert topics.read_agent(key) == agent


@pytest.mark.parametrize(
    "key",
    [
        "",
        "e1",
        "e1.a.up.req.m",
        "e1.a.up.req.m.urgent",
        "e2.a.up.req.m.hi",
        "e1.a.up.get",
        "e1.a/up/x.up.req.m.hi",
        "e1.a.up.req.m/n.hi",
        "e1..up.req.m.hi",
    ],
)
def test_a_routing_key_that_is_no_request_is_not_taken_for_one(key: str) -> None:
    assert topics.read_request_key(key) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a.b",
        "a/b",
        "a+b",
        "#",
        "*",
        "A",
        "-a",
        "a" * 65,
        "a\n",
        "ä",
        "a b",
        "a\x00",
    ],
)
def test_an_id_that_would_change_the_routing_is_refused_and_named(name: str) -> None:
    with pytest.raises(topics.BadId, match="agent"):
        topics.check_id("agent", name)


@pytest.mark.parametrize("name", ["a", "0", "cam-1", "a_b", "a" * 64])
def test_an_id_of_the_wire_is_given_back(name: str) -> None:
    assert topics.check_id("device", name) == name


@pytest.mark.parametrize(
    "key", ["", "e1.a", "e2.a.up.get", "e1.a/up/x.up.get", "e1..up.get"]
)
def test_a_key_that_names_no_valid_agent_is_nobodys(key: str) -> None:
    assert topics.read_agent(key) is None
