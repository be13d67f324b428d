"""An answer as the outbox stores it: read back is what was written, or was told."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from typing import Any, Final

import msgpack
import numpy as np

from broker.messages import Tensor
from edge_agent.core.answers import Answer, AnswerStatus, Array, Source
from edge_agent.core.arrays import from_wire_tensor, to_wire_tensor
from edge_agent.core.payload import Encoding

_NAMES: Final = tuple(each.name for each in fields(Answer) if each.name != "outputs")


def pack_answer(answer: Answer) -> bytes:
    """The answer, outputs included, as MessagePack."""
    body: dict[str, Any] = {name: getattr(answer, name) for name in _NAMES}
    if answer.outputs is not None:
        body["outputs"] = {
            name: to_wire_tensor(array).model_dump()
            for name, array in answer.outputs.items()
        }
    packed: bytes = msgpack.packb(body)
    return packed


def unpack_answer(data: bytes) -> Answer:
    """The answer that `pack_answer` was given."""
    return _answer(msgpack.unpackb(data))


def read_rendered(data: bytes, encoding: Encoding) -> Answer:
    """The answer that a device was told, from what `render` made of it."""
    if encoding is Encoding.MSGPACK:
        return _answer(msgpack.unpackb(data))
    return _answer(json.loads(data))


def _answer(body: dict[str, Any]) -> Answer:
    outputs = body.get("outputs")
    source = body["source"]
    return Answer(
        # A field that stands only where it is set, or that was added since, is absent.
        **{
            name: body[name]
            for name in _NAMES
            if name in body and name not in {"status", "source"}
        },
        status=AnswerStatus(body["status"]),
        source=None if source is None else Source(source),
        outputs=None
        if outputs is None
        else {name: _array(each) for name, each in outputs.items()},
    )


def _array(stored: Any) -> Array:  # noqa: ANN401 - as JSON or MessagePack gave it
    if not isinstance(stored, dict):
        return np.asarray(stored)
    data = stored["data"]
    if isinstance(data, str):
        data = base64.b64decode(data)
    return from_wire_tensor(
        Tensor(dtype=stored["dtype"], shape=stored["shape"], data=data)
    )
