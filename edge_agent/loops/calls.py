"""Requests whose asker waits here for the answer: a program's, or an operator's."""

from __future__ import annotations

import asyncio
import functools

from edge_agent.adapters.outbox import (
    Accepted,
    Outbox,
    OutboxFailed,
    OutboxFull,
    Recorded,
)
from edge_agent.core.answers import Answer
from edge_agent.core.delivery import Channel
from edge_agent.core.payload import DeviceRequest, Encoding
from edge_agent.core.records import read_rendered
from edge_agent.loops.outcomes import Outcomes
from edge_agent.loops.serving import Serving
from edge_agent.loops.spilling import OnItsWay


class Calls:
    """Answers requests one by one, each to who awaits it."""

    def __init__(self, *, serving: Serving, outcomes: Outcomes, outbox: Outbox) -> None:
        self._serving = serving
        self._outcomes = outcomes
        self._outbox = outbox

    async def answer(self, request: DeviceRequest) -> Answer:
        """The final answer. An id that was asked before hears the same again."""
        if request.id is None:
            return await self._ask(request)
        key = (request.device, request.id)
        # Waiting before looking: no outcome slips in between.
        answer = self._outcomes.wait_for(key)
        try:
            recorded = await self._outbox.find(key)
            if recorded is None:
                return await self._ask(request)
            if recorded.answer is None:
                return await answer
            return read_rendered(recorded.answer, Encoding(recorded.encoding))
        except OutboxFailed as error:
            self._serving.count_refusal("outbox_unreadable")
            return Answer.refused(
                request.id, request.device, request.model, reason=str(error)
            )
        finally:
            answer.cancel()

    async def _ask(self, request: DeviceRequest) -> Answer:
        reply = await self._serving.handle(request, Channel.CALL)
        if not isinstance(reply, OnItsWay):
            return reply
        answer = self._outcomes.wait_for(reply.spill.key)
        reply.accepted.add_done_callback(functools.partial(_pass_on, answer))
        try:
            return await answer
        except OutboxFull as error:
            return self._serving.unkept(reply.spill, error)
        finally:
            answer.cancel()


def _pass_on(answer: asyncio.Future[Answer], accepted: Accepted) -> None:
    """End the wait for an answer when the outbox says that none will come."""
    if accepted.cancelled():
        return
    error = accepted.exception()  # looked at, or it counts as never retrieved
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
        return
    ended = accepted.result()
    if isinstance(ended, Recorded) and ended.answer is not None:
        answer.set_result(read_rendered(ended.answer, Encoding(ended.encoding)))
