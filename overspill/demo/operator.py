"""The operator of a demo: publishes versions and rolls them out, by the commands alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bundle.manifest import MANIFEST_FILE
from lifecycle.clock import Clock
from overspill.demo.stopped import Course
from overspill.program import CommandFailed
from overspill.system import System

# One agent first, then all: watched for seconds, where a fleet would be for minutes, and
# so with a wider gate, which a hundred comparisons can pass.
TERMS: Final = (
    *("--waves", "1,all"),
    *("--soak", "2s"),
    *("--probation", "2s"),
    *("--lease", "60s"),
    *("--gate", "agreement=0.1"),
)
TURNS: Final = "rolling back"
MISLABELLED: Final = "mislabelled"


class Operator:
    """Types commands, and says what they say.

    Args:
        system: whose operator it is.
        clock: of the demo.
        say: shown as the news of the rollout.
    """

    def __init__(
        self, system: System, clock: Clock, say: Callable[[str], None]
    ) -> None:
        self._system = system
        self._clock = clock
        self._say = say

    async def publish(self, bundle: Path) -> None:
        """`overspill model publish`.

        Raises:
            CommandFailed: it did.
        """
        self._say(f"overspill model publish {bundle.name}")
        code, _, err = await self._system.operate("model", "publish", str(bundle))
        if code:
            raise CommandFailed(f"`overspill model publish` failed: {err.strip()}")

    async def roll_out(self, model: str, version: str) -> Course:
        """`overspill rollout start` and `watch`, until it has ended.

        Raises:
            CommandFailed: it could not be started or watched.
        """
        self._say(f"overspill rollout start {model} {version}")
        began_ms = self._now_ms()
        begun = await self._document("rollout", "start", model, version, *TERMS)
        generation = str(begun["generation"])
        turned_ms: float | None = None

        def hear(line: str) -> None:
            nonlocal turned_ms
            news = line.partition(": ")[2] or line
            if turned_ms is None and news.startswith(TURNS):
                turned_ms = self._now_ms()
            self._say(f"rollout: {news}")

        await self._system.follow(hear, "rollout", "watch", generation)
        ended_ms = self._now_ms()
        said = await self._document("rollout", "watch", generation)
        return Course(
            version=version,
            state=said["state"],
            reason=said["reason"] or "",
            waves=said["wave"],
            told=[each["agent"] for each in said["agents"] if each["wave"] is not None],
            updated=[
                each["agent"] for each in said["agents"] if each["state"] == "updated"
            ],
            began_ms=began_ms,
            turned_ms=turned_ms,
            ended_ms=ended_ms,
        )

    async def _document(self, *words: str) -> dict[str, Any]:
        _, out, err = await self._system.operate(*words, "--json")
        try:
            said: dict[str, Any] = json.loads(out)
        except ValueError:
            raise CommandFailed(
                f"`overspill {' '.join(words)}` failed: {err.strip() or out.strip()}"
            ) from None
        return said

    def _now_ms(self) -> float:
        return self._clock.monotonic() * 1000.0


def mislabel(bundle: Path, folder: Path) -> Path:
    """Copy a bundle as a version of its own whose labels name the wrong classes.

    Args:
        bundle: a good one's folder.
        folder: where the copy's folder is made.

    Returns:
        The copy: the same model with the same golden outputs, and every label moved
        on to the next class, as a mistake in a training script would have it.
    """
    made = folder / MISLABELLED
    shutil.copytree(bundle, made)
    file = made / MANIFEST_FILE
    manifest = json.loads(file.read_text())
    first, *others = manifest["labels"]
    manifest["labels"] = [*others, first]
    manifest["version"] = f"{manifest['version']}-{MISLABELLED}"
    file.write_text(json.dumps(manifest, indent=1))
    return made
