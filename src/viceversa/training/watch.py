"""Watching a run: every few steps a few held-out inputs, judged by the model training began with.

The judge reads the starting weights, which are swapped in; nothing here changes what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from viceversa.measure.look import Look, Measures, look
from viceversa.measure.outputs import Written, decodings, in_parts, judged, measures
from viceversa.rl.rollout import rollout
from viceversa.training.parallel import first_decides
from viceversa.training.progress import Progress
from viceversa.training.recorder import Recorder
from viceversa.training.trainer import DualRewardTrainer
from viceversa.types import DIRECTIONS, Direction, Example, ScoredRollout

Inputs = Mapping[Direction, Sequence[Example]]
Part = tuple[Direction, int]


def watched(
    trainer: DualRewardTrainer, held_out: Inputs, run: Recorder, progress: Progress
) -> Watch | None:
    """Have the trainer watched; None where a run is too short for a look, or holds nothing out."""
    config = trainer.config
    inputs: Inputs = {d: found[: config.watch.inputs] for d, found in held_out.items() if found}
    if not config.watches or not inputs:
        return None
    words: dict[Direction, str] = {}

    def tell(found: Look, best: bool) -> None:
        """Keep each look, and say what has changed since the last one."""
        run.keep_look(found, best)
        for direction, verdict in found.verdicts.items():
            if words.get(direction, "unchanged") != verdict.word:
                bad = verdict.word in ("worse", "suspicious")
                (progress.warn if bad else progress.say)(f"step {found.step}: {verdict.why}")
            words[direction] = verdict.word

    best = first_decides(run.best_look)
    watch = Watch(trainer, inputs, tell, run.keep_looked_at, *best)
    trainer.add_callback(watch)
    return watch


class Watch(TrainerCallback):
    """Looks at held-out inputs, warns in words, and has the best checkpoint saved and kept.

    Best is the look with the most progress by the start's judgement (measure.look) of those in
    which nothing is suspicious. `best` is the step of an earlier look of the run that goes on, and
    `progress` its own. `tell(look, is_best)` is called on every process, `keep(step, scored)` on
    the first one with the first inputs' outputs, rated by the start.
    """

    def __init__(
        self,
        trainer: DualRewardTrainer,
        inputs: Inputs,
        tell: Callable[[Look, bool], None],
        keep: Callable[[int, ScoredRollout], None],
        best: int | None = None,
        progress: float = 0.0,
    ):
        self.trainer, self.inputs, self.tell, self.keep = trainer, inputs, tell, keep
        self.config = trainer.config
        self.progress = progress
        self.collapse = ""
        """How outputs collapsed, where that stopped the run."""
        self.start: Measures = {}
        trainer.watched, trainer.best_step = True, best
        updates = self.config.loss.updates_per_rollout  # only after the last can a run resume
        self.every = updates * math.ceil(self.config.watch.every / updates)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the start, which a run that goes on has kept beside its checkpoint's weights."""
        with self.trainer.step.started().restored():
            written = self._write()
        self.start = self._together({key: measures(w, w.own) for key, w in written.items()})
        if not state.global_step:  # a run that goes on has kept its start
            self._keep(0, written, {key: w.own for key, w in written.items()})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        found = look(state.global_step, self.start, self._measured(state.global_step))
        best = found.sound and found.progress > self.progress
        if best:
            self.progress, self.trainer.best_step = found.progress, found.step
            control.should_save = args.save_strategy != SaveStrategy.NO
        if found.collapse and self.config.watch.stop_on_collapse:
            self.collapse = found.collapse
            control.should_training_stop = True
        self.tell(found, best)

    def _measured(self, step: int) -> Measures:
        # one `read` for all of a process's share: sharded, every process has to call it alike
        written = self._write()
        with self.trainer.step.started().restored():
            by_start = self.trainer.read(lambda: {key: self._read(w) for key, w in written.items()})
        self._keep(step, written, by_start)
        return self._together({key: measures(w, by_start[key]) for key, w in written.items()})

    def _keep(
        self, step: int, written: Mapping[Part, Written], rewards: Mapping[Part, Any]
    ) -> None:
        """Hand over the first inputs' outputs, but for pictures that cannot be decoded."""
        for (direction, number), outputs in written.items():
            (part,) = outputs.parts
            if number == 0 and (direction == "i2t" or part.pixels is not None):
                monitor = self.trainer.step.monitor
                right = monitor and monitor(part)
                self.keep(step, ScoredRollout(part, rewards[direction, 0][0], right))

    def _write(self) -> dict[Part, Written]:
        """Have the weights that are live write outputs for this process's share of the inputs."""
        step, config, ranks = self.trainer.step, self.config, self.trainer.ranks
        shares: dict[Part, Sequence[Example]] = {}
        for direction, examples in self.inputs.items():
            parts = in_parts(examples)
            for part in range(self.trainer.args.process_index, len(parts), ranks.count):
                shares[direction, part] = parts[part]

        def write(direction: Direction, some: Sequence[Example]) -> Written:
            sampling = decodings(self.trainer.adapter, direction, config)["training"]

            def rows(n: int) -> Written:
                one = replace(sampling, batch_rows=n)
                return Written((rollout(self.trainer.adapter, some, one, config.seed),), ())

            unread = step.rollout_rows(rows, len(some) * sampling.group_size)
            return replace(unread, own=self._read(unread))

        return self.trainer.read(lambda: {key: write(key[0], some) for key, some in shares.items()})

    def _read(self, written: Written) -> tuple[Any, ...]:
        """Return the dual reward of each output by the weights that are live."""
        adapter, instruction = self.trainer.adapter, self.config.sampling.instruction
        most = sum(len(part.completions) for part in written.parts)
        return self.trainer.step.score_rows(
            lambda n: judged(adapter, written.parts, instruction, n), most
        )

    def _together(self, mine: dict[Part, dict[str, list[float]]]) -> Measures:
        """Join the measures of all processes, in the order of the inputs."""
        found: dict[Direction, dict[str, list[float]]] = {}
        for (direction, _), of_part in sorted(
            self.trainer.ranks.gather(list(mine.items())),
            key=lambda part: (DIRECTIONS.index(part[0][0]), part[0][1]),
        ):
            for name, values in of_part.items():
                found.setdefault(direction, {}).setdefault(name, []).extend(values)
        return found

    def end(self, say: Callable[[str], None]) -> None:
        """Go back to the best checkpoint where a collapse stopped the run, and say so."""
        if not self.collapse:
            return
        say(f"stopped after step {self.trainer.state.global_step}: {self.collapse}")
        best = self.trainer.best_checkpoint
        if best is None:
            say("no checkpoint was better than the start: lower train.learning_rate")
            return
        self.trainer.load_weights(best)
        say(f"back to {best.name}, the best by the base's judgement")
