"""How checkpoints are saved and loaded: Hugging Face layout, whole or absent, sharded or not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from viceversa.config import Config
from viceversa.files import StorageError, storage_trouble
from viceversa.inference.sharding import is_sharded, load_sharded
from viceversa.inference.snapshot import trained
from viceversa.models.base import Adapter
from viceversa.models.loading import not_finite
from viceversa.models.lora import lora_weights, restore_lora, save_lora
from viceversa.publish.card import counts, make_card, write_card
from viceversa.rl.step import Step
from viceversa.training import checkpoint
from viceversa.types import Ranks

SCORER_WEIGHTS = "scorer.safetensors"  # of the slow average, beside the model in a checkpoint
KNOWN_REWARDS = "known_rewards_{}.safetensors"  # of a process


class SavingTrainer(Trainer):
    """A transformers Trainer that saves and loads an adapter's model and the step's scorer."""

    adapter: Adapter
    config: Config
    step: Step
    ranks: Ranks
    best_step: int | None = None
    """The step of a checkpoint that is kept whatever `train.save_total_limit` says."""
    _aside: str | None = None  # where a checkpoint is written before it is moved

    watched: bool = False
    """Whether the run is watched (watch.Watch), by the weights that it starts from."""
    _start_kept: bool = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._unwritten: list[str] = []  # why this process could not write a file of a checkpoint

    def keep_start(self) -> None:
        """Keep the weights that training starts from, once: after sharding, before a checkpoint."""
        if not self._start_kept:
            self._start_kept = True
            self.step.keep_start(self.watched)

    def stop_where_not_finite(self, found: list[str], where: str) -> None:
        """Raise FloatingPointError on every process for what one of them found."""
        every = self.ranks.gather(found)
        if every:
            why = "lower train.learning_rate"
            if not self.state.global_step:
                why = "no step was taken yet, so it comes from the model or its inputs"
            raise FloatingPointError(f"{every[0]} {where}; {why}")

    def check_weights(self) -> None:
        """Raise FloatingPointError where a trained weight is nan or infinite."""
        names = not_finite(trained(self.adapter.model))
        found = [f"{len(names)} weights are nan or infinite ({names[0]})"] if names else []
        step = self.state.global_step
        self.stop_where_not_finite(found, f"after step {step}: stopped before they were saved")

    def _get_output_dir(self, trial: Any) -> str:
        return self._aside or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write aside, seal and move into place: a checkpoint folder is whole or absent."""
        self.check_weights()
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
                checkpoint.keep_last(out, step, self.args.save_total_limit, self.best_step)
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
        every = self.ranks.gather(self._unwritten)
        if every:
            assert self._aside is not None
            if self.args.should_save:
                shutil.rmtree(self._aside, ignore_errors=True)
            raise StorageError(f"{name} could not be saved: {every[0]}")

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Save in Hugging Face layout, without prefix: plain `from_pretrained` loads the folder."""
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
            write_card(folder, self._card())  # over that of peft, which names the base's path

    def create_model_card(self, *args: Any, model_name: str | None = None, **kwargs: Any) -> None:
        """Write README.md into the run folder, for the Trainer's own `push_to_hub`."""
        if self.is_world_process_zero():
            write_card(Path(self.args.output_dir or "."), self._card())

    def _card(self) -> str:
        stream: Any = self.train_dataset
        form = "full" if self.adapter.lora is None else "lora"
        architecture = type(self.adapter.model).__name__
        found = counts(stream.sources)
        return make_card(self.config, self.state.global_step, found, form, architecture)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the slow average, too; sharded, without transformers' second copy of the model."""
        if self.step.scorer.changes:
            weights = self.step.scorer.state()
            with self._writing():
                if self.args.should_save:
                    save_file(weights, Path(output_dir) / SCORER_WEIGHTS)
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)  # type: ignore[union-attr]

    def _save_rng_state(self, output_dir: str) -> None:
        """Save what each process has of its own: random state, and the rewards that it knows.

        Without these, other rows would be scored together, which differ in the last bit.
        """
        super()._save_rng_state(output_dir)
        known = self.step.known
        if known is not None:
            save_file(known.state(), Path(output_dir) / self._of_process(KNOWN_REWARDS))

    def _of_process(self, name: str) -> str:
        return name.format(self.args.process_index)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.keep_start()
        self.load_weights(folder)
        if self.step.scorer.changes:
            self.step.scorer.load(lambda: load_file(folder / SCORER_WEIGHTS))
        saved = folder / self._of_process(KNOWN_REWARDS)
        if self.step.known is not None and saved.is_file():  # else of other processes
            self.step.known.load(load_file(saved))

    @property
    def best_checkpoint(self) -> Path | None:
        """Return the checkpoint of `best_step`, where there is one."""
        found = Path(self.args.output_dir or ".") / f"checkpoint-{self.best_step}"
        return found if self.best_step is not None and found.is_dir() else None

    def load_weights(self, folder: Path) -> None:
        """Give the model the weights of a checkpoint; every process calls this alike."""
        if is_sharded(self.adapter.model):
            load_sharded(self.adapter.model, lambda: self._read_weights(folder))
        elif self.adapter.lora is not None:
            restore_lora(self.adapter, folder)
        else:
            self.adapter.model.load_state_dict(self._read_weights(folder))

    def _read_weights(self, folder: Path) -> dict[str, Tensor]:
        """Read a checkpoint's weights by the names of the adapter's model: LoRA's, or all."""
        if self.adapter.lora is not None:
            return lora_weights(folder)
        model = self.adapter.model
        return type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
