"""Many engines, each a Ray actor on devices of its own. This process plans, asks and records; it is the only writer.

Ray restarts and repeats nothing here. An engine that is lost (its node, its actor or its engine process died, or it is
silent) is replaced, and exactly the keys that it held are asked again; ``runs/work.py`` decides by whom. Nodes may join
and leave meanwhile. All engines must be alike: software, plan, prompts, and what they say of themselves.
"""

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from queue import SimpleQueue
from typing import Any

from evalkit.errors import BadInput, EngineError, EngineLost, EvalkitError
from evalkit.files import first_line
from evalkit.models.backends.cpu_dtype import fastest_on_cpu
from evalkit.models.backends.in_flight import LoopThread
from evalkit.runs import cluster
from evalkit.runs.answers import Ask, Asks, Event, Loading, Name, Served, without_answer
from evalkit.runs.config import RunConfig
from evalkit.runs.plan import Cell, Plan, RopeGroup
from evalkit.runs.replica import Found, Replica, software
from evalkit.runs.work import FATAL, Work, contexts
from evalkit.types import Prediction, Prompt

SILENT_SECONDS = 60.0
"""An actor that does not answer a call for so long hangs. It answers beside its work, in a thread of its own."""
_PING_SECONDS = 10.0
_WAIT_SECONDS = 0.2
"""How often an engine that has nothing to do looks for work."""
_LONGEST_BACKOFF_SECONDS = 60.0
_STRAGGLER_SECONDS = 60.0
"""Once one engine is there, others are waited for so long, to refuse what differs before anything is asked."""
_DESERTED_SECONDS = 600.0
"""A run without a single engine ends after so long: no node is left that has room for one."""
_HOPELESS = 3
"""Times the number of engines: so many are lost in a row, without an answer between, before the run ends."""
_BACKLOG = 1000
"""Answers that wait to be recorded, at which engines are sent no more."""
_EVERYWHERE = ("ray", "python", "evalkit", "source of evalkit")
"""Software that this process must share with all engines; they share the rest with each other."""


@dataclass(eq=False)
class _Engine:
    """One actor."""

    actor: Any
    node: str = "a node"
    node_id: str = ""
    rule: int | None = None
    """Number of the rope rule that it serves."""
    held: dict[Name, None] = field(default_factory=dict)
    """What it was given and has not answered, in that order."""
    has_answered: bool = False


class _Lost(Exception):
    """An engine is gone, or as good as gone."""


class Replicas:
    """The engines of a plan, on Ray. Implements ``answers.Engines``."""

    def __init__(self, plan: Plan, previews: Sequence[Prompt]) -> None:
        """Start or join Ray, and find engines that are alike; they load no weights yet.

        Args:
            plan: of the run.
            previews: prompts that were built here, the first of each cell, longest first: the engines' must equal them.

        Raises:
            BadInput: there is no Ray, too few devices, or a node differs or lacks something; it is named.
            EngineError: an actor dies when it is started.
        """
        gpus = plan.config.engine.gpus
        if gpus is None:
            raise BadInput(
                f"--replicas and --ray start engines, and the {plan.config.backend} backend has none to start; name "
                "several servers with --base-url."
            )
        self._plan, self._expected = plan, {prompt.key: prompt.sha256 for prompt in previews}
        self._probe = min(previews, key=lambda prompt: len(prompt.token_ids), default=None)
        self._losses: list[str] = []
        self._left_out: dict[str, None] = {}
        self._in_a_row = 0
        """Losses without an answer between."""
        self._stack = ExitStack()
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._software = {name: value for name, value in software().items() if name in _EVERYWHERE}
        self._identity: dict[str, Any] | None = None
        self._staff: set[_Engine] = set()
        try:
            self._ray = self._stack.enter_context(cluster.cluster(plan.config.ray))
            found = cluster.nodes(self._ray)
            replicas = plan.config.replicas
            self._needs = cluster.needs(found, replicas, gpus)
            self._loop = LoopThread("evalkit-replicas")
            self._stack.callback(self._loop.close)
            self._places = self._loop.submit(self._gather(replicas or self._needs.fit(found))).result()
        except BaseException:
            self.close()
            raise

    @property
    def warnings(self) -> Sequence[str]:
        """Which engines were lost or left out."""
        number = "1 engine was" if len(self._losses) == 1 else f"{len(self._losses)} engines were"
        lost = [f"{number} lost on the way, the last {self._losses[-1]}."] if self._losses else []
        return [*self._left_out, *lost]

    def answers(self, todo: Sequence[tuple[RopeGroup, Asks]]) -> Iterator[Event]:
        """Ask all engines, each under the rule that it serves; see ``answers.Engines``.

        Raises:
            BadInput: an engine refuses the plan.
            EngineError: engines are lost again and again, there is none left, or one computes what means nothing.
        """
        if not any(asks for _, asks in todo):
            return
        yield Loading()
        self._work = Work([(contexts(asks), len(asks)) for _, asks in todo])
        running = self._loop.submit(self._carry_out())
        running.add_done_callback(lambda _: self._events.put(None))
        try:
            while (event := self._events.get()) is not None:
                yield event
            running.result()
        finally:
            running.cancel()

    def close(self) -> None:
        """End the engines, and Ray where it was started here."""
        self._stack.close()

    # In the loop's thread

    @cached_property
    def _config(self) -> RunConfig:
        """The run's, with what an engine might find out otherwise than the others: commits, and the dtype on a CPU."""
        config, checkpoint = self._plan.config, self._plan.checkpoint
        options = self._plan.engine_options
        if not self._needs.gpus and getattr(options, "dtype", None) == "auto":
            options = replace(options, dtype=fastest_on_cpu(checkpoint.dtype, checkpoint.hidden_size))
        return replace(
            config,
            engine=options,
            revision=checkpoint.commits.get("commit", config.revision),
            adapter_revision=checkpoint.commits.get("adapter commit", config.adapter_revision),
        )

    async def _gather(self, number: int) -> "list[asyncio.Task[_Engine]]":
        """Return the first engine of each place; those that take long to be placed are still to come."""
        hired = [asyncio.create_task(self._hire_patiently()) for _ in range(number)]
        try:
            await asyncio.wait(hired, timeout=_DESERTED_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            there, late = await asyncio.wait(hired, timeout=_STRAGGLER_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for one in there:
                one.result()
            if len(late) == number:
                raise EngineError("Ray started no engine within 10 minutes; its devices are taken by other jobs.")
        except BaseException as error:
            for one in hired:
                one.cancel()
            if isinstance(error, _Lost):
                raise EngineError(f"An engine died when it was started: {error}.") from error
            raise
        return hired

    async def _carry_out(self) -> None:
        """Tend all places until nothing is left to ask."""
        self._tending = {asyncio.create_task(self._tend(first)) for first in self._places}
        recruiting = asyncio.create_task(self._recruit())
        try:
            while self._work.left:
                waiting = {*self._tending, recruiting}
                done, _ = await asyncio.wait(waiting, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                self._tending -= done
                for task in done:
                    task.result()
                if not self._tending and self._work.left:
                    raise EngineError(f"No engine is left to go on with. {' '.join(self.warnings)}")
        finally:
            everybody = {*self._tending, recruiting}
            for task in everybody:
                task.cancel()
            await asyncio.gather(*everybody, return_exceptions=True)

    async def _recruit(self) -> None:
        """Find places for more engines as nodes join, where no number was given; end a run that nobody is left for."""
        deserted_since = time.monotonic()
        while True:
            if self._plan.config.replicas is None:
                for _ in range(self._needs.fit(cluster.nodes(self._ray)) - len(self._tending)):
                    self._tending.add(asyncio.create_task(self._tend(asyncio.create_task(self._hire()))))
            if self._staff:
                deserted_since = time.monotonic()
            elif time.monotonic() - deserted_since > _DESERTED_SECONDS:
                raise EngineError(
                    f"No engine found room for {_DESERTED_SECONDS:g} s; the same command goes on from what is recorded."
                )
            await asyncio.sleep(_PING_SECONDS)

    async def _tend(self, hired: "asyncio.Task[_Engine]") -> None:
        """Keep one place staffed: when its engine is lost, put back what it held, and hire another after a while."""
        losses = 0
        while self._work.left:
            engine = _Engine(None)
            try:
                try:
                    engine = await hired
                except BadInput as error:  # it joined late: those that are there go on
                    self._left_out[f"{error} It was left out."] = None
                    return
                await self._employ(engine)
            except _Lost as lost:
                losses = 1 if engine.has_answered else losses + 1
                self._bury(engine, str(lost))
                await asyncio.sleep(min(2.0 ** (losses - 1), _LONGEST_BACKOFF_SECONDS))
            finally:
                hired.cancel()
                self._dismiss(engine)
            hired = asyncio.create_task(self._hire())
        hired.cancel()

    async def _hire_patiently(self) -> _Engine:
        """Start the first actor of a place, and another one when it dies, some times."""
        for _ in range(_HOPELESS - 1):
            with suppress(_Lost):
                return await self._hire()
        return await self._hire()

    async def _hire(self) -> _Engine:
        """Start an actor wherever there is room, and compare it with this process.

        Raises:
            BadInput: it differs, or lacks something.
            _Lost: it died.
        """
        kind = self._ray.remote(Replica).options(
            num_gpus=self._needs.gpus,
            num_cpus=self._needs.cpus,
            scheduling_strategy="SPREAD",
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=4,
        )
        engine = _Engine(kind.remote())
        try:
            engine.node_id, engine.node = await self._call(engine, engine.actor.node.remote())
            self._compare(
                engine, await self._call(engine, engine.actor.software.remote()), self._software, complete=True
            )
            probe = self._probe and Ask(self._probe.sample, self._probe.length)
            found: Found = await self._call(engine, engine.actor.open.remote(self._config, cluster.here(), probe))
            self._compare(engine, found.fingerprint, self._plan.fingerprint)
            if self._probe:
                self._compare(engine, {"prompts": found.sha256}, {"prompts": self._probe.sha256})
        except BaseException:
            self._dismiss(engine)
            raise
        return engine

    async def _employ(self, engine: _Engine) -> None:
        """Ask an engine until nothing is left; raises _Lost when it dies, or falls silent."""
        self._staff.add(engine)
        both = {asyncio.create_task(self._ask(engine)), asyncio.create_task(self._listen(engine))}
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        finally:
            for one in both:
                one.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _listen(self, engine: _Engine) -> None:
        """Call an actor again and again; raises _Lost once it does not answer."""
        while True:
            try:
                await asyncio.wait_for(self._call(engine, engine.actor.ping.remote()), SILENT_SECONDS)
            except TimeoutError:
                raise _Lost(f"it answered no call for {SILENT_SECONDS:g} s") from None
            await asyncio.sleep(_PING_SECONDS)

    async def _ask(self, engine: _Engine) -> None:
        """Give an engine keys, and tell what it answers, until nothing is left."""
        while self._work.left:
            number = self._work.rule_for(engine.rule)
            if number is not None and number != engine.rule:
                await self._serve(engine, number)
            keys = [] if number is None else self._work.take(number, engine.held)
            if not keys:
                await asyncio.sleep(_WAIT_SECONDS)
                continue
            await self._give(engine, keys)
            while engine.held:
                await self._hear(engine)

    async def _serve(self, engine: _Engine, number: int) -> None:
        """Let an engine serve a rule, and see that it says of itself what the others say."""
        self._leave_rule(engine)
        try:
            served: Served = await self._call(engine, engine.actor.serve.remote(number))
        except EngineError as error:
            if self._identity is None:
                raise
            raise _Lost(str(error)) from error  # others serve it: the fault is of that node
        self._identity = self._identity or served.identity
        self._compare(engine, served.identity, self._identity)
        engine.rule = number
        self._work.rules[number].engines += 1
        nodes = sorted(other.node for other in self._staff if other.rule is not None)
        settings = {**served.settings, "replicas": len(nodes), "nodes": {name: nodes.count(name) for name in nodes}}
        self._events.put(replace(served, group=self._plan.groups[number], settings=settings))

    async def _hear(self, engine: _Engine) -> None:
        """Take answers, each as it comes, and give as many more, until the engine has nothing left."""
        assert engine.rule is not None
        heard = 0
        with self._explained(engine):
            async for coming in engine.actor.answers.options(num_returns="streaming").remote():
                prediction: Prediction = await coming
                self._refuse_another_prompt(engine, prediction)
                name = (prediction.key, prediction.repeat)
                del engine.held[name]
                self._work.done(engine.rule, name)
                self._events.put(prediction)
                engine.has_answered, self._in_a_row = True, 0
                heard += 1
                if keys := self._work.take(engine.rule, engine.held):
                    await self._give(engine, keys)
                while self._events.qsize() > _BACKLOG:
                    await asyncio.sleep(_WAIT_SECONDS)
        if not heard:
            raise _Lost("it ended without an answer to what it was given")

    async def _give(self, engine: _Engine, names: Sequence[Name]) -> None:
        """Give an engine more to ask; when this returns it has it, and will not end before it is answered."""
        engine.held.update(dict.fromkeys(names))
        await self._call(engine, engine.actor.give.remote(names))

    def _bury(self, engine: _Engine, why: str) -> None:
        """Put back what a lost engine held.

        Raises:
            EngineError: so many were lost without an answer between that the next would be lost as well.
        """
        self._losses.append(f"on {engine.node}: {why}")
        self._in_a_row += 1
        if engine.rule is not None:
            blameless = not cluster.alive(self._ray, engine.node_id)
            error = f"engine: {FATAL} engines were lost while this was all that they were asked; {why}"
            for key, repeat in self._work.lost(engine.rule, list(engine.held), blameless=blameless):
                samples = self._plan.samples_of(Cell(key.subset, key.length))
                [sample] = (one for one in samples if one.sample_id == key.sample_id)
                self._events.put(without_answer(Ask(sample, key.length, repeat), error, retryable=True))
        if self._in_a_row >= _HOPELESS * len(self._tending):
            raise EngineError(
                f"{self._in_a_row} engines were lost without an answer between, the last {self._losses[-1]}; the same "
                "command goes on from what is recorded."
            )

    def _dismiss(self, engine: _Engine) -> None:
        """End an actor, whatever it does."""
        self._leave_rule(engine)
        self._staff.discard(engine)
        if engine.actor is not None:
            self._ray.kill(engine.actor)

    def _leave_rule(self, engine: _Engine) -> None:
        if engine.rule is not None:
            self._work.rules[engine.rule].engines -= 1
            engine.rule = None

    async def _call(self, engine: _Engine, coming: Any) -> Any:
        """Wait for what an actor returns; errors as ``_explained`` has them."""
        with self._explained(engine):
            return await coming

    @contextmanager
    def _explained(self, engine: _Engine) -> Iterator[None]:
        """Turn Ray's errors into what they mean: a lost engine, or an error of evalkit's that names the node."""
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            yield
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, EvalkitError) and not isinstance(cause, EngineLost):
                raise type(cause)(f"On {engine.node}: {cause}") from error
            raise _Lost(f"{type(cause).__name__}: {first_line(cause)}") from error
        except RayActorError as error:
            if missing := re.search(r"(ModuleNotFound|Import|Attribute)Error: .*", str(error)):
                node = re.search(r"ip[:=] ?([\w.:]+)", str(error))
                raise BadInput(
                    f"{node[1] if node else 'A node'} cannot load this evalkit ({missing[0].rstrip('.')}); install "
                    "the same version on all machines."
                ) from error
            said = re.search(r"The actor (?:is dead|died) because .*?\.(?= |$)", " ".join(str(error).split()))
            raise _Lost(said[0].rstrip(".") if said else "its process or its node died") from error
        except RayError as error:
            raise _Lost(first_line(error)) from error

    def _compare(
        self, engine: _Engine, found: Mapping[str, Any], expected: dict[str, Any], *, complete: bool = False
    ) -> None:
        """Refuse an engine that differs from this process, or from those before it.

        Args:
            engine: the engine.
            found: what it says.
            expected: what is expected.
            complete: take from the first engine what is not in ``expected`` yet.

        Raises:
            BadInput: the first thing that differs, by name.
        """
        if complete:
            expected |= {name: value for name, value in found.items() if name not in expected}
        for name in sorted({*found, *expected}):
            if found.get(name) != expected.get(name):
                raise BadInput(
                    f"{engine.node} differs from this machine or from the other nodes in {name}: "
                    f"{found.get(name)} there, {expected.get(name)} here; make them equal, or leave it out."
                )

    def _refuse_another_prompt(self, engine: _Engine, prediction: Prediction) -> None:
        """Compare the prompt of a prediction with the one that was built here, where one was.

        Raises:
            EngineError: they differ.
        """
        built, expected = prediction.prompt_sha256, self._expected.get(prediction.key)
        if built and expected and built != expected:
            raise EngineError(
                f"{engine.node} built another prompt for {'/'.join(prediction.key)} than this machine, so its answer "
                "is not recorded; give all nodes the same data and the same software."
            )
