"""DualRewardTrainer: the glue between the step and transformers' Trainer.

The Trainer calls `get_batch_samples` once an optimizer step: there the step samples, scores and
selects. It then calls `training_step` for each micro-step, which computes the loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from viceversa.config import Config
from viceversa.data.sources import load_questions, load_sources
from viceversa.data.stream import Stream
from viceversa.inference.logprobs import Policy
from viceversa.inference.memory import RowBudget
from viceversa.inference.sharding import gathered
from viceversa.models.base import Adapter
from viceversa.rl.metrics import Max, Mean, Metrics, merged, of_direction, values
from viceversa.rl.rows import MicroStep, parts_of
from viceversa.rl.step import Step
from viceversa.training.arguments import training_arguments
from viceversa.training.parallel import Processes, shard_with
from viceversa.training.replay import Replay
from viceversa.training.saving import SavingTrainer
from viceversa.types import DIRECTIONS, Direction, Monitor, Reward, ScoredRollout

ALL_ROWS = 1 << 30


class DualRewardTrainer(SavingTrainer):
    """Trains `adapter.model` on its own rewards: a transformers Trainer, callbacks and all.

    `stream` gives the inputs (data.sources.Stream), `args` says how to train; left out, both are
    made from `config`. `rewards`, `monitor` and `image_ids` are the step's. `on_rollout(step,
    scored)` sees every rollout. More arguments go to the Trainer. Raises ConfigError for options
    and inputs that cannot be.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: Config,
        stream: Stream | None = None,
        args: TrainingArguments | None = None,
        on_rollout: Callable[[int, ScoredRollout], None] | None = None,
        rewards: Mapping[str, Reward] | None = None,
        monitor: Monitor | None = None,
        image_ids: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ):
        self.adapter, self.config, self.on_rollout = adapter, config, on_rollout
        args = args or training_arguments(config)
        stream = stream or stream_of(adapter, config, args)
        collate: Any = itemgetter(0)  # one item of the stream is a whole micro-step
        super().__init__(
            model=Policy(adapter), args=args, train_dataset=stream, data_collator=collate, **kwargs
        )
        self.model_accepts_loss_kwargs = True  # the loss is already divided by its counts
        self.ranks = Processes(self.accelerator)
        asked = stream.questions
        replay = Replay(adapter, config.replay, asked, config.seed) if asked else None
        self.step = Step(
            adapter, config, rewards, monitor, image_ids, self.read, self.ranks, replay
        )
        self.backward_rows = RowBudget("loss.batch_rows", config.loss.batch_rows or ALL_ROWS)
        if args.world_size > 1:  # the others would wait for ever for one that starts again
            self.backward_rows.smallest = self.backward_rows.rows
        self.add_callback(_KeptWeights(self))
        self.remove_callback(PrinterCallback)  # `log` and the run's own display say it better
        self._rollout: tuple[list[MicroStep], Metrics] = ([], {})
        self._done: list[MicroStep] = []  # of this optimizer step
        self._learned: list[Metrics] = []  # of each backward pass of this optimizer step
        self._backward_seconds = 0.0
        self._not_finite: list[str] = []  # what is nan or infinite in this step, of this process

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            shard_with(self.accelerator, self.args, self.adapter.image_tokenizer)
            self.is_fsdp_enabled = True

    def read(self, work: Callable[[], Any]) -> Any:
        """Call `work`, which reads the model, in the precision that it is trained in.

        Sharded parameters are gathered once, and not once in every forward.
        """
        policy: Any = self.model_wrapped
        with self.accelerator.autocast():
            return gathered(policy, work)

    # inputs in the order of the stream: shuffling is the stream's
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        examples = [e for _ in range(num_batches) for e in next(epoch_iterator)]
        step = self.state.global_step
        if step % self.config.loss.updates_per_rollout == 0 or not self._rollout[0]:
            watch = partial(self.on_rollout, step) if self.on_rollout else None
            self._rollout = self.step.rows(examples, step, num_batches, watch)
            means = {f"{d} reward": self._rollout[1].get(f"{d}/reward_mean") for d in DIRECTIONS}
            self._note_not_finite({name: mean.value for name, mean in means.items() if mean})
        self._done, self._learned, self._backward_seconds = [], [], 0.0
        return list(self._rollout[0]), 1

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Take one micro-step, `loss.batch_rows` rows a backward pass."""
        began, budget, steps = time.perf_counter(), self.backward_rows, [inputs]
        unit = self.step.algorithm.unit

        def attempt(rows: int) -> Tensor:
            if rows < attempted:  # a failed pass left half a gradient: start the step again
                model.zero_grad()
                self._learned = []
                steps[:] = [*self._done, inputs]
            backward: Any = super(DualRewardTrainer, self).training_step
            for micro in steps:
                parts = parts_of(micro, rows, unit, self.ranks)
                losses = [backward(model, part, num_items_in_batch) for part in parts]
            return torch.stack(losses).sum()  # of `inputs`, the last: the others were returned

        most = max(len(r) for r in inputs.rows)
        attempted = min(budget.rows, most)
        loss = budget(attempt, most)
        self._done.append(inputs)
        self._backward_seconds += time.perf_counter() - began
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Compute the sum of both directions' weighted losses over one backward pass."""
        micro: MicroStep = inputs
        with self.accelerator.autocast():  # accelerate opens it itself where nothing is sharded
            logprobs = model(lambda: self.step.logprobs(micro))
        losses, metrics = self.step.losses(micro, logprobs)
        self._note_not_finite({f"{d} loss": float(loss.detach()) for d, loss in losses.items()})
        norms = [self._gradient_norm(direction, loss) for direction, loss in losses.items()]
        self._learned += [metrics, *norms]
        return torch.stack(list(losses.values())).sum()

    def _gradient_norm(self, direction: str, loss: Tensor) -> Metrics:
        """Now and then, the norm of one direction's gradient: the two can differ by far.

        Of the first micro-step, before clipping; in a single process, where it costs no exchange.
        """
        every = self.config.loss.direction_norms_every
        if not every or self.state.global_step % every or self._learned or self.ranks.count > 1:
            return {}
        parameters = [p for p in self.adapter.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        squares = [g.float().square().sum() for g in gradients if g is not None]
        norm = float(torch.stack(squares).sum().sqrt())
        return of_direction(direction, {"grad_norm": Mean(norm, 1)})

    def _note_not_finite(self, numbers: dict[str, float]) -> None:
        self._not_finite += [f"{k} is {v}" for k, v in numbers.items() if not math.isfinite(v)]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Also take the last look before the update: nothing of it may be nan or infinite."""
        norm: Any = super()._get_grad_norm(model, grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self.accelerator.scaler is None:  # a scaler skips the step
            self._note_not_finite({"gradient norm": float(norm)})
        self.stop_where_not_finite(
            self._not_finite, f"at step {self.state.global_step + 1}: stopped before its update"
        )
        return norm

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train to the end. Raises FloatingPointError where a number stops being finite."""
        done = super().train(*args, **kwargs)
        self.check_weights()
        return done

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # already on the device

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def step_metrics(self) -> dict[str, float]:
        """Return the metrics of this optimizer step, of all processes."""
        own = [self._rollout[1], *self._learned, {"backward_seconds": Max(self._backward_seconds)}]
        return values(merged(self.ranks.gather([merged(own)])))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            metrics = self.step_metrics()
            logs = {**logs, **metrics, **_throughput(metrics)}
        super().log(logs, start_time)


def stream_of(
    adapter: Adapter,
    config: Config,
    args: TrainingArguments,
    console: Console | None = None,
    given: Mapping[Direction, Any] | None = None,
) -> Stream:
    """Read the inputs (data.sources.load_sources) and put them in training order.

    Raises ConfigError for inputs that cannot be used or divided among the processes.
    """
    limits = adapter.text_limits(config.sampling.instruction)
    with args.main_process_first(local=True, desc="reading the inputs"):  # verdicts are cached
        told = console if args.process_index == 0 else None
        size, draws = adapter.image_size, adapter.draws_pixels
        sources = load_sources(config, size, limits, told, draws, given)
        questions = load_questions(config, limits)
    shares = args.gradient_accumulation_steps * args.world_size
    return Stream(config, sources, shares, questions)


class _KeptWeights(TrainerCallback):
    """Keeps the start before the first step, and moves the slow average after each."""

    def __init__(self, trainer: DualRewardTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.keep_start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.step.scorer.after_step()


def _throughput(metrics: dict[str, float]) -> dict[str, float]:
    """Outputs a second, end to end: sampled, scored and learned from."""
    seconds = sum(v for k, v in metrics.items() if k.endswith("_seconds"))
    found = {}
    for name, direction in (("pictures", "t2i"), ("captions", "i2t")):
        samples = metrics.get(f"{direction}/samples")
        if samples and seconds:
            found[f"{name}_per_second"] = samples / seconds
    return found
