"""The loops with a broker and a model that do as the test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.codec import decode, encode, seal_envelope
from broker.dead_letters import RETRIED, Mishap, read_death
from broker.link import LinkDown
from broker.messages import (
    Medium,
    Reason,
    Request,
    Result,
    Status,
    Tensor,
)
from broker.topology import DEAD_EXCHANGE
from cloud_worker.adapters.failures import BatchFailed, ModelFailed
from cloud_worker.core.batcher import Batcher
from cloud_worker.core.costs import Costs
from cloud_worker.core.ledger import Aside, Cause, Ledger
from cloud_worker.core.line import Signature
from cloud_worker.core.outputs import BatchOutputs, OutputBlock
from cloud_worker.core.serving import Serving
from cloud_worker.core.spec import ModelSpec, ServedModel, TensorSpec
from cloud_worker.loops.bookkeeping import Bookkeeping
from cloud_worker.loops.complaints import Complaints
from cloud_worker.loops.dead_letters import DeadLetters
from cloud_worker.loops.infer import Infer
from cloud_worker.loops.intake import Intake
from cloud_worker.loops.media import Decoder
from cloud_worker.loops.parcels import Held, Room
from cloud_worker.loops.replies import Replies
from cloud_worker.loops.side_queues import SideQueues
from cloud_worker.loops.stamps import Stamps
from lifecycle.clock import FakeClock

KEY = "e1.agent-1.up.req.double.norm"
MODEL = ServedModel(
    "double",
    "1",
    ModelSpec(
        (TensorSpec("x", "float32", (-1, 1)),),
        (TensorSpec("y", "float32", (-1, 1)),),
        batched=True,
    ),
    max_batch=8,
)
OTHER = replace(MODEL, name="twice")
OTHER_KEY = KEY.replace("double", "twice")
CRASH, REFUSE = 666.0, 13.0


@dataclass
class Letter:
    """A delivery that remembers how it ended."""

    body: bytes
    routing_key: str = KEY
    queue: str = "infer.double.norm"
    headers: Mapping[str, Any] = field(default_factory=dict)
    received_at: float = 0.0
    channel_open: bool = True
    ended: str = ""

    @property
    def live(self) -> bool:
        return self.channel_open and not self.ended

    def ack(self) -> None:
        assert not self.ended
        if self.channel_open:
            self.ended = "acked"

    async def reject(self, requeue: bool) -> None:
        assert not self.ended
        self.ended = "requeued" if requeue else "rejected"


class Broker:
    """Publishes that the test can fail or hold back."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes, Mapping[str, Any] | None]] = []
        self.dead: list[tuple[str, bytes, Mapping[str, Any]]] = []
        self.down = False
        self.full = False
        self.restored = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.tried = asyncio.Event()

    async def publish(
        self,
        routing_key: str,
        body: bytes,
        *,
        exchange: str = "amq.topic",
        headers: Mapping[str, Any] | None = None,
        timeout_s: float,
    ) -> None:
        assert timeout_s > 0
        self.tried.set()
        await self.gate.wait()
        if self.down:
            raise LinkDown("down, says the test")
        if exchange == DEAD_EXCHANGE:
            if self.full:
                raise LinkDown("full, says the test")
            self.dead.append((routing_key, body, headers or {}))
            return
        self.published.append((routing_key, body, headers))

    async def restore(self, _since_s: float) -> bool:
        self.restored += 1
        return not self.down

    def results(self) -> list[Result]:
        return [
            result
            for _, body, _ in self.published
            for result in decode(body, Result).items
        ]


class Doubling:
    """A runner that doubles, and crashes or refuses when it is asked to."""

    def __init__(self) -> None:
        self.up = True
        self.given_up: str | None = None
        self.batches: list[list[float]] = []
        self.held: list[asyncio.Future[BatchOutputs]] | None = None
        self._open: set[asyncio.Future[BatchOutputs]] = set()

    @property
    def running(self) -> int:
        return len(self._open)

    def ready(self, key: str) -> bool:
        assert key in {"double/1", "twice/1"}
        return self.up

    def submit(
        self,
        key: str,
        signature: Signature,
        requests: list[tuple[bytes, ...]],
        *,
        limit_s: float | None = None,
    ) -> asyncio.Future[BatchOutputs]:
        assert key in {"double/1", "twice/1"}
        assert limit_s is None or limit_s >= 5.0
        ((name, dtype, (rows, columns)),) = signature
        assert (name, dtype, columns) == ("x", "float32", 1)
        values = np.frombuffer(b"".join(each[0] for each in requests), dtype).tolist()
        assert len(values) == rows * len(requests) <= 8
        self.batches.append(values)
        future: asyncio.Future[BatchOutputs] = (
            asyncio.get_running_loop().create_future()
        )
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        if self.given_up is not None:
            future.set_exception(ModelFailed(self.given_up))
        elif self.held is not None:
            self.held.append(future)
        else:
            self.end(future, values, rows)
        return future

    def end(
        self, future: asyncio.Future[BatchOutputs], values: list[float], rows: int = 1
    ) -> None:
        if CRASH in values:
            future.set_exception(BatchFailed("it died", suspect=True, crashed=True))
        elif REFUSE in values:
            future.set_exception(BatchFailed("13?", suspect=True, crashed=False))
        else:
            data = memoryview((np.array(values, np.float32) * 2).tobytes())
            block = OutputBlock("y", "float32", ((rows, 1),), data)
            future.set_result(BatchOutputs(len(values) // rows, (block,), 1.0))


@dataclass
class Bench:
    """All loops of a worker, wired as the app does."""

    broker: Broker
    runner: Doubling
    clock: FakeClock
    room: Room
    infer: Infer
    infer_costs: Costs
    intake: Intake
    side_queues: SideQueues
    books: Bookkeeping

    @property
    def ended(self) -> dict[Cause, int]:
        return dict(self.room.ledger.ended)

    @property
    def aside(self) -> dict[Aside, int]:
        return dict(self.room.ledger.aside)

    async def take(self, *letters: Letter) -> None:
        for letter in letters:
            await self.intake.take(letter)


@asynccontextmanager
async def bench(models: Iterable[ServedModel] = (MODEL,)) -> AsyncIterator[Bench]:
    broker, runner, clock, ledger = Broker(), Doubling(), FakeClock(), Ledger()
    room = Room(100, ledger)
    served = {model.name: Serving.only(model) for model in models}
    complaints = Complaints(clock)
    replies = Replies(broker.publish, Stamps("w-1", clock), ledger=ledger)
    costs = Costs()
    infer = Infer(
        runner,
        Batcher[Held](costs=costs),
        costs=costs,
        replies=replies,
        dead_letters=DeadLetters(
            broker.publish,
            worker="w-1",
            clock=clock,
            ledger=ledger,
            complaints=complaints,
        ),
        clock=clock,
    )
    with ThreadPoolExecutor(1) as threads:
        intake = Intake(
            served,
            offer=infer.offer,
            replies=replies,
            clock=clock,
            room=room,
            decoder=Decoder(threads, max_pixels=1000),
            complaints=complaints,
        )
        side_queues = SideQueues(
            served,
            broker.publish,
            restore=broker.restore,
            replies=replies,
            room=room,
            complaints=complaints,
        )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(infer.run()), group.create_task(replies.run())]
            books = Bookkeeping(room, complaints)
            yield Bench(
                broker, runner, clock, room, infer, costs, intake, side_queues, books
            )
            assert books.balanced()
            for task in tasks:
                task.cancel()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - any state of the loops under test
            await asyncio.sleep(0.001)


def request(id_: str, value: float = 1.0, **changes: Any) -> Request:
    fields: dict[str, Any] = {
        "id": id_,
        "device": "cam1",
        "model": "double",
        "reason": Reason.HARD,
        "expires_at_ms": FakeClock().wall_ms() + 60_000,
        "tensors": {
            "x": Tensor(dtype="float32", shape=[1, 1], data=np.float32(value).tobytes())
        },
    }
    return Request(**{**fields, **changes})


def many(id_: str, values: Sequence[float], **changes: Any) -> Request:
    """A request of several rows."""
    data = np.array(values, np.float32).tobytes()
    tensor = Tensor(dtype="float32", shape=[len(values), 1], data=data)
    return request(id_, tensors={"x": tensor}, **changes)


def doubled(result: Result) -> float:
    return float(np.frombuffer(result.outputs["y"].data, np.float32)[0])


async def test_an_envelope_is_answered_together_and_then_acknowledged() -> None:
    async with bench() as on:
        letter = Letter(encode(*[request(f"r-{n}", n) for n in range(5)]))
        on.broker.gate.clear()
        await on.take(letter)
        await asyncio.wait_for(on.broker.tried.wait(), 10)
        assert letter.ended == ""
        on.broker.gate.set()
        await until(lambda: letter.ended)
        assert letter.ended == "acked"
        assert on.runner.batches == [[0.0, 1.0, 2.0, 3.0, 4.0]]
        ((key, _, _),) = on.broker.published
        assert key == "e1.agent-1.dn.res"
        results = on.broker.results()
        assert [each.id for each in results] == [f"r-{n}" for n in range(5)]
        assert [doubled(each) for each in results] == [0, 2, 4, 6, 8]
        assert results[0].batch_size == 5
        assert results[0].version == "1"
        assert results[0].worker == "w-1"
        assert results[0].server_time_ms == on.clock.wall_ms()
        assert on.room.held == 0


async def test_a_delivery_is_acknowledged_only_when_all_of_it_is_confirmed() -> None:
    async with bench() as on:
        on.runner.held = []
        letter = Letter(encode(*[request(f"r-{n}", n) for n in range(12)]))
        await on.take(letter)
        await until(lambda: len(on.runner.held or []) == 1)
        first = on.runner.held.pop()
        on.runner.end(first, on.runner.batches[0])
        await until(lambda: len(on.broker.results()) == 8)
        assert letter.ended == ""
        await until(lambda: on.runner.held)
        on.runner.end(on.runner.held.pop(), on.runner.batches[1])
        await until(lambda: letter.ended == "acked")


async def test_results_are_published_again_while_the_broker_is_away() -> None:
    async with bench() as on:
        on.broker.down = True
        letter = Letter(encode(request("r-1")))
        await on.take(letter)
        await asyncio.wait_for(on.broker.tried.wait(), 10)
        assert letter.ended == ""
        on.broker.down = False
        await until(lambda: letter.ended == "acked")
        assert [each.id for each in on.broker.results()] == ["r-1"]


async def test_results_of_a_dead_channel_are_dropped_as_the_broker_redelivers() -> None:
    async with bench() as on:
        on.broker.down = True
        letter = Letter(encode(request("r-1")))
        await on.take(letter)
        await asyncio.wait_for(on.broker.tried.wait(), 10)
        letter.channel_open = False
        await until(lambda: on.room.held == 0)
        on.broker.down = False
        assert on.broker.published == []
        assert on.room.ledger.given_back == 1


async def test_what_waits_for_a_batch_on_a_dead_channel_is_not_run() -> None:
    async with bench() as on:
        on.runner.up = False
        gone, here = (
            Letter(encode(request("r-1", 1))),
            Letter(encode(request("r-2", 2))),
        )
        await on.take(gone, here)
        gone.channel_open = False
        on.runner.up = True
        on.infer.wake()
        await until(lambda: here.ended == "acked")
        assert on.runner.batches == [[2.0]]
        assert on.room.held == 0


async def test_nothing_runs_while_the_model_process_is_away() -> None:
    async with bench() as on:
        on.runner.up = False
        letter = Letter(encode(request("r-1")))
        await on.take(letter)
        for _ in range(5):
            await asyncio.sleep(0)
        assert on.runner.batches == []
        on.runner.up = True
        on.infer.wake()
        await until(lambda: letter.ended == "acked")


async def test_a_model_that_hangs_holds_up_no_other() -> None:
    async with bench((MODEL, OTHER)) as on:
        held: list[asyncio.Future[BatchOutputs]] = []
        on.runner.held = held
        hung = [Letter(encode(request(f"r-{n}", n))) for n in range(2)]
        await on.take(hung[0])
        await until(lambda: held)
        await on.take(hung[1])
        on.runner.held = None
        # It fills no batch, and waits for room until the other is late.
        other = Letter(encode(request("o-1", model="twice")), OTHER_KEY)
        await on.take(other)
        await until(lambda: other.ended == "acked")
        assert len(on.runner.batches) == 2
        on.runner.end(held[0], [0.0])
        await until(lambda: all(each.ended == "acked" for each in hung))
        assert on.ended == {Cause.ANSWERED: 3}


async def test_a_model_that_is_given_up_fails_its_requests_at_once() -> None:
    async with bench() as on:
        on.runner.given_up = "its process died 5 times in a row"
        letter = Letter(encode(request("r-1"), request("r-2", 2.0)))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        assert on.ended == {Cause.MODEL: 2}
        for each in on.broker.results():
            assert each.status is Status.FAILED
            assert (each.reason or "").endswith("its process died 5 times in a row")
        # Nobody was tried alone, nobody is suspect.
        assert len(on.runner.batches) == 1


async def test_the_culprit_of_a_crash_stands_alone_and_its_neighbours_succeed() -> None:
    async with bench() as on:
        values = [1.0, 2.0, CRASH, 4.0, 5.0, 6.0]
        letter = Letter(encode(*[request(f"r-{v:g}", v) for v in values]))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        results = {each.id: each for each in on.broker.results()}
        assert len(results) == len(on.broker.results()) == 6
        assert on.ended == {Cause.ANSWERED: 5, Cause.MODEL: 1}
        culprit = results.pop(f"r-{CRASH:g}")
        assert culprit.status is Status.FAILED
        assert culprit.reason == "model 'double' version 1: it died"
        assert all(each.status is Status.OK for each in results.values())
        assert sorted(on.runner.batches[1:]) == [
            [1.0],
            [1.0, 2.0, CRASH],
            [2.0],
            [4.0, 5.0, 6.0],
            [CRASH],
        ]


async def test_a_request_that_killed_the_model_process_is_not_run_when_sent_again() -> (
    None
):
    async with bench() as on:
        first = Letter(encode(request("r-1", CRASH), request("r-2", 2.0)))
        await on.take(first)
        await until(lambda: first.ended == "acked")
        runs = len(on.runner.batches)
        again = Letter(encode(request("r-1", CRASH), request("r-3", 3.0)))
        await on.take(again)
        await until(lambda: again.ended == "acked")
        assert on.runner.batches[runs:] == [[3.0]]
        results = {each.id: each for each in on.broker.results()}
        assert results["r-1"].status is Status.FAILED
        assert results["r-1"].reason == "model 'double' version 1: it died"


async def test_copies_of_a_suspect_run_by_themselves_and_kill_the_process_once() -> (
    None
):
    async with bench() as on:
        on.runner.held = []
        first = Letter(encode(request("r-1", CRASH), request("r-2", 2.0)))
        copies = Letter(encode(request("r-1", CRASH), request("r-3", 3.0)))
        await on.take(first)
        await until(lambda: on.runner.held)
        (batch,) = on.runner.held
        on.runner.held = None
        await on.take(copies)
        on.runner.end(batch, [CRASH])
        await until(lambda: first.ended == copies.ended == "acked")
        deaths = [each for each in on.runner.batches if CRASH in each]
        assert deaths == [[CRASH, 2.0], [CRASH]]
        ended = {each.id: each.status for each in on.broker.results()}
        assert ended == {"r-1": Status.FAILED, "r-2": Status.OK, "r-3": Status.OK}


async def test_a_request_that_breaks_its_model_is_kept_with_its_history() -> None:
    async with bench() as on:
        values = [1.0, REFUSE, 3.0, 4.0]
        letter = Letter(encode(*[request(f"r-{v:g}", v) for v in values]))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        ((key, body, headers),) = on.broker.dead
        assert key == letter.routing_key
        assert [each.id for each in decode(body, Request).items] == ["r-13"]
        death = read_death(headers)
        assert death.answered
        assert death.reason == "13?"
        assert (death.model, death.version, death.worker) == ("double", "1", "w-1")
        at_ms = on.clock.wall_ms()
        assert death.history == tuple(
            Mishap(at_ms, requests, False, "13?") for requests in (4, 2, 1)
        )
        assert on.aside == {Aside.LETTERS_KEPT: 1}


async def test_an_answer_does_not_depend_on_its_dead_letter() -> None:
    async with bench() as on:
        on.broker.full = True
        letter = Letter(encode(request("r-1", REFUSE)))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        (result,) = on.broker.results()
        assert result.status is Status.FAILED
        assert on.aside == {Aside.LETTERS_LOST: 1}


async def test_dead_letters_are_bounded_in_flight_and_the_answers_go_on() -> None:
    async with bench() as on:
        on.broker.gate.clear()
        letters = [Letter(encode(request(f"r-{n}", REFUSE))) for n in range(90)]
        await on.take(*letters)
        await until(lambda: on.aside.get(Aside.LETTERS_LOST, 0) >= 90 - 64)
        on.broker.gate.set()
        await until(lambda: all(each.ended == "acked" for each in letters))
        assert on.aside == {Aside.LETTERS_KEPT: 64, Aside.LETTERS_LOST: 26}
        assert len(on.broker.results()) == 90


async def test_an_operator_may_have_a_convicted_request_run_again_alone() -> None:
    async with bench() as on:
        first = Letter(encode(request("r-1", CRASH)))
        await on.take(first)
        await until(lambda: first.ended == "acked")
        runs = len(on.runner.batches)
        retried = Letter(encode(request("r-1", 5.0)), headers={RETRIED: 1})
        copy = Letter(encode(request("r-1", 6.0)))
        other = Letter(encode(request("r-2", 2.0)))
        on.runner.up = False
        await on.take(retried, other)
        on.runner.up = True
        on.infer.wake()
        await until(lambda: retried.ended == other.ended == "acked")
        assert sorted(on.runner.batches[runs:]) == [[2.0], [5.0]]
        # It ran, and the process lives: nothing is held against it any more.
        await on.take(copy)
        await until(lambda: copy.ended == "acked")
        assert on.runner.batches[-1] == [6.0]


async def test_a_lone_request_that_the_model_refuses_is_not_tried_again() -> None:
    async with bench() as on:
        letter = Letter(encode(request("r-1", REFUSE)))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        (result,) = on.broker.results()
        assert result.status is Status.FAILED
        assert on.runner.batches == [[REFUSE]]


async def test_one_bad_item_costs_its_neighbours_nothing() -> None:
    async with bench() as on:
        good = encode(request("r-1", 4)), encode(request("r-3", 5))
        items = [
            decode_item(good[0]),
            pack({"id": "r-2", "device": "cam1", "model": "double"}),
            b"\xc1 noise",
            decode_item(good[1]),
        ]
        letter = Letter(seal_envelope(Request, items))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        results = {each.id: each for each in on.broker.results()}
        assert results["r-1"].status is results["r-3"].status is Status.OK
        assert results["r-2"].status is Status.FAILED
        assert "Field required" in (results["r-2"].reason or "")
        assert len(results) == 3
        assert on.ended == {Cause.ANSWERED: 2, Cause.UNREADABLE: 1}
        assert on.aside == {Aside.ILLEGIBLE: 1}


async def test_the_payload_does_not_choose_the_model_or_the_agent() -> None:
    async with bench() as on:
        letter = Letter(encode(request("r-1", model="other")))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        (result,) = on.broker.results()
        assert result.status is Status.FAILED
        assert "was sent to the topic of 'double'" in (result.reason or "")
        assert on.ended == {Cause.WRONG_TOPIC: 1}
        assert on.runner.batches == []


async def test_a_request_that_has_expired_costs_no_work() -> None:
    async with bench() as on:
        late = request("r-1", expires_at_ms=FakeClock().wall_ms())
        letter = Letter(encode(late, request("r-2", 3)))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        statuses = {each.id: each.status for each in on.broker.results()}
        assert statuses == {"r-1": Status.EXPIRED, "r-2": Status.OK}
        assert on.ended == {Cause.LATE: 1, Cause.ANSWERED: 1}
        assert on.runner.batches == [[3.0]]


async def test_those_that_get_no_answer_share_a_message() -> None:
    async with bench() as on:
        now_ms = FakeClock().wall_ms()
        late = [
            Letter(encode(request(f"r-{n}", expires_at_ms=now_ms))) for n in range(20)
        ]
        await on.take(*late)
        await until(lambda: all(each.ended == "acked" for each in late))
        assert len(on.broker.published) == 1
        assert {each.status for each in on.broker.results()} == {Status.EXPIRED}


async def test_an_answer_leaves_at_once_and_takes_along_what_waits() -> None:
    async with bench() as on:
        late = Letter(encode(request("r-1", expires_at_ms=FakeClock().wall_ms())))
        await on.take(late)
        assert not on.broker.published
        good = Letter(encode(request("r-2")))
        await on.take(good)
        await until(lambda: good.ended == late.ended == "acked")
        assert len(on.broker.published) == 1


async def test_a_request_that_expires_while_it_waits_costs_no_work() -> None:
    async with bench() as on:
        on.runner.held = []
        running = Letter(encode(request("r-1")))
        soon = FakeClock().wall_ms() + 50
        waiting = Letter(encode(request("r-2", expires_at_ms=soon)))
        await on.take(running)
        await until(lambda: on.runner.batches)
        await on.take(waiting)
        on.clock.advance(0.05)
        await until(lambda: waiting.ended == "acked")
        (result,) = on.broker.results()
        assert result.status is Status.EXPIRED
        assert on.ended == {Cause.WAITED: 1}
        assert on.runner.batches == [[1.0]]
        on.runner.end(on.runner.held.pop(), [1.0])


async def test_what_would_be_late_for_certain_is_shed_with_a_time_to_come_back() -> (
    None
):
    async with bench() as on:
        on.infer_costs.seed("double/1", [(1, 40.0), (8, 80.0)])
        on.runner.held = []
        soon = FakeClock().wall_ms() + 100
        items = [request(f"r-{n}", n, expires_at_ms=soon) for n in range(40)]
        letter = Letter(encode(*items))
        await on.take(letter)
        await until(on.broker.results)
        shed = on.broker.results()
        assert {each.status for each in shed} == {Status.FAILED}
        assert all((each.reason or "").startswith("overloaded:") for each in shed)
        assert all(each.retry_after_s and each.retry_after_s > 0 for each in shed)
        # 10 ms a row: ten at most could have been done.
        assert len(shed) == 30
        on.clock.advance(0.2)
        while on.runner.held:
            on.runner.end(on.runner.held.pop(), on.runner.batches[-1])
        on.infer.wake()
        await until(lambda: letter.ended == "acked")
        assert on.ended[Cause.OVERLOADED] == 30


async def test_a_request_of_many_rows_runs_in_parts_and_is_answered_once() -> None:
    async with bench() as on:
        letter = Letter(encode(many("r-1", range(100, 120)), request("r-2", 7.0)))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        results = {each.id: each for each in on.broker.results()}
        assert len(on.broker.results()) == 2
        output = results["r-1"].outputs["y"]
        assert output.shape == [20, 1]
        values = np.frombuffer(output.data, np.float32)
        assert values.tolist() == [2.0 * n for n in range(100, 120)]
        assert on.ended == {Cause.ANSWERED: 2}
        assert sorted(map(len, on.runner.batches)) == [1, 4, 8, 8]


async def test_one_part_that_fails_fails_the_request_once() -> None:
    async with bench() as on:
        values = [float(n) for n in range(100, 120)]
        values[10] = REFUSE
        letter = Letter(encode(many("r-1", values), request("r-2", 7.0)))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        statuses = {each.id: each.status for each in on.broker.results()}
        assert statuses == {"r-1": Status.FAILED, "r-2": Status.OK}
        assert len(on.broker.results()) == 2


async def test_a_split_request_of_a_version_that_never_comes_fails_once() -> None:
    async with bench() as on:
        on.runner.up = False
        beside = Letter(encode(many("r-1", range(40)), request("r-2", 7.0)))
        await on.take(beside)
        on.infer.give_up("double/1", "it cannot be loaded")
        await until(lambda: beside.ended == "acked")
        assert sorted(each.id for each in on.broker.results()) == ["r-1", "r-2"]
        assert on.ended == {Cause.MODEL: 2}
        assert on.room.held == 0


async def test_an_output_that_cannot_travel_fails_its_request_and_not_the_worker() -> (
    None
):
    async with bench() as on:
        on.runner.held = []
        letter = Letter(encode(request("r-1")))
        await on.take(letter)
        await until(lambda: on.runner.held)
        block = OutputBlock("y", "float32", ((1,) * 9,), memoryview(bytes(4)))
        on.runner.held.pop().set_result(BatchOutputs(1, (block,), 1.0))
        await until(lambda: letter.ended == "acked")
        (result,) = on.broker.results()
        assert result.status is Status.FAILED
        assert "cannot travel" in (result.reason or "")


async def test_a_request_whose_parts_expire_is_expired_once() -> None:
    async with bench() as on:
        on.runner.held = []
        soon = FakeClock().wall_ms() + 50
        letter = Letter(encode(many("r-1", range(40), expires_at_ms=soon)))
        await on.take(letter)
        await until(lambda: on.runner.batches)
        on.clock.advance(0.1)
        on.infer.wake()
        await until(lambda: letter.ended == "acked")
        (result,) = on.broker.results()
        assert result.status is Status.EXPIRED
        for future, values in zip(on.runner.held, on.runner.batches, strict=True):
            on.runner.end(future, values, len(values))


async def test_a_split_request_of_a_dead_channel_is_given_back_once() -> None:
    async with bench() as on:
        on.runner.up = False
        letter = Letter(encode(many("r-1", range(40))))
        await on.take(letter)
        letter.channel_open = False
        on.runner.up = True
        on.infer.wake()
        await until(lambda: on.room.held == 0)
        assert on.room.ledger.given_back == 1
        assert on.runner.batches == []


async def test_what_its_model_has_no_time_for_says_how_much_was_left() -> None:
    async with bench() as on:
        on.infer_costs.seed("double/1", [(1, 300.0), (8, 300.0)])
        soon = FakeClock().wall_ms() + 200
        letter = Letter(encode(request("r-1", expires_at_ms=soon)))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        (result,) = on.broker.results()
        assert result.status is Status.EXPIRED
        assert result.left_ms == 200.0
        assert on.runner.batches == []


async def test_costs_are_learned_from_what_runs() -> None:
    async with bench() as on:
        on.runner.held = []
        letter = Letter(encode(request("r-1")))
        await on.take(letter)
        await until(lambda: on.runner.batches)
        on.clock.advance(0.25)
        on.runner.end(on.runner.held.pop(), [1.0])
        await until(lambda: letter.ended == "acked")
        assert on.infer_costs.cost_s("double/1", 1) == 0.25


async def test_an_envelope_of_another_version_is_answered_to_its_requests() -> None:
    async with bench() as on:
        item = pack({"id": "r-1", "device": "cam1"})
        letter = Letter(pack({"v": 2, "kind": "req", "items": [item]}))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        (result,) = on.broker.results()
        assert result.status is Status.FAILED
        assert "version 2 is unknown" in (result.reason or "")


async def test_noise_goes_to_the_dead_letters_and_the_loop_goes_on() -> None:
    async with bench() as on:
        noise = [
            Letter(b"\x81"),
            Letter(b""),
            Letter(seal_envelope(Request, [b"\xc1"])),
            Letter(encode(request("r-1")), routing_key="e1.a.b.c"),
            Letter(encode(request("r-1")), routing_key="e1.A!.up.req.double.norm"),
        ]
        await on.take(*noise)
        assert [each.ended for each in noise] == ["rejected"] * 5
        assert on.aside == {Aside.BURIED: 5, Aside.ILLEGIBLE: 1}
        assert on.room.held == 0
        letter = Letter(encode(request("r-2")))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")


async def test_a_flood_of_noise_leaves_room_among_the_dead_letters_and_in_the_log() -> (
    None
):
    with capture_logs() as logs:
        await _flood_with_noise(logs)


async def _flood_with_noise(logs: Sequence[Mapping[str, Any]]) -> None:
    async with bench() as on:
        noise = [Letter(b"\xc1") for _ in range(1000)]
        await on.take(*noise)
        ended = Counter(each.ended for each in noise)
        assert ended == {"rejected": 100, "acked": 900}
        assert on.aside == {Aside.BURIED: 100, Aside.NOISE_DROPPED: 900}
        assert [each["event"] for each in logs] == ["delivery rejected"] * 10
        on.books.close()
        assert (logs[10]["event_of"], logs[10]["times"]) == ("delivery rejected", 990)
        on.clock.advance(61)
        late = Letter(b"\xc1")
        await on.take(late)
        assert late.ended == "rejected"
        assert logs[-1]["event"] == "delivery rejected"


async def test_a_medium_for_a_model_without_a_recipe_is_refused() -> None:
    async with bench() as on:
        medium = Medium(media_type="image/png", data=b"png")
        letter = Letter(encode(request("r-1", tensors=None, medium=medium)))
        await on.take(letter)
        await until(lambda: letter.ended == "acked")
        (result,) = on.broker.results()
        assert "takes tensors, not image/png" in (result.reason or "")
        assert on.ended == {Cause.INVALID: 1}


async def test_deliveries_wait_undecoded_while_too_much_is_held() -> None:
    async with bench() as on:
        on.runner.up = False
        await on.take(Letter(encode(*[request(f"r-{n}") for n in range(100)])))
        assert on.room.held == 100
        letter = Letter(encode(request("r-late")))
        async with asyncio.TaskGroup() as group:
            taking = group.create_task(on.intake.take(letter))
            await asyncio.sleep(0)
            assert not taking.done()
            on.runner.up = True
            on.infer.wake()
        await until(lambda: letter.ended == "acked")


async def test_a_model_that_fills_the_room_leaves_others_their_part() -> None:
    async with bench((MODEL, OTHER)) as on:
        on.runner.up = False
        await on.take(Letter(encode(*[request(f"r-{n}") for n in range(100)])))
        others = [
            Letter(
                encode(*[request(f"o-{at}-{n}", model="twice") for n in range(25)]),
                OTHER_KEY,
            )
            for at in range(3)
        ]
        await on.take(*others[:2])
        assert on.room.held == 150
        async with asyncio.TaskGroup() as group:
            taking = group.create_task(on.intake.take(others[2]))
            await asyncio.sleep(0)
            assert not taking.done()
            on.runner.up = True
            on.infer.wake()
        await until(lambda: others[2].ended == "acked")


def unrouted(model: str, **changes: Any) -> Letter:
    return Letter(
        encode(request("r-1", model=model)),
        routing_key=f"e1.agent-1.up.req.{model}.hi",
        queue="unrouted",
        **changes,
    )


async def test_a_request_that_no_queue_took_is_answered() -> None:
    async with bench() as on:
        letter = unrouted("nobody")
        await on.side_queues.take(letter)
        await until(lambda: letter.ended == "acked")
        (result,) = on.broker.results()
        assert result.status is Status.FAILED
        assert result.reason == "no worker serves model 'nobody'"
        assert on.ended == {Cause.UNROUTED: 1}


async def test_an_unrouted_request_that_can_be_served_now_goes_on_its_way() -> None:
    async with bench() as on:
        letter = unrouted("double")
        await on.side_queues.take(letter)
        assert letter.ended == "acked"
        ((key, body, headers),) = on.broker.published
        assert (key, body) == (letter.routing_key, letter.body)
        assert headers == {"x-overspill-republished": 1}
        assert on.aside == {Aside.UNROUTED: 1, Aside.SENT_AGAIN: 1}
        # Its queue or binding must have gone, or it had not been unrouted.
        assert on.broker.restored == 1


async def test_an_unrouted_request_waits_for_the_link_that_restores_its_queue() -> None:
    async with bench() as on:
        letter = unrouted("double")
        on.broker.down = True
        await on.side_queues.take(letter)
        assert (letter.ended, on.broker.published) == ("", [])


async def test_a_request_that_stays_unrouted_is_answered_in_the_end() -> None:
    async with bench() as on:
        letter = unrouted("double", headers={"x-overspill-republished": 3})
        await on.side_queues.take(letter)
        await until(lambda: letter.ended == "acked")
        (result,) = on.broker.results()
        assert result.status is Status.FAILED


async def test_a_result_for_an_agent_that_is_gone_is_dropped() -> None:
    async with bench() as on:
        letter = Letter(b"res", routing_key="e1.agent-1.dn.res", queue="unrouted")
        await on.side_queues.take(letter)
        assert letter.ended == "acked"
        assert on.aside == {Aside.UNROUTED: 1, Aside.RESULTS_DROPPED: 1}
        assert on.broker.published == []


async def test_dead_letters_are_answered_with_their_cause() -> None:
    async with bench() as on:
        letters = [
            Letter(
                encode(request(reason.replace("_", "-"))),
                queue="infer.unanswered",
                headers={"x-death": [{"reason": reason, "queue": "infer.double.norm"}]},
            )
            for reason in ("delivery_limit", "expired")
        ]
        for letter in letters:
            await on.side_queues.take(letter)
        await until(lambda: all(letter.ended == "acked" for letter in letters))
        statuses = {each.id: each.status for each in on.broker.results()}
        assert statuses == {
            "delivery-limit": Status.FAILED,
            "expired": Status.EXPIRED,
        }
        assert on.ended == {Cause.DEAD: 1, Cause.DEAD_LATE: 1}
        assert on.aside == {Aside.DEAD_LETTERS: 2}


async def test_what_a_worker_has_answered_is_not_answered_again() -> None:
    async with bench() as on:
        poison = Letter(encode(request("r-1", REFUSE)))
        await on.take(poison)
        await until(lambda: poison.ended == "acked")
        ((key, body, headers),) = on.broker.dead
        dead = Letter(body, routing_key=key, queue="infer.unanswered", headers=headers)
        await on.side_queues.take(dead)
        assert dead.ended == "acked"
        assert len(on.broker.results()) == 1
        assert on.aside[Aside.ANSWERED_ALREADY] == 1


async def test_a_dead_letter_that_nobody_can_be_told_of_is_let_go() -> None:
    async with bench() as on:
        letter = Letter(b"\xc1", queue="infer.unanswered")
        await on.side_queues.take(letter)
        assert letter.ended == "acked"
        assert on.aside == {Aside.DEAD_LETTERS: 1, Aside.UNTELLABLE: 1}
        assert on.broker.published == []


KINDS = st.sampled_from(["good", "late", "wrong", "crash", "refuse", "noise"])
LETTERS = st.lists(
    st.tuples(st.lists(KINDS, min_size=1, max_size=6), st.booleans()), max_size=8
)


@settings(max_examples=50, deadline=None)
@given(LETTERS, st.booleans())
def test_whatever_comes_and_whatever_dies_every_request_is_accounted_for(
    letters: list[tuple[list[str], bool]], down: bool
) -> None:
    asyncio.run(_all_accounted_for(letters, down=down))


async def _all_accounted_for(
    letters: list[tuple[list[str], bool]], *, down: bool
) -> None:
    async with bench() as on:
        on.broker.down = down
        on.runner.up = not down
        sent = []
        for number, (kinds, dies) in enumerate(letters):
            items = [_item(kind, f"r-{number}-{n}") for n, kind in enumerate(kinds)]
            letter = Letter(seal_envelope(Request, items))
            await on.take(letter)
            sent.append((letter, dies))
        for letter, dies in sent:
            if dies:
                letter.channel_open = False
        on.broker.down, on.runner.up = False, True
        on.infer.wake()
        await until(lambda: on.room.held == 0)
        assert all(letter.ended or dies for letter, dies in sent)
        ledger = on.room.ledger
        read = sum(kind != "noise" for kinds, _ in letters for kind in kinds)
        assert ledger.taken == read
        assert sum(ledger.ended.values()) + ledger.given_back == read


def _item(kind: str, id_: str) -> bytes:
    match kind:
        case "late":
            made = request(id_, expires_at_ms=1)
        case "wrong":
            made = request(id_, model="other")
        case "crash":
            made = request(id_, CRASH)
        case "refuse":
            made = request(id_, REFUSE)
        case "noise":
            return b"\xc1"
        case _:
            made = request(id_)
    return decode_item(encode(made))


def pack(fields: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


def decode_item(envelope: bytes) -> bytes:
    item: bytes = msgpack.unpackb(envelope)["items"][0]
    return item
