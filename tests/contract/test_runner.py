"""Every format goes through one suite, in real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from cloud_worker.adapters.failures import BatchFailed, CannotLoad, ModelFailed
from cloud_worker.adapters.frames import Format, ModelSource
from cloud_worker.adapters.inline import InlineRunner
from cloud_worker.adapters.runners import Limits, Runners
from cloud_worker.adapters.runtime import Tuning
from cloud_worker.core.outputs import BatchOutputs
from cloud_worker.core.spec import ModelSpec, Padding, TensorSpec

HERE = Path(__file__).parent
OURS = HERE / "worker_models"
ODD = HERE / "models"

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # TensorFlow takes seconds to start, many of them on a busy machine.
    pytest.mark.timeout(180),
]

LINES: dict[str, tuple[Format, Path]] = {
    "line_saved": ("saved_model", OURS / "line_saved" / "1"),
    "line_keras": ("keras", OURS / "line_keras" / "1" / "line.keras"),
    "line_h5": ("keras_h5", OURS / "line_h5" / "1" / "line.h5"),
    "line_onnx": ("onnx", OURS / "line_onnx" / "1" / "line.onnx"),
    "line_lite": ("tflite", OURS / "line_lite" / "1" / "line.tflite"),
    "line_inline": ("tflite", OURS / "line_lite" / "1" / "line.tflite"),
}
# Extras of the worker, which may not be here.
NEEDS = {"line_h5": "tf_keras", "line_onnx": "onnxruntime"}


def here(model: str) -> bool:
    return model not in NEEDS or find_spec(NEEDS[model]) is not None


def source(name: str, format_: Format, path: Path, max_batch: int = 8) -> ModelSource:
    return ModelSource(name, "1", format_, path, max_batch)


def odd(name: str) -> ModelSource:
    return source(name, "tflite", ODD / f"{name}.tflite")


async def infer(
    runner: Runners | InlineRunner, model: str, *requests: dict[str, NDArray[Any]]
) -> BatchOutputs:
    first = requests[0]
    signature = tuple(
        (name, each.dtype.name, each.shape) for name, each in first.items()
    )
    buffers = [[each.tobytes() for each in inputs.values()] for inputs in requests]
    return await asyncio.wait_for(
        runner.submit(f"{model}/1", signature, buffers), timeout=60
    )


def output(outputs: BatchOutputs, index: int, name: str) -> NDArray[Any]:
    tensor = outputs.part(index)[name]
    return np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)


def row(*values: float) -> NDArray[np.float32]:
    return np.array([values], np.float32)


@dataclass(frozen=True)
class Lines:
    """One function in each format, and where it runs."""

    runners: Runners
    inline: InlineRunner
    specs: dict[str, ModelSpec]

    def of(self, model: str) -> Runners | InlineRunner:
        # Not even a quick SavedModel runs in the consumer.
        return self.inline if model in {"line_inline", "line_saved"} else self.runners


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lines() -> AsyncIterator[Lines]:
    async with Runners() as runners:
        lines = Lines(runners, InlineRunner(runners, below_ms=1000.0), {})
        async with asyncio.TaskGroup() as group:
            loading = {
                name: group.create_task(lines.of(name).load(source(name, *where)))
                for name, where in LINES.items()
                if here(name)
            }
        lines.specs.update({name: task.result() for name, task in loading.items()})
        yield lines


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lite() -> AsyncIterator[Runners]:
    async with Runners() as runner:
        await runner.load(source("line", *LINES["line_lite"]))
        yield runner


every_format = pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                not here(name), reason=f"{NEEDS.get(name)} is not installed"
            ),
        )
        for name in LINES
    ],
)


@every_format
async def test_a_model_tells_its_signature_and_that_rows_may_be_stacked(
    lines: Lines, model: str
) -> None:
    spec = lines.specs[model]
    assert spec.inputs == (TensorSpec("x", "float32", (-1, 4)),)
    assert [(each.dtype, each.shape) for each in spec.outputs] == [("float32", (-1, 4))]
    assert spec.batched
    assert [size for size, _ in spec.costs_ms] == [1, 2, 4, 8]


@every_format
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
async def test_each_request_of_a_batch_gets_its_own_rows_and_no_padding(
    lines: Lines, model: str, count: int
) -> None:
    runner = lines.of(model)
    (name,) = [each.name for each in lines.specs[model].outputs]
    requests = [{"x": row(n, n + 1, n + 2, -n)} for n in range(count)]
    outputs = await infer(runner, model, *requests)
    assert outputs.count == count
    for index, request in enumerate(requests):
        np.testing.assert_allclose(
            output(outputs, index, name), request["x"] * 2 + 1, rtol=1e-5
        )


@every_format
async def test_a_request_of_several_rows_comes_back_with_as_many(
    lines: Lines, model: str
) -> None:
    runner = lines.of(model)
    (name,) = [each.name for each in lines.specs[model].outputs]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    outputs = await infer(runner, model, {"x": x}, {"x": -x})
    np.testing.assert_allclose(output(outputs, 0, name), x * 2 + 1, rtol=1e-5)
    np.testing.assert_allclose(output(outputs, 1, name), -x * 2 + 1, rtol=1e-5)


@every_format
async def test_an_error_of_the_model_is_told_and_the_process_goes_on(
    lines: Lines, model: str
) -> None:
    runner = lines.of(model)
    before = lines.runners.pid(f"{model}/1")
    with pytest.raises(BatchFailed) as failure:
        await infer(runner, model, {"x": np.zeros((1, 4), np.int64)})
    assert not failure.value.crashed
    assert failure.value.suspect
    await infer(runner, model, {"x": row(1, 2, 3, 4)})
    assert lines.runners.pid(f"{model}/1") == before


async def test_batches_sent_together_are_answered_in_order(lite: Runners) -> None:
    sent = [infer(lite, "line", {"x": row(n, 0, 0, 0)}) for n in range(20)]
    for n, outputs in enumerate(await asyncio.gather(*sent)):
        assert output(outputs, 0, "y")[0, 0] == 2 * n + 1


async def test_a_batch_larger_than_the_socket_buffers_passes(
    lite: Runners,
) -> None:
    await lite.load(source("wide", "tflite", ODD / "any_shape.tflite"))
    x = np.random.default_rng(0).random((1, 4_000_000), np.float32)
    outputs = await infer(lite, "wide", {"x": x})
    np.testing.assert_allclose(output(outputs, 0, "y"), x * 2)


async def test_tflite_models_run_without_tensorflow(lite: Runners) -> None:
    maps = await asyncio.to_thread(Path(f"/proc/{lite.pid('line/1')}/maps").read_text)
    assert "ai_edge_litert" in maps
    assert "/tensorflow/" not in maps


@pytest.mark.parametrize(
    ("name", "names_in_reason"),
    [
        ("custom_op", "Det"),
        ("text", "not numeric"),
        ("counting", "keeps state"),
        ("missing", "missing.tflite"),
    ],
)
async def test_a_model_that_cannot_run_is_refused_with_its_reason(
    lite: Runners, name: str, names_in_reason: str
) -> None:
    before = lite.pid("line/1")
    with pytest.raises(CannotLoad, match=names_in_reason):
        await lite.load(odd(name))
    assert lite.pid("line/1") == before
    await infer(lite, "line", {"x": row(1, 2, 3, 4)})


async def test_a_model_that_folds_its_batch_runs_one_by_one(
    lite: Runners,
) -> None:
    spec = await lite.load(odd("folds_batch"))
    assert not spec.batched
    requests = [{"x": row(n, 0, 0, 1)} for n in range(3)]
    together = await infer(lite, "folds_batch", *requests)
    for index, request in enumerate(requests):
        alone = await infer(lite, "folds_batch", request)
        np.testing.assert_array_equal(
            output(together, index, "logits"), output(alone, 0, "logits")
        )


async def test_a_model_whose_inputs_are_padded_is_warm_at_each_length(
    lite: Runners,
) -> None:
    path = OURS / "total" / "1" / "total.tflite"
    padding = Padding(1, (4, 16))
    spec = await lite.load(ModelSource("total", "1", "tflite", path, 8, padding))
    assert spec.costs_ms == ()  # of other lengths nothing is known
    assert [row_bytes for row_bytes, _ in spec.item_costs_ms] == [16, 64]
    for _, costs_ms in spec.item_costs_ms:
        assert [size for size, _ in costs_ms] == [1, 2, 4, 8]
    outputs = await infer(lite, "total", {"x": row(1, 2, 3, 4)})
    assert output(outputs, 0, "y").tolist() == [[10.0]]


async def test_a_model_with_a_hidden_state_answers_the_same_twice(
    lite: Runners,
) -> None:
    await lite.load(odd("remembering"))
    request = {"x": row(5)}
    first = await infer(lite, "remembering", request)
    again = await infer(lite, "remembering", request, request)
    for outputs, index in ((again, 0), (again, 1)):
        np.testing.assert_array_equal(
            output(outputs, index, "y"), output(first, 0, "y")
        )


async def test_a_quantised_model_takes_and_gives_real_values(
    lite: Runners,
) -> None:
    await lite.load(odd("any_batch"))
    request = {"x": row(0.5, -0.5, 0.25, 1.0)}
    expected = output(await infer(lite, "any_batch", request), 0, "logits")
    for name in ("dense_int8", "dense_uint8"):
        spec = await lite.load(odd(name))
        assert spec.inputs[0].dtype == "float32"
        got = output(await infer(lite, name, request), 0, "logits")
        np.testing.assert_allclose(got, expected, atol=0.05)


async def test_several_inputs_and_outputs_go_by_name(lite: Runners) -> None:
    await lite.load(odd("two"))
    outputs = await infer(
        lite, "two", {"a": row(5, 6), "b": row(1, 2)}, {"a": row(0, 0), "b": row(3, 4)}
    )
    assert output(outputs, 0, "total").tolist() == [[6, 8]]
    assert output(outputs, 0, "difference").tolist() == [[4, 4]]
    assert output(outputs, 1, "total").tolist() == [[3, 4]]


async def test_a_saved_model_with_weights_answers_by_name_and_one_that_counts_goes_on_counting() -> (
    None
):
    async with Runners() as runner:
        async with asyncio.TaskGroup() as group:
            for name in ("weighing", "counting"):
                model = source(name, "saved_model", OURS / name / "1", max_batch=2)
                group.create_task(runner.load(model))
        weighed = await infer(
            runner,
            "weighing",
            {"b": row(5, 5), "a": row(2, 2)},
            {"b": row(1, 2), "a": row(1, 0)},
        )
        assert output(weighed, 0, "y").tolist() == [[3, 3]]
        assert output(weighed, 0, "z").tolist() == [[8, 12]]
        assert output(weighed, 1, "z").tolist() == [[1, 2]]
        first, second = [
            output(await infer(runner, "counting", {"x": row(0, 0)}), 0, "y")
            for _ in range(2)
        ]
        assert (second - first).tolist() == [[1, 1]]


async def test_a_damaged_saved_model_is_refused_and_the_others_serve_on(
    lines: Lines, tmp_path: Path
) -> None:
    runner = lines.runners
    shutil.copytree(LINES["line_saved"][1], tmp_path / "1")
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"half a mod")
    with pytest.raises(CannotLoad, match="cannot load"):
        await runner.load(source("damaged", "saved_model", tmp_path / "1"))
    await infer(runner, "line_saved", {"x": row(1, 2, 3, 4)})


async def test_a_tuned_model_answers_the_same_and_what_xla_cannot_compile_is_told() -> (
    None
):
    tuning = Tuning(xla=True, mixed_precision=True, intra_threads=1, inter_threads=1)
    aborts = source("aborts", "saved_model", OURS / "fragile" / "1", 2)
    tuned = ("line_saved", "line_keras")

    async def refused(runner: Runners) -> None:
        with pytest.raises(CannotLoad, match=r"XLA.*Abort"):
            await runner.load(aborts)

    async with Runners(tuning=tuning) as runner:
        async with asyncio.TaskGroup() as group:
            group.create_task(refused(runner))
            loading = {
                name: group.create_task(runner.load(source(name, *LINES[name], 2)))
                for name in tuned
            }
        for name, task in loading.items():
            (y,) = [each.name for each in task.result().outputs]
            outputs = await infer(runner, name, {"x": row(1, 2, 3, 4)})
            np.testing.assert_allclose(output(outputs, 0, y), [[3, 5, 7, 9]], rtol=0.01)


async def test_only_quick_lite_models_run_inline(lines: Lines) -> None:
    assert lines.inline.runs_inline(source("line_inline", *LINES["line_inline"]))
    # Told apart by the format, however quick they are.
    assert not lines.inline.runs_inline(source("line_saved", *LINES["line_saved"]))
    never = InlineRunner(lines.runners, below_ms=0.0)
    lite = source("line_again", *LINES["line_lite"])
    await never.load(lite)
    assert not never.runs_inline(lite)


async def test_the_loop_turns_between_inline_batches(lines: Lines) -> None:
    inline = lines.inline
    running = inline.submit("line_inline/1", *_batch(1.0)[1:])
    assert running.done()
    assert inline.running == 1
    await running
    await asyncio.sleep(0)
    assert inline.running == 0


async def test_a_sequential_model_gives_what_its_last_layer_does() -> None:
    async with Runners() as runner:
        path = OURS / "sequential" / "1" / "line.keras"
        await runner.load(source("sequential", "keras", path))
        outputs = await infer(runner, "sequential", {"x": row(1, 2, 3, 4)})
        assert output(outputs, 0, "y").tolist() == [[3, 5, 7, 9]]


async def test_a_killed_process_costs_its_batch_and_comes_back() -> None:
    async with Runners() as runner, asyncio.TaskGroup() as group:
        await runner.load(source("line", *LINES["line_lite"]))
        mending = group.create_task(runner.run())
        pid = runner.pid("line/1")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        running = runner.submit(*_batch(1.0))
        queued = runner.submit(*_batch(2.0))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BatchFailed, match="SIGKILL") as first:
            await running
        with pytest.raises(BatchFailed) as second:
            await queued
        assert first.value.suspect
        assert first.value.crashed
        assert not second.value.suspect
        await _until_ready(runner)
        assert runner.pid("line/1") != pid
        outputs = await infer(runner, "line", {"x": row(1, 2, 3, 4)})
        assert output(outputs, 0, "y").tolist() == [[3, 5, 7, 9]]
        mending.cancel()


async def test_a_process_that_hangs_is_killed_and_comes_back() -> None:
    async with (
        Runners(limits=Limits(batch_s=0.3)) as runner,
        asyncio.TaskGroup() as group,
    ):
        await runner.load(source("line", *LINES["line_lite"]))
        mending = group.create_task(runner.run())
        pid = runner.pid("line/1")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(BatchFailed, match=r"did not answer within 0\.3 s") as hung:
            await asyncio.wait_for(runner.submit(*_batch(1.0)), 20)
        assert hung.value.crashed
        await _until_ready(runner)
        await infer(runner, "line", {"x": row(1, 2, 3, 4)})
        mending.cancel()


async def test_a_crash_of_one_model_leaves_the_others_serving() -> None:
    async with Runners() as runner:
        await runner.load(source("line", *LINES["line_lite"]))
        await runner.load(odd("two"))
        before = runner.pid("two/1")
        assert before != runner.pid("line/1")
        os.kill(runner.pid("line/1") or 0, signal.SIGKILL)
        await _until(lambda: not runner.ready("line/1"))
        # The exit code comes a moment after the end of the socket.
        await _until(lambda: "SIGKILL" in (runner.why_not_ready("line/1") or ""))
        # Nobody mends here, and still:
        await infer(runner, "two", {"a": row(5, 6), "b": row(1, 2)})
        assert runner.pid("two/1") == before


async def test_a_model_whose_process_only_ever_dies_is_given_up_and_tried_again() -> (
    None
):
    limits = Limits(deaths=2, retry_failed_s=0.1)
    async with Runners(limits=limits) as runner:
        await runner.load(source("line", *LINES["line_lite"]))
        await runner.load(odd("two"))

        async with asyncio.TaskGroup() as group:
            mending = group.create_task(runner.run())
            for _ in range(2):
                await _until(lambda: runner.pid("line/1") is not None)
                os.kill(runner.pid("line/1") or 0, signal.SIGKILL)
                await _until(lambda: runner.pid("line/1") is None)
            await _until(lambda: runner.ready("line/1"))
            with pytest.raises(ModelFailed, match=r"died 2 times in a row.*SIGKILL"):
                await runner.submit(*_batch(1.0))
            await infer(runner, "two", {"a": row(5, 6), "b": row(1, 2)})
            await _until(lambda: runner.why_not_ready("line/1") is None)
            await infer(runner, "line", {"x": row(1, 2, 3, 4)})
            assert runner.restarts == {"line/1": 2}
            mending.cancel()


async def test_a_batch_over_the_limit_it_was_given_is_killed() -> None:
    async with Runners() as runner:
        await runner.load(source("line", *LINES["line_lite"]))
        os.kill(runner.pid("line/1") or 0, signal.SIGSTOP)
        running = runner.submit(*_batch(1.0), limit_s=0.05)
        queued = runner.submit(*_batch(1.0), limit_s=0.05)
        with pytest.raises(BatchFailed, match=r"within 0\.05 s") as hung:
            await asyncio.wait_for(running, 20)
        with pytest.raises(BatchFailed) as innocent:
            await queued
        assert hung.value.suspect
        assert not innocent.value.suspect


async def test_a_model_that_loads_too_slowly_is_refused_and_its_process_ended() -> None:
    async with Runners(limits=Limits(load_s=0.02)) as runner:
        with pytest.raises(CannotLoad, match=r"within 0\.02 s: give it more"):
            await runner.load(source("line", *LINES["line_lite"]))
        assert not runner.ready("line/1")
        assert runner.memory_bytes() == {}


async def test_an_unloaded_model_answers_what_it_holds_and_then_ends() -> None:
    async with Runners() as runner:
        await runner.load(source("line", *LINES["line_lite"]))
        pid = runner.pid("line/1") or 0
        running = [runner.submit(*_batch(float(n))) for n in range(5)]
        await runner.unload("line/1")
        assert [output(each.result(), 0, "y")[0, 0] for each in running] == [
            1.0,
            3.0,
            5.0,
            7.0,
            9.0,
        ]
        assert not runner.ready("line/1")
        assert runner.running == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_version_loaded_anew_takes_over_without_a_gap() -> None:
    async with Runners() as runner:
        await runner.load(source("line", *LINES["line_lite"]))
        before = runner.pid("line/1")
        async with asyncio.TaskGroup() as group:
            again = group.create_task(runner.load(source("line", *LINES["line_lite"])))
            while not again.done():
                await infer(runner, "line", {"x": row(1, 2, 3, 4)})
        assert runner.pid("line/1") != before
        await infer(runner, "line", {"x": row(1, 2, 3, 4)})


async def test_a_process_that_grows_is_renewed_and_no_batch_fails() -> None:
    wide = source("wide", "tflite", ODD / "any_shape.tflite")
    async with Runners() as runner:
        await runner.load(wide)
        warm_mb = runner.memory_bytes()["wide/1"] // 2**20
    limits = Limits(memory_mb=warm_mb + 40, look_s=0.02)
    async with Runners(limits=limits) as runner, asyncio.TaskGroup() as group:
        await runner.load(wide)
        before = runner.pid("wide/1")
        mending = group.create_task(runner.run())
        size = 1_000_000
        while not runner.renewals["wide/1"]:
            if runner.memory_bytes()["wide/1"] < (warm_mb + 40) * 2**20:
                # LiteRT keeps an interpreter for each of the latest shapes.
                size += 1000
            await infer(runner, "wide", {"x": np.ones((1, size), np.float32)})
        assert runner.pid("wide/1") != before
        assert runner.restarts["wide/1"] == 0
        mending.cancel()


async def test_a_process_that_jumps_far_over_its_memory_is_killed() -> None:
    wide = source("wide", "tflite", ODD / "any_shape.tflite")
    async with Runners(limits=Limits(memory_mb=80, look_s=0.02)) as runner:
        await runner.load(wide)
        async with asyncio.TaskGroup() as group:
            mending = group.create_task(runner.run())
            x = np.ones((1, 10_000_000), np.float32)
            with contextlib.suppress(BatchFailed):
                await infer(runner, "wide", {"x": x})
            await _until(lambda: runner.restarts["wide/1"] == 1)
            await infer(runner, "wide", {"x": row(1, 2, 3, 4)})
            mending.cancel()


async def test_a_model_too_large_for_its_limit_is_refused() -> None:
    async with Runners(limits=Limits(memory_mb=10)) as runner:
        with pytest.raises(CannotLoad, match="over runner_memory_mb=10"):
            await runner.load(source("line", *LINES["line_lite"]))


async def test_a_batch_of_batches_is_answered_though_trays_are_few(
    lite: Runners,
) -> None:
    signature = (("x", "float32", (1, 4)),)
    running = [
        lite.submit(
            "line/1", signature, [[row(n, m, 0, 0).tobytes()] for m in range(8)]
        )
        for n in range(50)
    ]
    for n, outputs in enumerate(await asyncio.gather(*running)):
        got = [output(outputs, m, "y")[0].tolist() for m in range(8)]
        assert got == [[2 * n + 1, 2 * m + 1, 1, 1] for m in range(8)]


@pytest.mark.skipif(not here("line_onnx"), reason="onnxruntime is not installed")
async def test_batches_run_side_by_side_come_back_to_their_own_callers() -> None:
    async with Runners(tuning=Tuning(at_once=2)) as runner:
        await runner.load(source("line", *LINES["line_onnx"]))
        sent = [infer(runner, "line", {"x": row(n, 0, 0, 0)}) for n in range(40)]
        for n, outputs in enumerate(await asyncio.gather(*sent)):
            assert output(outputs, 0, "y")[0, 0] == 2 * n + 1


async def test_a_missing_runtime_is_named_with_the_command_that_installs_it() -> None:
    async with Runners() as runner:
        if not here("line_onnx"):
            with pytest.raises(CannotLoad, match=r"pip install 'overspill\[onnx\]'"):
                await runner.load(source("line", *LINES["line_onnx"]))
        if not here("line_h5"):
            with pytest.raises(CannotLoad, match="pip install --no-deps tf_keras"):
                await runner.load(source("line", *LINES["line_h5"]))


async def test_a_legacy_model_of_code_is_refused_before_anything_of_it_runs() -> None:
    async with Runners() as runner:
        code = source("code", "keras_h5", OURS / "code_h5" / "1" / "line.h5")
        with pytest.raises(CannotLoad, match="Lambda layer, which is code"):
            await runner.load(code)


async def test_the_process_ends_with_the_runner() -> None:
    async with Runners() as runner:
        await runner.load(source("line", *LINES["line_lite"]))
        pid = runner.pid("line/1")
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def _batch(value: float) -> tuple[str, Any, Sequence[Sequence[bytes]]]:
    signature = (("x", "float32", (1, 4)),)
    return "line/1", signature, [[row(value, 0, 0, 0).tobytes()]]


async def _until_ready(runner: Runners) -> None:
    await _until(lambda: runner.ready("line/1"))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - another process decides
            await asyncio.sleep(0.005)
