"""What applying a delta to a 14 MB model costs an agent above rest, in a child process.

The child imports what an agent's pulls import, is at rest, notes its resident memory,
has the kernel forget the peak, fills the unfinished file by the delta as the agent does,
and tells the new peak. Its files are on the same disk, so that what the kernel keeps of
them is nobody's memory here.

python -m benchmarks.updating.apply_memory FOLDER: the child.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.limits import Limit, progress
from bundle.delta.build import BuildLimits, Delta, build_delta
from bundle.seal import Seal, make_seal

MODEL_BYTES: Final = 14 * 1024 * 1024
MOST_MB: Final = 100.0
CHILD_S: Final = 300.0
TUNED: Final = 0.4725


def measure(work: Path | None = None) -> tuple[dict[str, object], list[Limit]]:
    """The peak above rest for each kind of delta, and the limit."""
    figures: dict[str, object] = {}
    limits: list[Limit] = []
    for name, (old, new) in _models().items():
        progress(f"apply {name}")
        with tempfile.TemporaryDirectory(dir=work) as folder:
            row = _measure(Path(folder), old, new)
        figures[name] = row
        above_mb = float(row["above_rest_mb"])
        limits.append(Limit(f"apply, {name}: MB above rest", above_mb, MOST_MB))
    return figures, limits


def _models() -> Mapping[str, tuple[bytes, bytes]]:
    rng = np.random.default_rng(3)
    weights = rng.normal(0, 40, MODEL_BYTES).astype(np.int8)
    steps = np.rint(rng.normal(0, TUNED, MODEL_BYTES)).astype(np.int8)
    floats = rng.normal(0, 0.05, MODEL_BYTES // 4).astype("<f4")
    drifted = floats * (1 + rng.uniform(-1e-3, 1e-3, len(floats))).astype("<f4")
    old, third = weights.tobytes(), MODEL_BYTES // 3 + 1
    return {
        "int8 fine-tune": (old, (weights + steps).tobytes()),
        "float32, every weight 0.1 %": (floats.tobytes(), drifted.tobytes()),
        "int8, layers in another order": (
            old,
            b"".join((old[third:], old[:third], b"and a word of metadata")),
        ),
    }


def _measure(folder: Path, old: bytes, new: bytes) -> dict[str, Any]:
    base, wanted = folder / "base", folder / "wanted"
    base.write_bytes(old)
    wanted.write_bytes(new)
    delta = _delta(folder, base, wanted)
    (folder / "seal.json").write_text(
        make_seal(wanted, "m", "2").model_dump_json(), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.updating.apply_memory", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        timeout=CHILD_S,
    )
    row: dict[str, Any] = json.loads(done.stdout)
    return {"kind": delta.kind, "delta_bytes": len(delta.data), **row}


def _delta(folder: Path, base: Path, wanted: Path) -> Delta:
    sha256 = make_seal(base, "m", "1").sha256
    limits = BuildLimits(max_s=600.0)
    delta = build_delta(base, sha256, wanted, limits=limits)
    if delta is None:
        raise ValueError("no delta is worth it")
    (folder / "delta").write_bytes(delta.data)
    (folder / "base.sha256").write_text(sha256)
    return delta


def child(folder: Path) -> dict[str, object]:
    """Apply what lies in a folder; gives memory in MB and seconds."""
    # What an agent has loaded before its first update.
    from edge_agent.adapters.part_file import PartFile, make_by_delta  # noqa: PLC0415
    from edge_agent.core.chunks import Chunks  # noqa: PLC0415
    from edge_agent.loops import pulling  # noqa: PLC0415

    seal = Seal.model_validate_json((folder / "seal.json").read_bytes())
    chunks = Chunks.of(seal)
    base_sha256 = (folder / "base.sha256").read_text()
    part = PartFile(folder / "out", chunks).open()
    # The peak so far is the imports'.
    Path("/proc/self/clear_refs").write_text("5")
    rest_mb = _status_mb("VmRSS")
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    make_by_delta(part, chunks, folder / "base", base_sha256, folder / "delta")
    took_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    peak_mb = _status_mb("VmHWM")
    part.finish()
    if not pulling._is_whole(folder / "out", seal):  # noqa: SLF001 - as the puller ends
        raise ValueError("the delta made something else")
    return {
        "rest_mb": round(rest_mb, 1),
        "above_rest_mb": round(peak_mb - rest_mb, 1),
        "took_s": round(took_s, 2),
        "cpu_s": round(cpu_s, 2),
    }


def _status_mb(field: str) -> float:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise OSError(f"this kernel does not tell {field}")
    return int(found[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(child(Path(sys.argv[1]))))
