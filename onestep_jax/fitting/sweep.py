"""The work of a fit: the tasks that the engine takes, and what becomes of the outcomes that it hands back."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from onestep_jax.devices.placement import PROGRAMS
from onestep_jax.errors import UserError
from onestep_jax.fitting.engine import Engine
from onestep_jax.fitting.group_results import GivenTexts, text_results
from onestep_jax.fitting.plan import FitPlan
from onestep_jax.fitting.progress import Meter, Progress
from onestep_jax.fitting.recorder import Recorder
from onestep_jax.fitting.slot_ladder import SlotLadder, shared_lengths
from onestep_jax.fitting.slots import Frozen
from onestep_jax.fitting.snapshot import repadded
from onestep_jax.fitting.tasks import Outcome, Task
from onestep_jax.fitting.trials import Trials
from onestep_jax.fitting.work_queue import WorkBlock, WorkQueue, claim_order, cut
from onestep_jax.model.cost import step_flops
from onestep_jax.model.decoder import Network
from onestep_jax.prototokens.prefixes import prefix_of, prefix_rows
from onestep_jax.prototokens.schemes import draw
from onestep_jax.tokens import padded_lengths

AHEAD = 256  # texts whose nats are counted together with those of a group that is about to be fitted


class Sweep:
    """The `Work` of the engine, put together from parts that each know one thing.

    `WorkQueue` knows which task is next, `Trials` which seed of a group, `SlotLadder` how many slots there are,
    `GivenTexts` what the texts are, `Recorder` where results go, and `Meter` how far the fit is.

    Args:
      plan: what to fit.
      recorder: where results go, and what earlier sessions left.
      progress: called after each chunk.
    """

    def __init__(self, plan: FitPlan, recorder: Recorder, progress: Callable[[Progress], None] | None):
        self.plan, self.recorder = plan, recorder
        self.trials = Trials(
            plan.tokens,
            plan.ids,
            plan.scheme,
            plan.prefixes,
            first_seed=plan.first_seed,
            seeds=plan.seeds,
            steps=plan.steps,
            redraw=self._redraw,
            context=plan.context,
        )
        self.texts = GivenTexts(plan.model, plan.tokens, plan.ids, plan.prefix, plan.room)
        self.meter = Meter(len(plan.ids), plan.scheme.group, progress, recorder.recorded)
        self.ladder = SlotLadder(plan.ladder, plan.placement.devices[0].platform)
        self.queue = WorkQueue([], self._tasks_of)
        self.positions = 0
        self._recorded = {group for group in plan.groups if all(plan.ids[i] in recorder.recorded for i in group)}

    def optimise(self) -> None:
        """Run the engine over the padded lengths, longest first.

        Raises:
          Interrupted: if told to stop; the state is saved.
          UserError: if the devices have no memory for even one slot each.
        """
        plan, share = self.plan, self.recorder.share
        frozen = self._frozen()
        padded = self._padded()
        for positions, blocks in cut(plan.groups, padded, share.block or len(plan.groups)).items():
            self.queue = WorkQueue(claim_order(blocks, share.process, share.processes), self._tasks_of)
            left = sum(group not in self._recorded for block in blocks for group in block.groups)
            self.ladder.begin(-(-left // share.processes), self._flops(positions))
            self.positions = positions
            # More than one engine: fewer slots at the end, or for lack of memory. And one ends with tasks waiting if
            # every group in flight came to the end of a seed as the state was saved; their next seeds wait then.
            while self.queue.claim_until_ready():
                self._run_engine(frozen, positions)
        self._flush()
        self.recorder.finish()

    def _padded(self) -> list[int]:
        """Padded length of each group of the fit, recorded ones too, so that every session has the same."""
        plan, boundary = self.plan, self.plan.model.config.boundary
        before = plan.scheme.extra + prefix_rows([plan.prefix(i) for i in range(len(plan.ids))])
        longest = [max(len(plan.tokens[i]) for i in group) for group in plan.groups]
        padded = padded_lengths(longest, boundary, before, min(plan.room, plan.model.config.context - before))
        platform = plan.placement.devices[0].platform
        return shared_lengths(padded, self._flops, platform, None if boundary is None else boundary - before)

    def _flops(self, positions: int) -> float:
        """Operations of a step of a group whose texts are padded to so many tokens."""
        return self.plan.scheme.group * step_flops(self.plan.model.config, positions + self.plan.scheme.extra)

    def _frozen(self) -> Frozen:
        """The weights, and keys and values of the prefix that all texts have, on the devices."""
        plan, model = self.plan, self.plan.model
        params = plan.placement.place(model.params, model.config.kv_heads)
        prefix = prefix_of(plan.scheme)
        if not len(prefix):
            return Frozen(params)
        return Frozen(params, _past_program(model.network, plan.placement.whole)(params, prefix))

    def _run_engine(self, frozen: Frozen, positions: int) -> None:
        """Run an engine until it ends, or until fewer slots serve better; tasks in flight then wait again."""
        plan, width = self.plan, self.ladder.width
        engine = Engine(
            plan.problem,
            frozen,
            plan.placement,
            positions=positions,
            prefix_rows=prefix_rows(plan.prefixes),
            context={name: rows.shape[1:] for name, rows in plan.context.items()},
            slots=width,
            chunk=plan.chunk,
        )
        try:
            verdict = engine.run(self)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            engine.abandon(self)
            where = f"{width} slots of {positions} tokens"
            if not self.ladder.leave():
                cure = "give --remat on, a smaller --length or --dtype bfloat16"
                raise UserError(f"the device's memory does not hold {where}; {cure}") from error
            told = f"the device's memory does not hold {where}; continuing with {self.ladder.width}"
            warnings.warn(told, stacklevel=2)
            return
        if verdict == "stop":
            self.recorder.stop()

    def _tasks_of(self, block: WorkBlock) -> list[Task]:
        """The tasks of a block, in flight or new; none if all of it is recorded or another process has it."""
        groups = [group for group in block.groups if group not in self._recorded]
        if not groups or not self.recorder.claim(block.number):
            return []
        tasks, outcomes = self.recorder.in_flight(groups, self.plan.problem, self.trials.task)
        for outcome in outcomes:
            self.trials.add(repadded(outcome, self.positions))
        tasks = [repadded(task, self.positions) for task in tasks]
        for task in tasks:
            task.budget = self.trials.budget(task.texts)  # what earlier seeds have spent is known only now
        resumed = {task.texts for task in tasks}
        return [*tasks, *(self.trials.next_task(group) for group in groups if group not in resumed)]

    def _redraw(self, ids_G4: np.ndarray) -> dict[str, np.ndarray]:
        problem = self.plan.problem
        leaves = draw(problem.scheme, jax.numpy.asarray(ids_G4), problem.network.embed_width, problem.scale)
        return jax.device_get(leaves)

    def _flush(self) -> None:
        self.meter.note(self.recorder.flush())

    # --- what the engine asks, see `tasks.Work` ---

    def take(self) -> Task | None:
        task = self.queue.take()
        if task is None:
            return None
        upcoming = self.queue.upcoming(AHEAD // self.plan.scheme.group)
        try:
            self.texts.count_nats(task.texts, (other.texts for other in upcoming))
        except (
            BaseException
        ):  # the devices have no memory for it beside the slots: with fewer of them it is tried again
            self.queue.give_back(task)
            raise
        return task

    def give_back(self, task: Task) -> None:
        self.queue.give_back(task)

    def finished(self, outcome: Outcome) -> None:
        group = outcome.task.texts
        self.ladder.note_spent(outcome.steps)
        self.trials.add(outcome)
        if not self.trials.ended(group):
            self.queue.add(self.trials.next_task(group))
            return
        texts, outcomes = self.texts.pop(group), self.trials.pop(group)
        results = list(text_results(texts, outcomes, self.plan.scheme.shared, self.plan.problem.margin))
        self.meter.note({result.text_id: result.accuracy for result in results})
        self.recorder.keep(results)

    def tick(self, running: int, steps: int) -> str:
        self.meter.report(running, steps)
        if self.recorder.flush_is_due():
            self._flush()
        if self.recorder.stop_is_asked():
            return "stop"
        if self.queue.exhausted and self.ladder.step_down(running):
            return "narrow"
        return "save" if self.recorder.save_is_due() else "go"

    def save(self, tasks: list[Task]) -> None:
        """Record what is ready, then the slots in flight and the seeds already tried of unfinished groups."""
        self._flush()
        self.recorder.save([*tasks, *self.queue.resumable], self.trials.outcomes)


@functools.lru_cache(PROGRAMS)
def _past_program(network: Network, layout: NamedSharding) -> Callable[..., Any]:
    """The program of `Network.past`, one for equal networks: jit takes the method of each for another function."""
    return jax.jit(network.past, out_shardings=layout)
