"""Keep in memory, and consume, what the repository and the requests ask for.

The decisions are `core.versions`; this looks, loads, unloads and tells the others. A
version loads in a process of its own beside those that serve, and takes over between
two batches.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

import structlog

from broker.amqp.subscriber import CannotConsume, Prefetch
from broker.topology import Queue, model_queues
from cloud_worker.adapters.failures import CannotLoad
from cloud_worker.adapters.frames import ModelSource
from cloud_worker.adapters.library import Holdings, Library
from cloud_worker.adapters.repository import Candidate, NoRepository, Unservable
from cloud_worker.core.copies import Use
from cloud_worker.core.costs import Costs
from cloud_worker.core.policy import Shares
from cloud_worker.core.serving import Serving
from cloud_worker.core.shelf import Key
from cloud_worker.core.spec import ModelSpec, ServedModel
from cloud_worker.core.version_steps import GiveUp, Load, Retire, Route, Step, Unload
from cloud_worker.core.versions import Versions
from cloud_worker.loops.infer import Infer
from cloud_worker.loops.usage import Usage
from lifecycle.clock import Clock
from lifecycle.threads import in_daemon_thread

log = structlog.get_logger(__name__)

# Whether something has become idle is asked so often.
TICK_S: Final = 0.25
LOOK_TIMEOUT_S: Final = 30.0
MOST_SAID: Final = 256


class ModelRunner(Protocol):
    """What holds the models, as `adapters.inline.InlineRunner` does."""

    async def load(self, source: ModelSource, *, gently: bool) -> ModelSpec:
        """Load a version and warm it up; `gently` while others serve.

        Raises:
            CannotLoad: it cannot be served; says why.
        """
        ...

    async def unload(self, key: str) -> None:
        """Forget a version once it has answered its batches."""
        ...

    def memory_bytes(self) -> Mapping[str, int]:
        """What the loaded versions take."""
        ...

    def given_up(self) -> Mapping[str, str]:
        """The loaded versions that only die, and why."""
        ...


class Consumption(Protocol):
    """What is consumed, as `AmqpLink` has it."""

    async def consume_also(self, queues: Sequence[Queue], prefetch: Prefetch) -> None:
        """Consume these from now on.

        Raises:
            CannotConsume: the broker refuses one.
        """
        ...

    async def stop_consuming(self, queues: Sequence[str]) -> None:
        """Consume these no more."""
        ...


class Keeper:
    """The loop between the repository and what answers.

    Attributes:
        serving: what answers now, by model; others read it.

    Args:
        library: the repository.
        versions: the decisions.
        runner: loads and unloads.
        link: consumes the queues of what is served.
        infer: what waits for a version, or runs on it.
        usage: what the intake asks for.
        costs: told of what is loaded and forgotten.
        clock: for what was used when.
        prefetch: how many envelopes of a model to hold.
        watch_s: how often to look.
    """

    def __init__(  # noqa: PLR0913 - the parts it stands on
        self,
        library: Library,
        versions: Versions,
        *,
        runner: ModelRunner,
        link: Consumption,
        infer: Infer,
        usage: Usage,
        costs: Costs,
        clock: Clock,
        prefetch: Callable[[Serving], Prefetch],
        watch_s: float,
    ) -> None:
        self.serving: dict[str, Serving] = {}
        self._library = library
        self._versions = versions
        self._runner = runner
        self._link = link
        self._infer = infer
        self._usage = usage
        self._costs = costs
        self._clock = clock
        self._prefetch = prefetch
        self._watch_s = watch_s
        self._candidates: Mapping[Key, Candidate] = {}
        self._loaded: dict[Key, ServedModel] = {}
        self._refused: set[str] = set()
        self._looking: asyncio.Future[Holdings] | None = None
        self._said: set[str] = set()
        self._filled = asyncio.Event()

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Every version that answers."""
        return tuple(
            serving.versions[version]
            for _, serving in sorted(self.serving.items())
            for version in sorted(serving.versions)
        )

    async def look(self) -> None:
        """See for the first time what the repository holds.

        Raises:
            NoRepository: it holds nothing that could be served.
            TimeoutError: its disk does not answer.
        """
        self._take(await self._in_thread())

    async def wait_filled(self) -> None:
        """Return once all was tried that is wanted, while `run` runs.

        A load that takes very long is not waited for when others serve.
        """
        await self._filled.wait()

    async def run(self) -> None:
        """Keep to what the repository holds, for ever."""
        async with asyncio.TaskGroup() as loads:

            async def begin(load: Load) -> None:
                loads.create_task(self._load(load))

            look_at_s = self._clock.monotonic() + self._watch_s
            while True:
                broken = self._broken()
                await self._settle(begin)
                for key, why in broken:
                    log.error(
                        "model version given up, another one answers",
                        model=key.name,
                        version=key.version,
                        why=why,
                    )
                    await self._discard(key)
                if not self._is_filling():
                    self._filled.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._usage.missed.wait()
                self._usage.missed.clear()
                if self._clock.monotonic() >= look_at_s:
                    await self._look_again()
                    look_at_s = self._clock.monotonic() + self._watch_s

    def _broken(self) -> list[tuple[Key, str]]:
        """The versions that are given up from now on, as others can answer, and why."""
        down = [(Key.read(name), why) for name, why in self._runner.given_up().items()]
        return [(key, why) for key, why in down if self._versions.broke(key, why)]

    def _is_filling(self) -> bool:
        if self.serving:
            return self._versions.loads_in_time(self._clock.monotonic())
        return self._versions.loads

    async def _look_again(self) -> None:
        try:
            self._take(await self._in_thread())
        except NoRepository as error:
            # A disk that is away looks the same as one that was emptied.
            self._say(f"{error}; what is loaded goes on answering")
        except TimeoutError:
            self._say("the repository's disk does not answer; what is loaded goes on")
        self._versions.measured(
            {Key.read(key): size for key, size in self._runner.memory_bytes().items()}
        )
        for name in sorted(self._refused):
            await self._consume(name)

    async def _in_thread(self) -> Holdings:
        """The next look; one that hangs is waited for again the next time.

        Raises:
            NoRepository: there is none.
            TimeoutError: it takes too long.
        """
        if self._looking is None:
            self._looking = in_daemon_thread(self._library.look, "repository")
        await asyncio.wait((self._looking,), timeout=LOOK_TIMEOUT_S)
        if not self._looking.done():
            raise TimeoutError
        done, self._looking = self._looking, None
        return done.result()

    def _take(self, holdings: Holdings) -> None:
        self._candidates = holdings.candidates
        self._versions.found(holdings.shelves)
        for key in self._versions.changed_in_place():
            self._say(
                f"the files of {key} have changed since it was loaded: it answers as "
                "it was. Put what is new into a version of its own"
            )

    def _use(self) -> Use:
        in_use = self._infer.in_use | self._usage.being_taken
        return Use(
            waiting={Key.read(key) for key in in_use},
            last_s={Key.read(key): at_s for key, at_s in self._usage.asked_s.items()},
            now_s=self._clock.monotonic(),
        )

    async def _settle(self, begin: Callable[[Load], Awaitable[None]]) -> None:
        """Do all that follows from what is known, until nothing more does."""
        progress = True
        while progress:
            progress = False
            steps = self._versions.next_steps(self._use())
            done = 0
            try:
                for step in steps:
                    await self._carry_out(step, begin)
                    done += 1
                    # Giving up is said again until nobody waits.
                    progress |= not isinstance(step, GiveUp)
            finally:
                for step in steps[done:]:
                    if isinstance(step, Load):
                        self._versions.abandoned(step.key)
        for name in self._versions.unserved():
            self._say(f"nothing in the repository can answer for model {name!r}")

    async def _carry_out(
        self, step: Step, begin: Callable[[Load], Awaitable[None]]
    ) -> None:
        match step:
            case Load():
                await begin(step)
            case Unload(key, why):
                await self._unload(key, why)
            case Retire(key, why):
                await self._retire(key, why)
            case Route(name, shares):
                await self._reroute(name, shares)
            case GiveUp(key, why):
                self._infer.give_up(str(key), why)

    async def _load(self, load: Load) -> None:
        key = load.key
        log.info("model loads", model=key.name, version=key.version)
        try:
            candidate = self._candidates[key]
            model = await self._load_and_check(candidate)
        except (CannotLoad, Unservable) as error:
            self._versions.failed(key, str(error))
            log.error(
                "model version passed over",
                model=key.name,
                version=key.version,
                why=str(error),
            )
        else:
            size = self._runner.memory_bytes().get(str(key), 0)
            self._loaded[key] = model
            self._versions.loaded(key, size, self._clock.monotonic())
            self._usage.absent.discard(str(key))
            self._infer.expect(str(key))
            log.info(
                "model loaded",
                model=key.name,
                version=key.version,
                batched=model.spec.batched,
                memory_mb=round(size / 2**20),
                costs_ms={size: round(ms, 2) for size, ms in model.spec.costs_ms},
            )
        finally:
            self._versions.abandoned(key)
        self._usage.missed.set()

    async def _load_and_check(self, candidate: Candidate) -> ServedModel:
        spec = await self._runner.load(candidate.source, gently=bool(self.serving))
        try:
            model = candidate.served(spec)
        except Unservable:
            await self._runner.unload(candidate.source.key)
            raise
        self._costs.seed(model.key, spec.costs_ms, spec.item_costs_ms)
        return model

    async def _unload(self, key: Key, why: str) -> None:
        log.info("model unloaded", model=key.name, version=key.version, why=why)
        self._usage.absent.add(str(key))
        await self._runner.unload(str(key))

    async def _retire(self, key: Key, why: str) -> None:
        log.info("model retired", model=key.name, version=key.version, why=why)
        await self._discard(key)

    async def _discard(self, key: Key) -> None:
        self._loaded.pop(key, None)
        self._usage.absent.discard(str(key))
        self._usage.asked_s.pop(str(key), None)
        await self._runner.unload(str(key))
        self._costs.forget(str(key))

    async def _reroute(self, name: str, shares: Shares) -> None:
        log.info("model answers", model=name, shares=dict(shares) or None)
        if shares:
            versions = {each: self._loaded[Key(name, each)] for each in shares}
            self.serving[name] = Serving(versions, shares)
            await self._consume(name)
        else:
            # The table last: what comes until then is answered.
            self._refused.discard(name)
            await self._link.stop_consuming([q.name for q in model_queues(name)])
            del self.serving[name]

    async def _consume(self, name: str) -> None:
        try:
            await self._link.consume_also(
                model_queues(name), self._prefetch(self.serving[name])
            )
        except CannotConsume as error:
            self._refused.add(name)
            self._say(f"model {name!r} gets no requests: {error}")
        else:
            self._refused.discard(name)

    def _say(self, warning: str) -> None:
        """Log what goes on being so, once."""
        if warning not in self._said:
            log.warning("models", what=warning)
        if len(self._said) >= MOST_SAID:
            self._said.clear()
        self._said.add(warning)
