"""Everything RabbitMQ must hold, as data. The definitions file is rendered from here.

Nothing else in the project names an exchange, a queue argument or a permission.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from broker.messages import Priority
from broker.topics import as_routing_key, check_id, results

TOPIC_EXCHANGE: Final = "amq.topic"
UNROUTED_EXCHANGE: Final = "unrouted"
UNROUTED_QUEUE: Final = "unrouted"
DEAD_EXCHANGE: Final = "infer.dead"
DEAD_QUEUE: Final = "infer.dead"
UNANSWERED_QUEUE: Final = "infer.unanswered"
GET_QUEUE: Final = "model.get"
TELEMETRY_QUEUE: Final = "fleet.telemetry"

DELIVERY_LIMIT: Final = 5
REQUEST_TTL_MS: Final = 24 * 3600 * 1000
REQUEST_QUEUE_BYTES: Final = 4 * 1024**3
SESSION_QUEUE_MESSAGES: Final = 20_000
SESSION_QUEUE_BYTES: Final = 64 * 1024**2
SIDE_QUEUE_MESSAGES: Final = 100_000
DEAD_MESSAGES: Final = 10_000
DEAD_BYTES: Final = 1024**3
DEAD_TTL_MS: Final = 7 * 24 * 3600 * 1000
# Whoever looks puts all back, which counts as a delivery of each.
DEAD_LOOKS: Final = 1_000_000

Arguments = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue and the routing key that binds it to an exchange.

    It is durable, or else `exclusive`: gone with the connection that declared it.
    """

    name: str
    exchange: str
    routing_key: str
    arguments: Arguments = field(default_factory=dict)
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class User:
    """A RabbitMQ user with literal permissions: who may touch what.

    `topic_write` and `topic_read` are regular expressions over routing keys of
    `amq.topic`; None means that the user has no topic restriction.
    """

    name: str
    configure: str
    write: str
    read: str
    topic_write: str | None = None
    topic_read: str | None = None
    tags: tuple[str, ...] = ()


def request_queue(model: str, priority: Priority) -> Queue:
    """The quorum queue of one model and class."""
    check_id("model", model)
    return Queue(
        name=f"infer.{model}.{priority.value}",
        exchange=TOPIC_EXCHANGE,
        routing_key=f"e1.*.up.req.{model}.{priority.value}",
        arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": DEAD_EXCHANGE,
            "x-message-ttl": REQUEST_TTL_MS,
            "x-max-length-bytes": REQUEST_QUEUE_BYTES,
            # A full queue dead-letters its oldest, which is answered `failed`;
            # `reject-publish` would cut the agent's connection on 3.10.
            "x-overflow": "drop-head",
        },
    )


def model_queues(model: str) -> tuple[Queue, ...]:
    """The queues of one model, most urgent first."""
    return tuple(request_queue(model, each) for each in Priority)


def result_queue(name: str, agent: str) -> Queue:
    """A queue of somebody's own for an agent's results; one name may take several's.

    Under `infer.`, because that is what a worker's user may declare.
    """
    return Queue(
        name=f"infer.results.{check_id('queue', name)}",
        exchange=TOPIC_EXCHANGE,
        routing_key=as_routing_key(results(check_id("agent", agent))),
        exclusive=True,
    )


def standing_queues() -> tuple[Queue, ...]:
    """The queues that exist whatever models are served."""
    quorum: dict[str, str | int] = {"x-queue-type": "quorum"}
    bounded = {**quorum, "x-max-length": SIDE_QUEUE_MESSAGES, "x-overflow": "drop-head"}
    return (
        Queue(UNROUTED_QUEUE, UNROUTED_EXCHANGE, "", bounded),
        # Dead letters keep their routing key, so the agent can still be told: workers
        # answer those of `infer.unanswered`, and operators keep those of `infer.dead`.
        Queue(UNANSWERED_QUEUE, DEAD_EXCHANGE, "", bounded),
        Queue(
            DEAD_QUEUE,
            DEAD_EXCHANGE,
            "",
            {
                **bounded,
                "x-max-length": DEAD_MESSAGES,
                "x-max-length-bytes": DEAD_BYTES,
                "x-message-ttl": DEAD_TTL_MS,
                "x-delivery-limit": DEAD_LOOKS,
            },
        ),
        Queue(
            GET_QUEUE,
            TOPIC_EXCHANGE,
            "e1.*.up.get",
            {**bounded, "x-delivery-limit": DELIVERY_LIMIT},
        ),
        Queue(TELEMETRY_QUEUE, TOPIC_EXCHANGE, "e1.*.up.tel", bounded),
    )


def agent_user(agent: str) -> User:
    """The permissions of one agent: its own session queue and its own topics.

    The queue permission is literal, because `{username}` expands in topic
    permissions only, and without it a stranger who takes an agent's client id
    would read its session.
    """
    check_id("agent", agent)
    name = re.escape(agent).replace("\\-", "-")
    session = f"mqtt-subscription-{name}qos[01]"
    return User(
        name=agent,
        configure=f"^{session}$",
        write=f"^({session}|amq\\.topic)$",
        read=f"^({session}|amq\\.topic)$",
        topic_write=f"^e1\\.{name}\\.up\\.",
        topic_read=f"^(e1\\.{name}\\.dn\\.|w1\\.)",
    )


def worker_user(name: str = "worker") -> User:
    """The pool: its queues, and the downlinks of every agent.

    Requests too, because what was unrouted goes back once its queue exists.
    """
    return _cloud_user(name)


def fleet_user(name: str = "fleet") -> User:
    """The operators' program: hears telemetry, sends hints.

    Requests too, because a retried dead letter goes back to where it died.
    """
    return _cloud_user(name)


def _cloud_user(name: str) -> User:
    queues = "infer\\..*|unrouted|model\\.get|fleet\\.telemetry"
    return User(
        name=name,
        configure=f"^({queues})$",
        write=f"^({queues}|amq\\.topic)$",
        read=f"^({queues}|amq\\.topic)$",
        topic_write="^(e1\\.[a-z0-9_-]+\\.(dn\\.|up\\.req\\.)|w1\\.)",
        topic_read="^e1\\.",
    )


def admin_user(name: str = "admin") -> User:
    """Everything, for `rabbitmqctl`-like work on a private node."""
    return User(name, ".*", ".*", ".*", tags=("administrator",))


def definitions(
    users: Mapping[User, str],
    *,
    vhost: str = "/",
    models: Sequence[str] = (),
    salt: bytes = b"",
) -> dict[str, Any]:
    """The document that RabbitMQ loads at boot (`load_definitions`).

    Args:
        users: each user and its password in clear, or an empty password for a
            user that may only authenticate by certificate.
        vhost: one a tenant.
        models: models whose queues exist before any worker has come.
        salt: four bytes; given by tests and by the rendered files under
            `deploy/`, so that the document is the same each time.
    """
    queues = [*standing_queues(), *(q for model in models for q in model_queues(model))]
    return {
        "rabbit_version": "3.10.0",
        "users": [_user(user, password, salt) for user, password in users.items()],
        "vhosts": [{"name": vhost}],
        "permissions": [
            {
                "user": user.name,
                "vhost": vhost,
                "configure": user.configure,
                "write": user.write,
                "read": user.read,
            }
            for user in users
        ],
        "topic_permissions": [
            {
                "user": user.name,
                "vhost": vhost,
                "exchange": TOPIC_EXCHANGE,
                "write": user.topic_write,
                "read": user.topic_read,
            }
            for user in users
            if user.topic_write is not None
        ],
        "parameters": [],
        "policies": _policies(vhost),
        "exchanges": [
            {
                "name": name,
                "vhost": vhost,
                "type": "fanout",
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for name in (UNROUTED_EXCHANGE, DEAD_EXCHANGE)
        ],
        "queues": [
            {
                "name": queue.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": dict(queue.arguments),
            }
            for queue in queues
        ],
        "bindings": [
            {
                "source": queue.exchange,
                "vhost": vhost,
                "destination": queue.name,
                "destination_type": "queue",
                "routing_key": queue.routing_key,
                "arguments": {},
            }
            for queue in queues
        ],
    }


def _policies(vhost: str) -> list[dict[str, Any]]:
    return [
        {
            # RabbitMQ acknowledges an MQTT publish that no queue takes.
            "vhost": vhost,
            "name": "unrouted",
            "pattern": "^amq\\.topic$",
            "apply-to": "exchanges",
            "definition": {"alternate-exchange": UNROUTED_EXCHANGE},
            "priority": 0,
        },
        {
            # One offline agent must not stall the pool; resending restores.
            "vhost": vhost,
            "name": "sessions",
            "pattern": "^mqtt-subscription-",
            "apply-to": "queues",
            "definition": {
                "max-length": SESSION_QUEUE_MESSAGES,
                "max-length-bytes": SESSION_QUEUE_BYTES,
                "overflow": "drop-head",
            },
            "priority": 0,
        },
    ]


def _user(user: User, password: str, salt: bytes) -> dict[str, Any]:
    return {
        "name": user.name,
        "password_hash": hash_password(password, salt or _derived_salt(user.name)),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": list(user.tags),
        "limits": {},
    }


def _derived_salt(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:4]


def hash_password(password: str, salt: bytes) -> str:
    """RabbitMQ's salted SHA-256 of a password, as its definitions hold it.

    Source: RabbitMQ documentation, "Credentials and Passwords": base64 of the
    4-byte salt followed by SHA-256 of salt and UTF-8 password.
    """
    if len(salt) != 4:
        raise ValueError(f"a salt has 4 bytes, got {len(salt)}")
    if not password:
        return ""
    digest = hashlib.sha256(salt + password.encode()).digest()
    return base64.b64encode(salt + digest).decode()
