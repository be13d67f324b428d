"""A model's process: load one model, run its batches, until the socket ends.

It takes batches in the order in which they come, so the next one may lie ready on its
tray while this one runs.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Final

from cloud_worker.adapters import frames
from cloud_worker.adapters.batches import WarmModel
from cloud_worker.adapters.frames import Loaded, ModelSource
from cloud_worker.adapters.gently import Gentle, in_nice_thread
from cloud_worker.adapters.litert import LiteRtRunner
from cloud_worker.adapters.onnx import OnnxRunner
from cloud_worker.adapters.runtime import CannotServe, RunFailed, Runner, Tuning
from cloud_worker.adapters.tensorflow import (
    import_tensorflow,
    open_keras,
    open_keras_h5,
    open_saved_model,
    start_threads,
)
from cloud_worker.adapters.trays import MappedTray
from lifecycle.interpreter import collect_seldom

TENSORFLOW: Final = {"saved_model", "keras", "keras_h5"}


class Connection:
    """Frames from and to the parent."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()

    def receive(self) -> dict[str, Any] | None:
        """The next frame; None when the parent is gone."""
        prefix = self._exactly(frames.PREFIX.size)
        if prefix is None:
            return None
        packed = self._exactly(frames.read_prefix(prefix))
        return None if packed is None else frames.read_header(packed)

    def send(self, header: dict[str, Any]) -> None:
        """Send a frame, from any thread; it is lost when the parent is gone."""
        with self._sending:
            try:
                self._socket.sendall(frames.frame(header))
            except (BrokenPipeError, ConnectionResetError):
                # The next frame that is waited for says so, too.
                return

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                got = self._socket.recv(size - len(data))
            except ConnectionError:
                return None
            if not got:
                return None
            data += got
        return data


def open_model(source: ModelSource, tuning: Tuning) -> Runner:
    """Load a model into its runtime, which is imported only now.

    Raises:
        CannotServe: it cannot be served; says why.
    """
    match source.format:
        case "tflite":
            return LiteRtRunner(source.path, threads=tuning.intra_threads)
        case "onnx":
            return OnnxRunner(source.path, tuning)
        case "saved_model":
            return open_saved_model(source.path, tuning)
        case "keras":
            return open_keras(source.path, tuning)
        case "keras_h5":
            return open_keras_h5(source.path, tuning)


def load_model(source: ModelSource, tuning: Tuning) -> tuple[Runner, WarmModel]:
    """Load a model and warm it up.

    Raises:
        CannotServe: it cannot be served; says why.
    """
    runner = open_model(source, tuning)
    return runner, WarmModel(runner, source.max_batch, source.padding)


def load_gently(
    source: ModelSource, tuning: Tuning, gentle: Gentle
) -> tuple[Runner, WarmModel]:
    """The same without hurting those that serve meanwhile; it may take longer.

    Raises:
        CannotServe: it cannot be served; says why.
    """
    if source.format in TENSORFLOW:
        in_nice_thread(lambda: import_tensorflow(tuning), idle=gentle.idle)
        # These stay, and would stay nice.
        start_threads(tuning)
        runner, model = in_nice_thread(
            lambda: load_model(source, tuning), idle=gentle.idle
        )
    else:
        # Quick to load, and its threads start as it does.
        runner, model = load_model(source, tuning)
    gentle.end()
    model.time_again()
    return runner, model


def serve(
    inherited: socket.socket, tray_fds: Sequence[int], gentle: Gentle | None
) -> None:
    """Load what the first frame names, then run batches until the parent is gone.

    Args:
        inherited: what the parent writes to.
        tray_fds: the shared memory of its trays.
        gentle: set while others serve, who should not feel the load.
    """
    connection = Connection(inherited)
    trays = [MappedTray(each) for each in tray_fds]
    asked = connection.receive()
    if asked is None:
        return
    source, tuning = frames.read_source(asked)
    try:
        if gentle is None:
            runner, model = load_model(source, tuning)
        else:
            runner, model = load_gently(source, tuning, gentle)
    except (CannotServe, MemoryError) as error:
        connection.send({"error": str(error) or "there is no memory to load it"})
        return
    # To look for garbage among all that TensorFlow is made of takes 200 ms.
    collect_seldom()
    at_once = tuning.at_once if runner.concurrent else 1
    connection.send(frames.loaded_header(Loaded(model.spec, at_once)))

    def run(header: dict[str, Any]) -> None:
        connection.send(_ran(model, header, trays[header["tray"]]))

    with ThreadPoolExecutor(at_once, "batch") if at_once > 1 else nullcontext() as pool:
        while (header := connection.receive()) is not None:
            if pool is None:
                run(header)
            else:
                pool.submit(_or_die, run, header)


def _ran(model: WarmModel, header: dict[str, Any], tray: MappedTray) -> dict[str, Any]:
    number, size = header["batch"], header["size"]
    try:
        outputs = model.run(header["inputs"], header["count"], tray.inputs(size))
        start = tray.put_behind(size, [each.data for each in outputs.blocks])
    except RunFailed as error:
        return {"batch": number, "error": str(error)}
    except MemoryError:
        return {"batch": number, "error": "the model's process is out of memory"}
    return frames.outputs_header(number, outputs, start)


def _or_die(run: Callable[[dict[str, Any]], None], header: dict[str, Any]) -> None:
    """A fault of ours must not leave the batch unanswered until it counts as hung."""
    try:
        run(header)
    except BaseException:  # noqa: BLE001 - it ends the process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
