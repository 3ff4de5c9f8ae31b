"""DualRewardTrainer: transformers' Trainer, whose batches are rollouts scored by the model itself.

One optimizer step: examples -> rollout -> rewards -> rows that teach -> loss. Everything up to the
loss happens in `get_batch_samples`, which the Trainer calls once an optimizer step; it returns one
list of TrainingRows for each micro-step.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object, save_fsdp_optimizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback

from viceversa import checkpoint, losses
from viceversa.advantages import (
    best_and_worst,
    centred,
    degenerate,
    group_advantages,
    likelihoods,
    widest,
)
from viceversa.config import Config
from viceversa.data import Stream
from viceversa.files import StorageError, storage_trouble
from viceversa.logprobs import Policy, completion_logprobs, evaluating, mean_logprobs, sum_logprobs
from viceversa.memory import RowBudget
from viceversa.models.base import Adapter
from viceversa.models.lora import lora_weights, restore_lora, save_lora
from viceversa.parallel import (
    combine_metrics,
    gathered,
    is_sharded,
    load_sharded,
    shard_with,
    whole_weights,
)
from viceversa.rewards import Rewarder, invalid_captions, ranking_accuracy, verified
from viceversa.rollout import rollout
from viceversa.snapshot import Snapshot, not_finite, trained
from viceversa.types import DIRECTIONS, Direction, Example, Rollout, ScoredRollout, TrainingRows

ALL_ROWS = 1 << 30
SCORER_WEIGHTS = "scorer.safetensors"  # of the slow average, beside the model in a checkpoint


class Totals(NamedTuple):
    """Of one direction in the whole optimizer step, what sums are divided by."""

    units: float
    """Pairs (SimPO, DPO), rows (RAFT) or tokens (GRPO)."""
    tokens: float


@dataclass(frozen=True)
class MicroStep:
    """The rows of one backward pass, and what their sums are divided by."""

    rows: list[TrainingRows]
    totals: dict[Direction, Totals]


class DualRewardTrainer(Trainer):
    """Trains `adapter.model` on its own rewards. `stream` gives the inputs (see data.Stream)."""

    def __init__(
        self,
        adapter: Adapter,
        config: Config,
        stream: Stream,
        args: TrainingArguments,
        on_rollout: Callable[[int, ScoredRollout], None] | None = None,
        **kwargs: Any,
    ):
        self.adapter, self.config = adapter, config
        policy = Policy(adapter)
        collate: Any = _only
        super().__init__(
            model=policy, args=args, train_dataset=stream, data_collator=collate, **kwargs
        )
        self.model_accepts_loss_kwargs = True  # the loss is already divided by its counts
        self.rewarder = Rewarder(adapter, config.reward, config.sampling.instruction, config.seed)
        self.reference: Snapshot | None = None
        group = config.sampling.group_size
        self.rollout_rows = RowBudget("sampling.batch_rows", config.sampling.batch_rows, group)
        self.backward_rows = RowBudget("loss.batch_rows", config.loss.batch_rows or ALL_ROWS)
        if args.world_size > 1:  # the others would wait for ever for one that starts again
            self.backward_rows.smallest = self.backward_rows.rows
        self._start_kept = False
        self.add_callback(_KeptWeights(self))
        self.remove_callback(PrinterCallback)  # `log` and the run's own display say it better
        self.on_rollout = on_rollout
        self.step_metrics: dict[str, float] = {}
        self._buffer: list[MicroStep] = []
        self._rollout_metrics: dict[str, float] = {}
        self._done: list[MicroStep] = []  # of this optimizer step
        self._aside: str | None = None  # where a checkpoint is written before it is moved
        self._unwritten: list[str] = []  # why its files cannot be, of this process
        self._not_finite: list[str] = []  # what is nan or infinite in this step, of this process

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            shard_with(self.accelerator, self.args, self.adapter.image_tokenizer)
            self.is_fsdp_enabled = True

    def keep_start(self) -> None:
        """Keep the weights that training starts from, once, for whoever reads them later: a frozen
        or average scorer, DPO, a KL term. Called after sharding and before a checkpoint is loaded.
        """
        if self._start_kept:
            return
        self._start_kept = True
        self.rewarder.start()
        if any(self.config.loss.needs_reference(d) for d in DIRECTIONS):
            self.reference = Snapshot(self.adapter.model)

    # inputs in the order of the stream: shuffling is the stream's
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        examples = [e for _ in range(num_batches) for e in next(epoch_iterator)]
        step = self.state.global_step
        if step % self.config.loss.updates_per_rollout == 0 or not self._buffer:
            self.step_metrics = {}
            self._buffer = self._make_micro_steps(examples, step, num_batches)
            self._rollout_metrics = self.step_metrics
        self.step_metrics = dict(self._rollout_metrics)
        self._done = []
        return list(self._buffer), 1

    def _make_micro_steps(
        self, examples: Sequence[Example], step: int, parts: int
    ) -> list[MicroStep]:
        by_direction: dict[Direction, list[Example]] = {}
        for example in examples:
            by_direction.setdefault(example.direction, []).append(example)
        rows = [self._rows(some, step) for some in by_direction.values()]
        totals: dict[Direction, Totals] = {r.direction: self._totals(r) for r in rows}
        split = [_split(r, parts, self.config.loss.unit) for r in rows]
        return [MicroStep(list(part), totals) for part in zip(*split, strict=True)]

    def probe(self) -> float:
        """Seconds of one optimizer step, by running the first one without taking it.

        In one backward pass, whatever `loss.batch_rows`: for a model that is sure to fit.
        """
        parts = self.args.gradient_accumulation_steps
        self.keep_start()
        watching, self.on_rollout = self.on_rollout, None
        began = time.perf_counter()
        examples = [e for i in range(parts) for e in self.train_dataset[i]]  # type: ignore[index]
        policy = Policy(self.adapter).train()
        for micro in self._make_micro_steps(examples, 0, parts):
            self.compute_loss(policy, micro).backward()
        policy.zero_grad()
        self.on_rollout = watching
        self._start_kept = False  # training may shard the model first
        return time.perf_counter() - began

    def _rows(self, examples: Sequence[Example], step: int) -> TrainingRows:
        """Rollout, rewards, and the rows that teach, for the examples of one direction."""
        began = time.perf_counter()
        sampled = self.reading_model(lambda: self._sample(examples, step))
        sampled_at = time.perf_counter()
        rewards = self.rewarder(sampled, step, self.reading_model)
        scored_at = time.perf_counter()
        for reward in rewards[~rewards.isfinite()].tolist()[:1]:
            self._not_finite.append(f"{sampled.direction} reward is {reward}")
        scored = ScoredRollout(sampled, rewards, _health(sampled, rewards))
        self._note(sampled.direction, scored.metrics)
        self._note(
            sampled.direction,
            {"sample_seconds": sampled_at - began, "score_seconds": scored_at - sampled_at},
        )
        if self.on_rollout is not None:
            self.on_rollout(step, scored)
        return self._freeze(self._select(scored))

    def _sample(self, examples: Sequence[Example], step: int) -> Rollout:
        def some_rows(n: int) -> Rollout:
            sampling = replace(self.config.sampling, batch_rows=n)
            return rollout(self.adapter, examples, sampling, self.config.seed, step)

        return self.rollout_rows(some_rows, len(examples) * self.config.sampling.group_size)

    def reading_model(self, work: Callable[[], Any]) -> Any:
        """Call `work`, which reads the model, in the precision that it is trained in.

        Sharded parameters are gathered once, and not once in every forward.
        """
        policy: Any = self.model_wrapped
        with self.accelerator.autocast():
            return gathered(policy, work)

    def _select(self, scored: ScoredRollout) -> TrainingRows:
        """The rows that the loss needs; where none teaches, two fillers of weight zero."""
        sampled, loss = scored.rollout, self.config.loss
        worth = self._worth(scored.rewards)
        wide = self._widest(sampled.direction, worth)
        far = degenerate(worth) & ~degenerate(scored.rewards)
        self._note(sampled.direction, {"groups_too_unlikely": float(far.sum())})
        if loss.name == "grpo":
            advantages = group_advantages(worth, self._spread(worth))
            # a KL term holds the rows of groups that are all alike, too
            kept = wide & (~degenerate(worth) | (loss.kl(sampled.direction) > 0))
            index = torch.arange(advantages.numel()).view_as(advantages)[kept].flatten()
        else:
            pairs = best_and_worst(scored.rewards, loss.min_gap, wide)
            self._note(sampled.direction, {"pairs": float(len(pairs.chosen))})
            index = pairs.chosen if loss.name == "raft" else pairs.rows()
            advantages = torch.ones_like(scored.rewards)
        filler, sharing = not len(index), loss.rows_of(sampled.group_size)
        if filler:
            index, sharing = torch.arange(2), 2
        device = sampled.completions.completion_ids.device
        prompts = index[::sharing].to(device) // sampled.group_size
        return TrainingRows(
            sampled.direction,
            sampled.prompts.select(prompts),
            sampled.completions.select(index.to(device)),
            advantages.flatten()[index].to(device),
            sampled.drawn_logprobs[index.to(device)],
            filler=filler,
        )

    def _worth(self, rewards: Tensor) -> Tensor:
        """What outputs are compared by: rewards, or by `loss.likelihood_power` likelihoods."""
        power, best = self.config.loss.likelihood_power, [float(rewards.max())]
        if not power:
            return rewards
        return likelihoods(rewards, power, max(self._of_all_processes(best)))

    def _widest(self, direction: Direction, worth: Tensor) -> Tensor:
        """[P] bool: the groups to learn from, by `loss.group_share` of all processes' groups."""
        gaps = worth.amax(-1) - worth.amin(-1)
        every = self._of_all_processes(gaps.tolist())
        wide = widest(gaps, every, self.config.loss.group_share)
        self._note(direction, {"groups_left_out": float((~wide).sum())})
        return wide

    def _of_all_processes(self, mine: list[Any]) -> list[Any]:
        return gather_object(mine) if self.args.world_size > 1 else mine

    def _spread(self, worth: Tensor) -> float | None:
        """By `loss.scale_rewards`: None for each group's own, or that of all processes' groups."""
        scale = self.config.loss.scale_rewards
        if scale != "batch":
            return None if scale == "group" else 1.0
        found = centred(worth)
        sums = torch.stack([found.square().sum(), torch.tensor(float(found.numel()))])
        squares, count = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()  # type: ignore[union-attr]
        return math.sqrt(squares / count)

    def _freeze(self, rows: TrainingRows) -> TrainingRows:
        """Log-probs that the loss holds fixed: at the sampling policy, under the reference."""
        loss = self.config.loss
        sampling = ref = None
        if loss.name == "grpo" and loss.updates_per_rollout > 1:
            sampling = self._score(rows)
        if loss.needs_reference(rows.direction):
            if self.reference is None:
                raise RuntimeError("the reference has no weights: call keep_start() first")
            with self.reference.restored():
                ref = self._score(rows)
        return replace(rows, sampling_logprobs=sampling, ref_logprobs=ref)

    def _score(self, rows: TrainingRows) -> Tensor:
        """[R, T] nats, without gradient, at the geometry of training."""

        def part(start: int, size: int) -> Tensor:
            some = _slice(rows, slice(start, min(start + size, len(rows))))
            return completion_logprobs(
                self.adapter,
                some.prompts,
                some.completions,
                self.config.sampling.temperature,
                self._guidance(rows.direction),
            )

        def some_rows(n: int) -> Tensor:
            with evaluating(self.adapter.model):
                return torch.cat([part(start, n) for start in range(0, len(rows), n)])

        return self.reading_model(lambda: self.rewarder.rows(some_rows, len(rows)))

    def _guidance(self, direction: Direction) -> float:
        guided = self.config.loss.logprob_policy == "guided" and direction == "t2i"
        return self.config.sampling.guidance if guided else 1.0

    def _totals(self, rows: TrainingRows) -> Totals:
        """Over all processes, without fillers."""
        mask = rows.completions.completion_mask
        units = mask.sum() if self.config.loss.name == "grpo" else len(rows) / self.config.loss.unit
        mine = torch.tensor([float(units), float(mask.sum())]) * (not rows.filler)
        total = self.accelerator.reduce(mine.to(self.args.device), "sum")
        # data-parallel wrappers average gradients over processes, and the loss is a sum over them
        found = total.clamp_min(1.0) / self.accelerator.num_processes  # type: ignore[union-attr]
        return Totals(float(found[0]), float(found[1]))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The weighted sum of both directions' losses over one micro-step."""
        micro: MicroStep = inputs
        with self.accelerator.autocast():  # accelerate opens it itself where nothing is sharded
            logprobs = model(
                [(r.prompts, r.completions) for r in micro.rows],
                self.config.sampling.temperature,
                self._guidance("t2i"),
            )
        total = torch.zeros((), device=logprobs[0].device)
        for rows, token_logprobs in zip(micro.rows, logprobs, strict=True):
            loss, metrics = self._weighted_loss(rows, token_logprobs, micro)
            metrics["loss"] = float(loss.detach())
            if not math.isfinite(metrics["loss"]):
                self._not_finite.append(f"{rows.direction} loss is {metrics['loss']}")
            self._note(rows.direction, metrics, add=True)
            self._note_gradient(rows.direction, loss)
            total = total + loss
        return total

    def _weighted_loss(
        self, rows: TrainingRows, token_logprobs: Tensor, micro: MicroStep
    ) -> tuple[Tensor, dict[str, float]]:
        """One direction's share of the loss, and its metrics: means over the optimizer step."""
        config, direction, mask = self.config.loss, rows.direction, rows.completions.completion_mask
        units, tokens = micro.totals[direction]
        loss, sums = self._direction_loss(rows, token_logprobs)
        loss, metrics = loss / units, {k: float(v) / units for k, v in sums.items()}
        if not rows.filler:
            # nats a token between what was sampled from and what is optimised
            gap = (rows.drawn_logprobs - token_logprobs.detach()) * mask
            metrics["sampling_gap"] = float(gap.sum()) / tokens
            if rows.ref_logprobs is not None and config.kl(direction) > 0:
                kl = losses.divergence(token_logprobs, rows.ref_logprobs, mask) / tokens
                loss, metrics["kl"] = loss + config.kl(direction) * kl, float(kl.detach())
        return config.weight(direction) * loss, metrics

    def _note_gradient(self, direction: Direction, loss: Tensor) -> None:
        """Now and then, the norm of one direction's gradient: the two can differ by far.

        Of the first micro-step, before clipping; in a single process, where it costs no exchange.
        """
        every = self.config.loss.direction_norms_every
        seen = f"{direction}/grad_norm" in self.step_metrics
        if not every or self.state.global_step % every or seen or self.args.world_size > 1:
            return
        parameters = [p for p in self.adapter.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        squares = [g.float().square().sum() for g in gradients if g is not None]
        self._note(direction, {"grad_norm": float(torch.stack(squares).sum().sqrt())})

    def _direction_loss(
        self, rows: TrainingRows, token_logprobs: Tensor
    ) -> tuple[Tensor, losses.Metrics]:
        """The summed loss of one direction and its summed metrics."""
        loss, mask = self.config.loss, rows.completions.completion_mask
        if rows.filler:
            return token_logprobs.sum() * 0.0, {}
        if loss.name == "grpo":
            sampling = rows.sampling_logprobs
            return losses.grpo(
                token_logprobs,
                token_logprobs.detach() if sampling is None else sampling,
                rows.advantages,
                mask,
                loss.clip_low,
                loss.clip_high,
            )
        if loss.name == "dpo":
            assert rows.ref_logprobs is not None
            sums, ref_sums = (sum_logprobs(x, mask) for x in (token_logprobs, rows.ref_logprobs))
            return losses.dpo(sums, ref_sums, loss.dpo_beta)
        means = mean_logprobs(token_logprobs, mask)
        if loss.name == "simpo":
            return losses.simpo(means, loss.beta, loss.gamma)
        return losses.raft(means)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-step, `loss.batch_rows` rows a backward pass."""
        began, budget, steps = time.perf_counter(), self.backward_rows, [inputs]

        def attempt(rows: int) -> Tensor:
            if rows < attempted:  # a failed pass left half a gradient: start the step again
                model.zero_grad()
                self.step_metrics = dict(self._rollout_metrics)
                steps[:] = [*self._done, inputs]
            parts = [part for micro in steps for part in self._parts(micro, rows)]
            backward: Any = super(DualRewardTrainer, self).training_step
            return torch.stack([backward(model, part, num_items_in_batch) for part in parts]).sum()

        most = max(len(r) for r in inputs.rows)
        attempted = min(budget.rows, most)
        loss = budget(attempt, most)
        self._done.append(inputs)
        self.step_metrics["backward_seconds"] = (
            self.step_metrics.get("backward_seconds", 0.0) + time.perf_counter() - began
        )
        return loss

    def _parts(self, micro: MicroStep, most: int) -> list[MicroStep]:
        """The same sums in backward passes of at most `most` rows of a direction.

        As many on every process: each one exchanges gradients, and a process that has fewer rows
        would leave the others waiting.
        """
        unit = self.config.loss.unit
        parts = max(_least_parts(rows, max(most, unit)) for rows in micro.rows)
        parts = max(self._of_all_processes([parts]))
        if parts == 1:
            return [micro]
        split = [_split(rows, parts, unit) for rows in micro.rows]
        return [replace(micro, rows=list(part)) for part in zip(*split, strict=True)]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Also the last look before the optimizer step: nothing of it may be nan or infinite."""
        norm: Any = super()._get_grad_norm(model, grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self.accelerator.scaler is None and not math.isfinite(norm):  # a scaler skips the step
            self._not_finite.append(f"gradient norm is {float(norm)}")
        self._stop_where_not_finite(
            self._not_finite, f"at step {self.state.global_step + 1}: stopped before its update"
        )
        return norm

    def _check_weights(self) -> None:
        """Raise FloatingPointError where a trained weight is nan or infinite."""
        names = not_finite(trained(self.adapter.model))
        found = [f"{len(names)} weights are nan or infinite ({names[0]})"] if names else []
        step = self.state.global_step
        self._stop_where_not_finite(found, f"after step {step}: stopped before they were saved")

    def _stop_where_not_finite(self, found: list[str], where: str) -> None:
        """Raise FloatingPointError on every process for what one of them found."""
        every = self._of_all_processes(found)
        if every:
            why = "lower train.learning_rate"
            if not self.state.global_step:
                why = "no step was taken yet, so it comes from the model or its inputs"
            raise FloatingPointError(f"{every[0]} {where}; {why}")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train to the end. Raises FloatingPointError where a number stops being finite."""
        done = super().train(*args, **kwargs)
        self._check_weights()
        return done

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # already on the device

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _note(self, direction: Direction, metrics: dict[str, float], add: bool = False) -> None:
        for name, value in metrics.items():
            key = f"{direction}/{name}"
            self.step_metrics[key] = value + (self.step_metrics.get(key, 0.0) if add else 0.0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            metrics = combine_metrics(self._of_all_processes([self.step_metrics]))
            logs = {**logs, **metrics, **_throughput(metrics)}
        super().log(logs, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        return self._aside or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written aside, sealed and moved into place: a checkpoint folder is whole or absent."""
        self._check_weights()
        out, step = Path(self._get_output_dir(trial)), self.state.global_step
        aside, name = out / ".partial", f"checkpoint-{step}"
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        self._aside = str(aside)
        with self._writing():
            super()._save_checkpoint(model, trial)
        self._stop_where_unwritten(name)  # once every process has written its random state
        with self._writing():
            if self.args.should_save:
                checkpoint.seal(aside / name)
                checkpoint.put(aside / name, out / name)
                checkpoint.keep_last(out, step, self.args.save_total_limit)
                shutil.rmtree(aside)
        self._stop_where_unwritten(name)
        self._aside = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Note why a file of a checkpoint cannot be written.

        Raised later, by all processes together: the others may wait for this one's tensors.
        """
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            why = self._aside and storage_trouble(error, Path(self._aside).parent)
            if not why:
                raise
            self._unwritten.append(why)

    def _stop_where_unwritten(self, name: str) -> None:
        """Raise StorageError on every process, and clean up, where one of them could not write."""
        every = self._of_all_processes(self._unwritten)
        if every:
            assert self._aside is not None
            if self.args.should_save:
                shutil.rmtree(self._aside, ignore_errors=True)
            raise StorageError(f"{name} could not be saved: {every[0]}")

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Hugging Face layout, no prefix: the folder loads with plain `from_pretrained`."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        whole = None  # where parameters are sharded, the Trainer hands over the gathered ones
        if state_dict is not None:
            whole = {name.removeprefix("model."): value for name, value in state_dict.items()}
        with self._writing():
            if self.adapter.lora is not None:
                save_lora(self.adapter, folder, whole)
            else:
                self.adapter.model.save_pretrained(folder, state_dict=whole)
            self.adapter.processor.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The slow average, too; sharded, without transformers' second copy of the model."""
        self._save_average(Path(output_dir))
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)  # type: ignore[union-attr]

    def _save_average(self, folder: Path) -> None:
        scorer = self.rewarder.scorer
        if scorer is None or self.rewarder.config.scorer != "average":
            return
        weights = scorer.weights
        if is_sharded(self.adapter.model):
            with scorer.restored():
                whole = whole_weights(self.adapter.model)
            weights = {name: whole[name] for name in weights if self.args.should_save}
        with self._writing():
            if self.args.should_save:
                save_file(weights, folder / SCORER_WEIGHTS)

    def _load_average(self, folder: Path) -> None:
        scorer = self.rewarder.scorer
        if scorer is None or self.rewarder.config.scorer != "average":
            return
        with scorer.restored():
            if is_sharded(self.adapter.model):
                load_sharded(self.adapter.model, lambda: load_file(folder / SCORER_WEIGHTS))
            else:
                weights = load_file(folder / SCORER_WEIGHTS)
                self.adapter.model.load_state_dict(weights, strict=False)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.keep_start()
        if is_sharded(self.adapter.model):
            load_sharded(self.adapter.model, lambda: self._read_weights(folder))
        elif self.adapter.lora is not None:
            restore_lora(self.adapter, folder)
        else:
            self.adapter.model.load_state_dict(self._read_weights(folder))
        self._load_average(folder)

    def _read_weights(self, folder: Path) -> dict[str, Tensor]:
        """A checkpoint's, by the names of the adapter's model: LoRA's, or all of them."""
        if self.adapter.lora is not None:
            return lora_weights(folder)
        model = self.adapter.model
        return type(model).from_pretrained(folder, dtype=model.dtype).state_dict()


class _KeptWeights(TrainerCallback):
    """Keeps the start before the first step, and moves the slow average after each."""

    def __init__(self, trainer: DualRewardTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.keep_start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.rewarder.after_step()


def _throughput(metrics: dict[str, float]) -> dict[str, float]:
    """Outputs a second, end to end: sampled, scored and learned from."""
    seconds = sum(v for k, v in metrics.items() if k.endswith("_seconds"))
    found = {}
    for name, direction in (("pictures", "t2i"), ("captions", "i2t")):
        samples = metrics.get(f"{direction}/samples")
        if samples and seconds:
            found[f"{name}_per_second"] = samples / seconds
    return found


def _only(batch: list[list[Example]]) -> list[Example]:
    """The stream's items are already what one process takes in one micro-step."""
    return batch[0]


def _split(rows: TrainingRows, parts: int, unit: int) -> list[TrainingRows]:
    """Nearly equal runs of rows: of whole prompts if there are enough, else of whole units.

    A part that would be empty takes the first unit with weight zero, so that every part
    runs both heads on every process.
    """
    unit = rows.sharing if len(rows.prompts) >= parts else unit
    units = len(rows) // unit
    bounds = [unit * (units * k // parts) for k in range(parts + 1)]
    found = []
    for first, last in itertools.pairwise(bounds):
        part = _slice(rows, slice(first, last) if last > first else slice(0, unit))
        found.append(part if last > first else replace(part, filler=True))
    return found


def _least_parts(rows: TrainingRows, most: int) -> int:
    """Of at most `most` rows each; of whole prompts where one prompt's rows are no more."""
    whole = most - most % rows.sharing
    return math.ceil(len(rows) / (whole or most))


def _slice(rows: TrainingRows, part: slice) -> TrainingRows:
    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[part]

    n = rows.sharing
    if part.start % n or part.stop % n:
        prompts = rows.prompts.repeat_interleave(n).select(part)
    else:
        prompts = rows.prompts.select(slice(part.start // n, part.stop // n))
    return TrainingRows(
        rows.direction,
        prompts,
        rows.completions.select(part),
        rows.advantages[part],
        rows.drawn_logprobs[part],
        cut(rows.sampling_logprobs),
        cut(rows.ref_logprobs),
        rows.filler,
    )


def _health(sampled: Rollout, rewards: Tensor) -> dict[str, float]:
    """What to watch: rewards, groups that teach nothing, bad captions, the monitor."""
    metrics = {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(-1, correction=0).mean()),
        "reward_gap": float((rewards.amax(-1) - rewards.amin(-1)).mean()),
        "groups": float(len(rewards)),
        "degenerate_groups": float(degenerate(rewards).sum()),
        "tokens": float(sampled.completions.completion_mask.sum()),
        "samples": float(len(sampled.completions)),
    }
    if sampled.truncated is not None:
        metrics["truncated"] = float(sampled.truncated.sum())
        metrics["invalid"] = float(invalid_captions(sampled).sum())
    right = verified(sampled)  # labels are for this monitor alone
    if right is not None:
        metrics["verified"] = float(right.float().mean())
        rank, pairs = ranking_accuracy(rewards, right)
        metrics["ranking_pairs"] = float(pairs)
        if not math.isnan(rank):
            metrics["ranking"] = rank
    return metrics
