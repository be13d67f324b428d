"""The model process: load models, run batches, one frame at a time, until the socket ends.

`python -m cloud_worker.adapters.runner_child --fd N` is started by `runner.py` and by
nobody else. It answers frames in the order in which they come, so the next batch may
lie in the socket while this one runs. It ends with its parent and ignores signals,
because the parent drains first.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from cloud_worker.adapters import frames
from cloud_worker.adapters.batches import WarmModel
from cloud_worker.adapters.frames import ModelSource
from cloud_worker.adapters.litert import LiteRtRunner
from cloud_worker.adapters.runtime import CannotServe, RunFailed, Runner
from cloud_worker.adapters.tensorflow import open_keras, open_saved_model
from cloud_worker.core.spec import ModelSpec

PR_SET_PDEATHSIG: Final = 1


class ModelProcess:
    """The models of this process and what may be asked of them."""

    def __init__(self, *, intra_threads: int, inter_threads: int) -> None:
        self._intra_threads = intra_threads
        self._inter_threads = inter_threads
        self._models: dict[str, WarmModel] = {}

    def answer(self, header: dict[str, Any], body: memoryview) -> bytes:
        """Carry out one frame and return the frame that answers it."""
        try:
            if header["op"] == "load":
                spec = self._load(frames.read_source(header))
                return frames.frame(frames.spec_header(spec))
            model = self._models[header["key"]]
            outputs = model.run(header["inputs"], header["count"], body)
            return frames.frame(
                frames.outputs_header(outputs), [each.data for each in outputs.blocks]
            )
        except (CannotServe, RunFailed) as error:
            return frames.frame({"error": str(error)})
        except MemoryError:
            return frames.frame({"error": "the model process is out of memory"})

    def _load(self, source: ModelSource) -> ModelSpec:
        model = WarmModel(self._open(source), source.max_batch)
        self._models[source.key] = model
        return model.spec

    def _open(self, source: ModelSource) -> Runner:
        threads = {
            "intra_threads": self._intra_threads,
            "inter_threads": self._inter_threads,
        }
        # The runtimes are imported by these calls only, so `.tflite` models start
        # without TensorFlow.
        match source.format:
            case "tflite":
                return LiteRtRunner(source.path, threads=self._intra_threads)
            case "saved_model":
                return open_saved_model(source.path, **threads)
            case "keras":
                return open_keras(source.path, **threads)


def serve(connection: socket.socket, process: ModelProcess) -> None:
    """Answer frames until the parent closes the socket."""
    prefix = bytearray(frames.PREFIX.size)
    while _fill(connection, memoryview(prefix)):
        header_bytes, body_bytes = frames.read_prefix(prefix)
        # A fresh buffer each time: a runtime may keep the last one's memory in use.
        data = np.empty(header_bytes + body_bytes, np.uint8).data
        if not _fill(connection, data):
            return
        header = frames.read_header(data[:header_bytes])
        connection.sendall(process.answer(header, data[header_bytes:]))


def _fill(connection: socket.socket, buffer: memoryview) -> bool:
    """Read exactly this much; False if the parent is gone."""
    while buffer.nbytes:
        try:
            got = connection.recv_into(buffer)
        except ConnectionError:
            return False
        if not got:
            return False
        buffer = buffer[got:]
    return True


def _end_with_parent(parent: int) -> None:
    """A hung model does not outlive the consumer that would have killed it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve on the socket that was inherited as file descriptor `--fd`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--intra-threads", type=int, default=0)
    parser.add_argument("--inter-threads", type=int, default=0)
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent(options.parent)
    process = ModelProcess(
        intra_threads=options.intra_threads, inter_threads=options.inter_threads
    )
    with socket.socket(fileno=options.fd) as connection:
        try:
            serve(connection, process)
        except BrokenPipeError:
            # The parent went away while its batch ran.
            return


if __name__ == "__main__":
    main()
