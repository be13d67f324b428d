"""What an agent may rely on of the TFLite runtime, shown on models as odd as they come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import (  # noqa: TID253 - the limit we compare with
    Interpreter,
)
from typing_extensions import override

from edge_agent.adapters.litert import LiteRtModel, ModelUnsupported, RunFailed
from edge_agent.adapters.model_runner import ModelRunner, RunnerClosed, RunnerFull
from edge_agent.core.answers import Array
from edge_agent.core.tensors import BadInput
from lifecycle.clock import FakeClock

MODELS = Path(__file__).parent / "models"
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 12 - 0.4
ONE = np.array([[0.5, -0.25, 0.75, 0.1]], np.float32)


def load(name: str) -> LiteRtModel:
    return LiteRtModel.load(MODELS / f"{name}.tflite")


# --- loading ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("custom_op", "MatrixDeterminant"),
        ("flex_op", "FlexMatrixDeterminant"),
        ("counting", "ASSIGN_VARIABLE"),
    ],
)
def test_an_operator_that_cannot_be_served_is_refused_by_name(
    name: str, operator: str
) -> None:
    with pytest.raises(ModelUnsupported, match=rf"operator {operator}\b") as caught:
        load(name)
    assert caught.value.operator == operator


def test_a_model_of_text_is_refused() -> None:
    with pytest.raises(ModelUnsupported, match="'x' of bytes; only numbers"):
        load("text")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello" * 99, (MODELS / "dense.tflite").read_bytes()[:700], b"\0" * 4096],
    ids=["empty", "garbage", "truncated", "zeros"],
)
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelUnsupported, match=r"model\.tflite cannot be run"):
        LiteRtModel.load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match=r"gone\.tflite"):
        LiteRtModel.load(tmp_path / "gone.tflite")


def test_a_model_says_what_it_takes_and_gives() -> None:
    dense = load("dense")
    assert {name: spec.shape for name, spec in dense.inputs.items()} == {"x": (1, 4)}
    assert {name: spec.shape for name, spec in dense.outputs.items()} == {
        "logits": (1, 3)
    }
    assert load("any_shape").inputs["x"].shape == (-1, -1)
    assert load("dense_uint8").inputs["x"].dtype == np.uint8


# --- running ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "any_batch"])
def test_a_float_model_answers_as_the_interpreter_does(name: str) -> None:
    assert load(name).run({"x": ONE})["logits"] == pytest.approx(ONE @ WEIGHTS)


def test_without_a_signature_tensors_have_their_own_names() -> None:
    model = load("no_signature")
    assert list(model.inputs) == ["serving_default_x:0"]
    (logits,) = model.run({"serving_default_x:0": ONE}).values()
    assert logits == pytest.approx(ONE @ WEIGHTS)


def test_inputs_and_outputs_are_told_apart_by_name_and_not_by_order() -> None:
    a, b = np.array([[5.0, 7.0]], np.float32), np.array([[1.0, 2.0]], np.float32)
    for inputs in ({"a": a, "b": b}, {"b": b, "a": a}):
        outputs = load("two").run(inputs)
        assert outputs["difference"].tolist() == [[4, 5]]
        assert outputs["total"].tolist() == [[6, 9]]


@pytest.mark.parametrize("name", ["dense_int8", "dense_uint8"])
def test_a_quantised_model_takes_and_gives_real_numbers(name: str) -> None:
    model = load(name)
    logits = model.run({"x": ONE})["logits"]
    assert logits.dtype == np.float32
    assert logits == pytest.approx(ONE @ WEIGHTS, abs=0.03)


@pytest.mark.parametrize("name", ["dense_int8", "dense_uint8"])
def test_stored_numbers_given_to_a_quantised_model_are_taken_as_they_are(
    name: str,
) -> None:
    model = load(name)
    spec = model.inputs["x"]
    assert spec.scale is not None
    stored = np.rint(ONE / spec.scale + spec.zero_point).astype(spec.dtype)
    given_stored, given_real = model.run({"x": stored}), model.run({"x": ONE})
    assert given_stored["logits"].tolist() == given_real["logits"].tolist()


def test_real_numbers_beyond_the_quantised_range_saturate() -> None:
    model = load("dense_int8")
    beyond = model.run({"x": np.full((1, 4), 1e9, np.float32)})["logits"]
    spec = model.inputs["x"]
    most = model.run({"x": np.full((1, 4), np.iinfo(spec.dtype).max, spec.dtype)})
    assert beyond.tolist() == most["logits"].tolist()


def test_whole_numbers_are_real_numbers_to_a_quantised_model() -> None:
    model = load("dense_uint8")
    whole = model.run({"x": np.array([[1, 0, -1, 0]])})["logits"]
    real = model.run({"x": np.array([[1, 0, -1, 0]], np.float32)})["logits"]
    assert whole.tolist() == real.tolist()


@pytest.mark.parametrize("name", ["any_batch", "any_shape"])
def test_dynamic_sides_are_resized_back_and_forth(name: str) -> None:
    model = load(name)
    for batch in (1, 8, 3, 8, 1):
        x: Array = (
            np.random.default_rng(batch).normal(size=(batch, 4)).astype(np.float32)
        )
        (out,) = model.run({"x": x}).values()
        want = x @ WEIGHTS if name == "any_batch" else x * 2
        assert out == pytest.approx(want, abs=1e-5)


def test_a_model_that_folds_the_batch_is_caught_and_still_serves_single_examples() -> (
    None
):
    model = load("folds_batch")
    with pytest.raises(RunFailed, match="folds the batch"):
        model.run({"x": np.ones((8, 4), np.float32)})
    assert model.run({"x": ONE})["logits"] == pytest.approx(ONE @ WEIGHTS)


def test_no_request_sees_what_another_left_in_the_model() -> None:
    model = load("remembering")
    x = {"x": np.ones((1, 1), np.float32)}
    assert [model.run(x)["y"].item() for _ in range(3)] == [1, 1, 1]


def test_outputs_are_copies_that_the_next_run_leaves_alone() -> None:
    model = load("dense")
    first = model.run({"x": ONE})["logits"]
    kept = first.copy()
    model.run({"x": ONE * 3})
    assert first.tolist() == kept.tolist()
    first[:] = 0
    assert model.run({"x": ONE})["logits"] == pytest.approx(kept)


@pytest.mark.parametrize(
    "x",
    [
        ONE.astype(np.float64),
        np.asfortranarray(ONE),
        np.repeat(ONE, 2, axis=1)[:, ::2],
        ONE.astype(">f4"),
        np.frombuffer(ONE.tobytes(), np.float32).reshape(1, 4),
    ],
    ids=["float64", "fortran", "strided", "big endian", "read only"],
)
def test_the_same_numbers_in_another_layout_give_the_same_answer(x: Array) -> None:
    assert load("dense").run({"x": x})["logits"] == pytest.approx(ONE @ WEIGHTS)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int64, np.float16])
def test_numbers_that_lose_nothing_are_cast_to_float(dtype: type) -> None:
    x: Array = np.array([[1, 0, 1, 1]], dtype)
    want = x.astype(np.float32) @ WEIGHTS
    assert load("dense").run({"x": x})["logits"] == pytest.approx(want)


def test_whole_numbers_that_fit_are_taken_by_a_model_of_another_width() -> None:
    rows = load("lookup").run({"ids": np.array([[3, 1]], np.int64)})["rows"]
    assert rows[0] == pytest.approx(WEIGHTS[[3, 1]])


@pytest.mark.parametrize(
    ("name", "inputs", "said"),
    [
        ("dense", {}, "takes inputs ['x'], got []"),
        ("dense", {"y": ONE}, "takes inputs ['x'], got ['y']"),
        ("dense", {"x": ONE, "y": ONE}, "got ['x', 'y']"),
        ("dense", {"x": ONE[0]}, "shape [4], the model takes [1, 4]"),
        ("dense", {"x": np.ones((8, 4))}, "shape [8, 4], the model takes [1, 4]"),
        ("any_batch", {"x": np.ones((2, 5))}, "the model takes [any, 4]"),
        ("any_batch", {"x": np.ones((0, 4))}, "the model takes [any, 4]"),
        ("dense", {"x": np.array([["a", "b", "c", "d"]])}, "not of numbers"),
        ("dense", {"x": np.array([[1j, 0, 0, 0]])}, "not of numbers"),
        ("dense", {"x": np.array([[{}, 0, 0, 0]])}, "not of numbers"),
        ("dense", {"x": np.array([[1e300, 0, 0, 0]])}, "NaN or infinity in 1 of 4"),
        ("dense", {"x": np.array([[2**40 + 1, 0, 0, 0]])}, "cannot hold exactly"),
        ("lookup", {"ids": np.array([[0.5, 1.0]])}, "is of float64, the model takes"),
        ("lookup", {"ids": np.array([[2**40, 1]])}, "beyond int32"),
        ("lookup", {"ids": np.array([[True, False]])}, "is of bool"),
    ],
)
def test_wrong_inputs_are_refused_with_what_the_model_wants(
    name: str, inputs: Mapping[str, Array], said: str
) -> None:
    model = load(name)
    with pytest.raises(BadInput) as caught:
        model.run(inputs)
    assert said in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["dense", "dense_int8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_an_input_that_is_not_a_number_is_refused(
    name: str, bad: float, dtype: type
) -> None:
    x: Array = ONE.astype(dtype)
    x[0, 1] = bad
    with pytest.raises(BadInput, match="NaN or infinity in 1 of 4"):
        load(name).run({"x": x})


def test_an_input_the_model_fails_on_is_an_error_and_the_next_one_is_answered() -> None:
    model = load("lookup")
    for _ in range(2):
        with pytest.raises(RunFailed, match=r"lookup\.tflite failed on this input"):
            model.run({"ids": np.array([[99, 0]], np.int32)})
        rows = model.run({"ids": np.array([[2, 0]], np.int32)})["rows"]
        assert rows[0] == pytest.approx(WEIGHTS[[2, 0]])


def test_an_output_that_is_not_a_number_is_given_as_it_is() -> None:
    y = load("inverse").run({"x": np.array([[0.0, 2.0]], np.float32)})["y"]
    assert y.tolist() == [[np.inf, 0.5]]


# --- in service ---------------------------------------------------------------------


class Slow(LiteRtModel):
    """A real model whose runs last until they are let go."""

    def __init__(self, interpreter: object, where: str) -> None:
        super().__init__(interpreter, where)
        self.go = threading.Event()
        self.running = 0
        self.most_running = 0
        self.entered = threading.Semaphore(0)

    @override
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.entered.release()
        assert self.go.wait(10)
        try:
            return super().run(inputs)
        finally:
            self.running -= 1


@pytest.fixture
async def slow() -> AsyncIterator[tuple[Slow, ModelRunner]]:
    model = Slow.load(MODELS / "dense.tflite")
    runner = ModelRunner(model, queue_limit=3, inline_below_ms=0.0)
    yield model, runner
    model.go.set()
    await runner.close()


async def test_a_fast_model_answers_from_the_event_loop_as_the_interpreter_would() -> (
    None
):
    runner = await ModelRunner.open(MODELS / "dense_int8.tflite")
    assert runner.runs_inline
    assert 0 < runner.predicted_ms < 1
    plain = Interpreter(str(MODELS / "dense_int8.tflite"))
    signature = plain.get_signature_runner()
    scale, zero = signature.get_input_details()["x"]["quantization"]
    out_scale, out_zero = signature.get_output_details()["logits"]["quantization"]
    draw = np.random.default_rng(7)
    for _ in range(50):
        x = draw.uniform(-1, 1, (1, 4)).astype(np.float32)
        stored = np.clip(np.rint(x / scale + zero), -128, 127).astype(np.int8)
        limit = (
            signature(x=stored)["logits"].astype(np.float32) - out_zero
        ) * out_scale
        ours = await runner.infer({"x": x})
        assert ours["logits"] == pytest.approx(limit)
    await runner.close()


async def test_a_slow_model_leaves_the_event_loop_free_and_runs_one_at_a_time(
    slow: tuple[Slow, ModelRunner],
) -> None:
    model, runner = slow
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(runner.infer({"x": ONE})) for _ in range(3)]
        assert await asyncio.to_thread(model.entered.acquire, timeout=10)
        model.go.set()
    answers = [task.result()["logits"] for task in waiting]
    assert all(each == pytest.approx(ONE @ WEIGHTS) for each in answers)
    assert model.most_running == 1


async def test_a_full_queue_refuses_and_takes_again_once_there_is_room(
    slow: tuple[Slow, ModelRunner],
) -> None:
    model, runner = slow
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(runner.infer({"x": ONE}))
        assert await asyncio.to_thread(model.entered.acquire, timeout=10)
        with pytest.raises(RunnerFull, match="3 requests wait") as full:
            await runner.infer({"x": ONE})
        assert full.value.retry_after_s >= runner.predicted_ms / 1000
        assert full.value.retry_after_s > 0
        model.go.set()
    assert (await runner.infer({"x": ONE}))["logits"].shape == (1, 3)


async def test_a_cancelled_request_frees_its_place_only_when_its_run_has_ended(
    slow: tuple[Slow, ModelRunner],
) -> None:
    model, runner = slow
    async with asyncio.TaskGroup() as tasks:
        doomed = tasks.create_task(runner.infer({"x": ONE}))
        assert await asyncio.to_thread(model.entered.acquire, timeout=10)
        doomed.cancel()
        await asyncio.sleep(0)
        assert doomed.cancelled()
        assert model.running == 1
        for _ in range(2):
            tasks.create_task(runner.infer({"x": ONE}))
        await asyncio.sleep(0)
        with pytest.raises(RunnerFull):
            await runner.infer({"x": ONE})
        model.go.set()
    assert model.most_running == 1


async def test_the_queue_lengthens_the_predicted_time(
    slow: tuple[Slow, ModelRunner],
) -> None:
    model, runner = slow
    model.go.set()
    alone_ms = runner.measure()
    model.go.clear()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(runner.infer({"x": ONE}))
        await asyncio.sleep(0)
        assert runner.predicted_ms == pytest.approx(3 * alone_ms)
        model.go.set()


async def test_closing_answers_what_waits_and_refuses_what_comes(
    slow: tuple[Slow, ModelRunner],
) -> None:
    model, runner = slow
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(runner.infer({"x": ONE})) for _ in range(3)]
        assert await asyncio.to_thread(model.entered.acquire, timeout=10)
        closing = tasks.create_task(runner.close())
        await asyncio.sleep(0)
        with pytest.raises(RunnerClosed):
            await runner.infer({"x": ONE})
        model.go.set()
        await closing
    assert all(task.result()["logits"].shape == (1, 3) for task in waiting)


@pytest.mark.parametrize("inline_below_ms", [0.0, 1000.0])
async def test_an_error_reaches_its_own_caller_and_no_other(
    inline_below_ms: float,
) -> None:
    runner = await ModelRunner.open(
        MODELS / "dense.tflite", inline_below_ms=inline_below_ms
    )
    with pytest.raises(BadInput):
        await runner.infer({"x": ONE * np.nan})
    assert (await runner.infer({"x": ONE}))["logits"] == pytest.approx(ONE @ WEIGHTS)
    await runner.close()


async def test_a_model_that_was_not_measured_learns_from_its_first_run_off_the_loop() -> (
    None
):
    runner = ModelRunner(load("dense"))
    before = (runner.runs_inline, runner.predicted_ms)
    await runner.infer({"x": ONE})
    assert before == (False, 0.0)
    assert runner.predicted_ms > 0
    await runner.close()


async def test_a_model_that_cannot_run_on_zeros_is_refused_at_load() -> None:
    with pytest.raises(ModelUnsupported, match="MatrixDeterminant"):
        await ModelRunner.open(MODELS / "custom_op.tflite")


async def test_a_model_that_turns_slow_moves_off_the_event_loop() -> None:
    clock = FakeClock()

    class Growing(LiteRtModel):
        @override
        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            clock.advance(inputs["x"].size / 1000)
            return super().run(inputs)

    model = Growing.load(MODELS / "any_batch.tflite")
    runner = ModelRunner(model, clock=clock, inline_below_ms=10.0)
    assert runner.measure() == pytest.approx(4.0)
    inline = [runner.runs_inline]
    for _ in range(3):
        await runner.infer({"x": np.ones((32, 4), np.float32)})
    inline.append(runner.runs_inline)
    assert inline == [True, False]
    await runner.infer({"x": ONE})
    await runner.close()
