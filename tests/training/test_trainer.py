"""The training step: what a knob may not change, what must stop, what must be counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import JanusForConditionalGeneration

from builders import random_janus
from small_runs import check_same_update, config, trained, trainer, weights
from viceversa.config import LoraConfig, SamplingConfig, check
from viceversa.data.sources import load_sources
from viceversa.inference.logprobs import Policy, completion_logprobs, evaluating
from viceversa.inference.snapshot import Scorer
from viceversa.models.lora import add_lora
from viceversa.rl.rewards import (
    DualReward,
    SelfCertainty,
    dual_reward,
    invalid_captions,
    penalise_invalid,
)
from viceversa.rl.rollout import input_prompts, rollout
from viceversa.rl.rows import MicroStep
from viceversa.rl.selection import wins_by_input
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import draw_specs
from viceversa.training.arguments import training_arguments
from viceversa.types import DIRECTIONS, Direction, Example, Rollout


@pytest.mark.parametrize("parts", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("loss", ["simpo", "grpo", "dpo", "raft"])
def test_micro_steps_do_not_change_the_update(tmp_path: Path, loss: str, parts: int) -> None:
    """1 x 8, 2 x 4 and 4 x 2 inputs: one SGD step from the same start lands on the same weights.

    Without clipping, so that a gradient of the wrong scale shows.
    """
    whole, _ = trained(config(tmp_path / "1", f"loss.name={loss}"))
    split, _ = trained(
        config(
            tmp_path / str(parts),
            f"loss.name={loss}",
            f"train.gradient_accumulation_steps={parts}",
            "sampling.batch_rows=5",
            "reward.batch_rows=3",
        )
    )
    check_same_update(split, whole, weights(random_janus()))


def test_only_the_language_model_and_its_heads_move(tmp_path: Path) -> None:
    before = weights(random_janus())
    after, _ = trained(config(tmp_path))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    frozen = ("model.vision_model", "model.aligner", "model.vqmodel")
    assert not any(name.startswith(frozen) for name in moved)
    for part in ("lm_head", "model.language_model", "model.generation_head"):
        assert any(name.startswith(part) for name in moved), part


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Four AdamW steps, or two and then two from the checkpoint: the same weights.

    The same sums differ in the last bit with where a buffer lies in memory, and Adam makes whole
    steps (1e-4) of little: small steps keep the drawn tokens the same, and a lost optimizer state
    would show as a tenth of a step or more.
    """
    adam = ["steps=4", "train.optim=adamw_torch", "train.learning_rate=1e-4", "train.save_steps=2"]
    adam += ["train.adam_epsilon=1e-3"]
    straight, _ = trained(config(tmp_path / "a", *adam))
    settings = config(tmp_path / "b", *adam)

    class StopError(Exception):
        pass

    def stop_after_two(step: int, scored: Any) -> None:
        if step == 2:
            raise StopError

    with pytest.raises(StopError):
        trained(settings, on_rollout=stop_after_two)
    again = trainer(settings)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    for name, value in weights(again.adapter).items():
        torch.testing.assert_close(
            value, straight[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_checkpoint_loads_with_plain_from_pretrained(tmp_path: Path) -> None:
    _, one = trained(config(tmp_path, "train.save_steps=1"))
    folder = tmp_path / "checkpoint-1"
    assert not list(tmp_path.glob("*partial*"))
    loaded = JanusForConditionalGeneration.from_pretrained(folder).eval()
    adapter = random_janus()
    examples = [Example(0, "t2i", text="a red circle")]
    prompts = input_prompts(adapter, examples, "")
    ids = torch.arange(adapter.image_tokens).unsqueeze(0)
    want = completion_logprobs(one.adapter, prompts, adapter.image_completion(ids))
    adapter.model = loaded
    got = completion_logprobs(adapter, prompts, adapter.image_completion(ids))
    torch.testing.assert_close(got, want)


def test_non_finite_loss_stops_before_the_step(tmp_path: Path) -> None:
    one = trainer(config(tmp_path))

    def poison(step: int, scored: Any) -> None:
        if scored.rollout.direction == "i2t":  # the last one: nothing is scored any more
            with torch.no_grad():
                one.adapter.model.model.generation_head.vision_head.bias[0] = float("nan")

    one.on_rollout = poison
    with pytest.raises(FloatingPointError, match=r"^t2i loss is nan at step 1: stopped before its"):
        one.train()
    assert torch.isfinite(one.adapter.model.lm_head.weight).all()
    assert one.state.global_step == 0


def test_non_finite_reward_stops_before_the_step(tmp_path: Path) -> None:
    """A loss of pairs is finite where the best reward is nan."""
    one = trainer(config(tmp_path, "steps=3", "loss.name=simpo"))
    (honest,) = one.step.rewards

    def poisoned(rollout: Rollout) -> Tensor:
        rewards = honest(rollout)
        if rollout.step == 1 and rollout.direction == "i2t":
            rewards[0, 1] = float("nan")
        return rewards

    one.step.rewards = [poisoned]
    with pytest.raises(FloatingPointError, match=r"^i2t reward is nan at step 2: stopped before"):
        one.train()
    assert one.state.global_step == 1


@pytest.mark.parametrize("clip", ["0", "1"])
def test_non_finite_gradient_stops_before_the_step(tmp_path: Path, clip: str) -> None:
    """The loss is finite, its gradient is not."""
    one = trainer(config(tmp_path, f"train.max_grad_norm={clip}"))
    before = weights(one.adapter)
    one.adapter.model.lm_head.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(FloatingPointError, match=r"gradient norm is (nan|inf) at step 1"):
        one.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(one.adapter).items())


@pytest.mark.parametrize("save", ["steps", "no"])
def test_non_finite_weights_are_never_saved_nor_the_end_of_a_run(tmp_path: Path, save: str) -> None:
    """The last optimizer step itself overflows: everything before it was finite."""
    one = trainer(config(tmp_path, "train.learning_rate=1e38", f"train.save_strategy={save}"))
    one.adapter.model.lm_head.weight.register_hook(lambda grad: grad * 1e6)
    with pytest.raises(FloatingPointError, match=r"after step 1: stopped before"):
        one.train()
    assert not list(tmp_path.glob("*checkpoint*"))


def test_degenerate_groups_are_counted_and_teach_nothing(tmp_path: Path) -> None:
    for loss in ("simpo", "grpo"):
        settings = config(tmp_path / loss, f"loss.name={loss}")
        one = trainer(settings)
        before = weights(one.adapter)
        one.step.rewards = [constant]
        one.train()
        row = next(r for r in one.state.log_history if "loss" in r)
        assert row["t2i/degenerate_groups"] == 4
        assert row["i2t/degenerate_groups"] == 4
        assert row["loss"] == 0
        for name, value in weights(one.adapter).items():
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("loss", "power"), [("simpo", 0.0), ("grpo", 0.0), ("grpo", 3.0)])
def test_groups_left_out_teach_nothing(tmp_path: Path, loss: str, power: float) -> None:
    """The rows that a share of the groups gives are those of its groups, and of no other."""
    settings = config(tmp_path, f"loss.name={loss}", "loss.group_share=0.5", "schedule=t2i")
    settings.reward.likelihood_power = power
    one = trainer(settings)
    stream: Any = one.train_dataset
    examples = stream[0]
    ((micro,), metrics) = one.step.rows(examples, 0, 1)
    (rows,) = micro.rows
    group = settings.sampling.group_size
    assert len(rows) == (2 * group if loss == "grpo" else 4)
    assert metrics["t2i/groups_left_out"].value == 2
    rewards = one.step.rewards[0](one.step.sample(examples, 0))
    worth = (power * rewards).exp() if power else rewards
    wide = (worth.amax(-1) - worth.amin(-1)).topk(2).indices.tolist()
    kept = [e for i, e in enumerate(examples) if i in wide]
    drawn = one.step.sample(kept, 0).completions.completion_ids.tolist()
    assert all(row in drawn for row in rows.completions.completion_ids.tolist())


def constant(rollout: Rollout) -> Tensor:
    return torch.ones(len(rollout.examples), rollout.group_size)


@pytest.mark.parametrize("schedule", ["joint", "alternate", "t2i", "i2t"])
def test_schedules_train_their_directions(tmp_path: Path, schedule: str) -> None:
    seen: list[tuple[int, str]] = []
    settings = config(tmp_path, f"schedule={schedule}", "steps=2")
    trained(settings, on_rollout=lambda step, s: seen.append((step, s.rollout.direction)))
    expected = {
        "joint": [(0, "t2i"), (0, "i2t"), (1, "t2i"), (1, "i2t")],
        "alternate": [(0, "t2i"), (1, "i2t")],
        "t2i": [(0, "t2i"), (1, "t2i")],
        "i2t": [(0, "i2t"), (1, "i2t")],
    }
    assert seen == expected[schedule]


def test_several_updates_reuse_one_rollout(tmp_path: Path) -> None:
    """GRPO with 2 updates a rollout: sampled once; the second loss, by hand, from the log-probs
    that the weights had at the first, clipped."""
    seen: list[int] = []
    options = [
        "loss.updates_per_rollout=2",
        "train.learning_rate=0.1",
        "loss.t2i_kl=0.1",
        "loss.i2t_kl=0.2",
    ]
    options += ["loss.clip_low=0.001", "loss.clip_high=0.002"]
    settings = config(tmp_path, "steps=4", *options)
    one = trainer(settings, on_rollout=lambda step, s: seen.append(step))
    honest = one.compute_loss
    updates: list[tuple[MicroStep, dict[str, Tensor], float]] = []

    def spy(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():  # under the weights of this update, before it
            now = {
                r.direction: completion_logprobs(
                    one.adapter,
                    r.prompts.repeat_interleave(len(r) // len(r.prompts)),
                    r.completions,
                )
                for r in inputs.rows
            }
        loss = honest(model, inputs, *args, **kwargs)
        updates.append((inputs, now, float(loss.detach())))
        return loss

    one.compute_loss = spy
    one.train()
    assert seen == [0, 0, 2, 2]
    logged = [r for r in one.state.log_history if "loss" in r]
    for (first, frozen, _), (second, now, loss), rows in (
        (*updates[:2], logged[:2]),
        (*updates[2:], logged[2:]),
    ):
        expected = 0.0
        for before, after in zip(first.rows, second.rows, strict=True):
            name, mask = after.direction, after.completions.completion_mask
            for held in (before.sampling_logprobs, after.sampling_logprobs):
                assert held is not None
                torch.testing.assert_close(held[mask], frozen[name][mask], atol=1e-4, rtol=0)
            log_ratio, advantages = now[name] - frozen[name], after.advantages.unsqueeze(1)
            assert log_ratio[mask].abs().max() > 0.01
            gain = log_ratio.exp() * advantages
            clipped = log_ratio.exp().clamp(0.999, 1.002) * advantages
            assert after.ref_logprobs is not None
            to_start = after.ref_logprobs - now[name]
            kl = {"t2i": 0.1, "i2t": 0.2}[name]
            terms = -torch.minimum(gain, clipped) + kl * (to_start.exp() - to_start - 1)
            expected += float(terms[mask].sum() / mask.sum())
            assert rows[0][f"{name}/clipped"] == pytest.approx(0, abs=0.02)
            assert rows[1][f"{name}/clipped"] > 0.1
        assert loss == pytest.approx(expected, rel=1e-3)
    assert logged[0]["t2i/kl"] == pytest.approx(0, abs=1e-9)
    assert logged[1]["t2i/kl"] > 0


@pytest.mark.parametrize("bf16", [True, False])
def test_one_precision_samples_scores_and_learns(tmp_path: Path, bf16: bool) -> None:
    """And whatever it is, rewards and the weights stay float32."""
    one = trainer(config(tmp_path, f"train.bf16={str(bf16).lower()}"))
    seen: dict[str, set[torch.dtype]] = {}

    def note(_: Any, inputs: Any, output: Tensor) -> None:
        reading = "sampled" if inputs[0].shape[1] == 1 else "scored"  # a token at a time
        seen.setdefault("learned" if torch.is_grad_enabled() else reading, set()).add(output.dtype)

    one.adapter.model.model.language_model.layers[0].mlp.up_proj.register_forward_hook(note)
    rewards: list[torch.dtype] = []
    one.on_rollout = lambda _, scored: rewards.append(scored.rewards.dtype)
    one.train()
    computed = {torch.bfloat16 if bf16 else torch.float32}
    fused = set() if bf16 else {"sampled"}  # its engine reads fused weights, not the layers
    assert seen == dict.fromkeys({"sampled", "scored", "learned"} - fused, computed)
    assert rewards == [torch.float32] * 2
    assert one.adapter.model.dtype == torch.float32


def test_evaluating_puts_every_part_back_in_its_own_mode() -> None:
    model = random_janus().model.train()
    model.model.vision_model.eval()
    before = [m.training for m in model.modules()]
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == before
    assert True in before and False in before


@pytest.mark.parametrize("loss", ["simpo", "grpo", "dpo", "raft"])
def test_the_kl_of_a_direction_is_within_its_loss(tmp_path: Path, loss: str) -> None:
    settings = config(tmp_path, f"loss.name={loss}", "loss.i2t_kl=3", "loss.i2t_weight=0.5")
    one = trainer(settings)
    one.keep_start()
    with torch.no_grad():
        one.adapter.model.lm_head.weight.mul_(1.5)  # away from the reference
    stream: Any = one.train_dataset
    (micro,), _ = one.step.rows(stream[0], 0, 1)
    for rows in micro.rows:
        assert (rows.ref_logprobs is None) == (rows.direction == "t2i" and loss != "dpo")
    policy = Policy(one.adapter)
    with_kl = one.compute_loss(policy, micro)
    settings.loss.i2t_kl = 0.0
    kl = one.step_metrics()["i2t/kl"]
    assert kl > 0
    assert float(with_kl - one.compute_loss(policy, micro)) == pytest.approx(1.5 * kl, rel=1e-4)


@pytest.mark.parametrize("scorer", ["live", "frozen", "average"])
def test_scorers(tmp_path: Path, scorer: str) -> None:
    """After a step, live is the policy, frozen the start, the average between."""
    _, one = trained(config(tmp_path, f"reward.scorer={scorer}", "reward.average_decay=0.5"))
    start = random_janus().model.lm_head.weight
    policy = one.adapter.model.lm_head.weight.detach().clone()
    with one.step.scorer.reading():
        used = one.adapter.model.lm_head.weight.detach().clone()
    assert torch.equal(one.adapter.model.lm_head.weight, policy)
    want = {"live": policy, "frozen": start, "average": (start + policy) / 2}[scorer]
    assert (used - want).norm() < 1e-2 * (policy - start).norm()


def test_dual_reward_never_reads_labels(tmp_path: Path) -> None:
    settings = config(tmp_path)
    adapter = random_janus()
    for source in load_sources(settings, adapter.image_size).values():
        examples = source.examples[:4]
        bare = [Example(e.example_id, e.direction, e.text, e.pixels) for e in examples]
        rewards = []
        for some in (examples, bare):
            sampled = rollout(adapter, some, settings.sampling, 0, 0)
            scorer = Scorer(adapter.model)
            rewards.append(DualReward(adapter, settings.reward, scorer)(sampled))
        assert torch.equal(*rewards)


def test_dual_reward_is_the_mean_logprob_of_the_input(tmp_path: Path) -> None:
    """By hand, one output at a time, and whatever the batch of the scorer."""
    settings = config(tmp_path)
    adapter = random_janus()
    sources = load_sources(settings, adapter.image_size)
    drawn = rollout(adapter, sources["t2i"].examples[:2], settings.sampling, 0, 0)
    rewards = dual_reward(adapter, drawn, "what is this?", batch_rows=3)
    assert drawn.pixels is not None
    for row in (0, 5):
        prompts = adapter.prompts("i2t", ["what is this?"], drawn.pixels[row : row + 1])
        text = adapter.text_completion([drawn.examples[row // 4].text or ""])
        with torch.no_grad():
            values = completion_logprobs(adapter, prompts, text)
        torch.testing.assert_close(rewards[row // 4, row % 4], values.mean())
    read = rollout(adapter, sources["i2t"].examples[:2], settings.sampling, 0, 0)
    rewards = dual_reward(adapter, read, "", batch_rows=3)
    for row in (~invalid_captions(read)).nonzero().flatten().tolist()[:2]:
        pixels = read.examples[row // 4].pixels
        assert pixels is not None
        with torch.no_grad():
            ids = adapter.encode_images(pixels.unsqueeze(0))
            prompts = adapter.prompts("t2i", [read.texts[row]])
            values = completion_logprobs(adapter, prompts, adapter.image_completion(ids))
        torch.testing.assert_close(rewards[row // 4, row % 4], values.mean())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_second_term_is_the_outputs_own_log_likelihood(
    tmp_path: Path, direction: Direction
) -> None:
    """With weight 1 the reward is log p(input, output) over the input's tokens, by hand."""
    settings = config(tmp_path, f"reward.{direction}_own=1", "reward.batch_rows=3")
    adapter = random_janus()
    examples = load_sources(settings, adapter.image_size)[direction].examples[:2]
    sampled = rollout(adapter, examples, replace(settings.sampling, max_caption_tokens=40), 0, 0)
    plain = dual_reward(adapter, sampled, "")
    scorer = Scorer(adapter.model)
    found = DualReward(adapter, settings.reward, scorer)(sampled)
    alone = SelfCertainty(adapter, settings.reward, scorer)(sampled)
    valid = torch.ones(8) if direction == "t2i" else ~invalid_captions(sampled)
    assert valid.sum() > 1
    for row in valid.nonzero().flatten().tolist():
        completion = sampled.completions.select(slice(row, row + 1)).trimmed()
        with torch.no_grad():
            given = sampled.prompts.select(slice(row // 4, row // 4 + 1))
            values = completion_logprobs(adapter, given, completion)
        if direction == "t2i":
            length = len(adapter.text_ids(examples[row // 4].text or "")) + 1  # the stop token
        else:
            length = adapter.image_tokens
        place = row // 4, row % 4
        torch.testing.assert_close(alone[place], values.sum(), atol=1e-3, rtol=1e-4)
        wanted = plain[place] + values.sum() / length
        torch.testing.assert_close(found[place], wanted, atol=1e-4, rtol=1e-4)


def test_invalid_captions_get_the_worst_reward() -> None:
    rewards = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -1.0, -1.0]])
    invalid = torch.tensor([[False, False, True], [True, True, True]])
    got = penalise_invalid(rewards, invalid)
    assert got[0].argmin() == 2
    assert got[0, :2].tolist() == [-1.0, -2.0]
    assert (got[1] == got[1, 0]).all()  # a group with nothing valid compares nothing


def test_wins_by_input() -> None:
    """Right 3 and 1 against wrong 2 and 1: 3 > 2, 3 > 1, 1 < 2, 1 = 1 -> 1 + 1 + 0 + 0.5 of 4."""
    rewards = torch.tensor([[3.0, 1.0, 2.0, 1.0]])
    right = torch.tensor([[True, True, False, False]])
    assert wins_by_input(rewards, right) == (2.5, 4)


def test_training_options_reach_the_trainer(tmp_path: Path) -> None:
    args = training_arguments(config(tmp_path, "train.adam_beta1=0.8"))
    assert args.adam_beta1 == 0.8
    check(config(tmp_path))


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_inputs_that_repeat_within_a_step_are_drawn_apart(direction: Direction) -> None:
    """As where a folder holds fewer pictures than a step takes; the first time is as ever."""
    adapter = random_janus()
    a, b = examples_of(direction, draw_specs(0, 1, "train"))[:2]
    settings = SamplingConfig(group_size=3, max_caption_tokens=8)
    found = rollout(adapter, [a, b, a, a], settings, seed=0, step=0).completions
    small = replace(settings, batch_rows=3)
    assert torch.equal(
        rollout(adapter, [a, b, a, a], small, seed=0, step=0).completions.completion_ids,
        found.completion_ids,
    )
    groups = [found.completion_ids[i : i + 3].tolist() for i in range(0, 12, 3)]
    alone = rollout(adapter, [a, b], settings, seed=0, step=0).completions.completion_ids
    short = [[row[: alone.shape[1]] for row in group] for group in groups]
    assert short[:2] == [alone[:3].tolist(), alone[3:].tolist()]
    assert groups[0] != groups[2]
    assert groups[2] != groups[3]


def test_a_step_that_teaches_nothing_does_not_shrink_the_backward_passes(tmp_path: Path) -> None:
    one = trainer(config(tmp_path))
    before = one.backward_rows.rows
    one.step.rewards = [constant]
    one.train()
    assert one.backward_rows.rows == before


def test_lora_gathered_from_shards_is_saved_as_lora_is(tmp_path: Path) -> None:
    """The Trainer hands over the names of the policy, peft has names of its own."""
    adapter = random_janus()
    adapter.model.requires_grad_(False)
    add_lora(adapter, LoraConfig(rank=4), "base")
    one = trainer(config(tmp_path), adapter)
    assert one.model is not None
    one._save(str(tmp_path / "plain"))
    one._save(str(tmp_path / "gathered"), dict(one.model.state_dict()))
    plain, gathered = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "gathered")
    )
    assert len(plain) == 2 * 7 * 2  # A and B of every linear layer of two layers
    assert plain.keys() == gathered.keys()
    assert all(torch.equal(gathered[name], value) for name, value in plain.items())
    with pytest.raises(RuntimeError, match="no LoRA weights"):
        one._save(str(tmp_path / "none"), {"lora_A.weight": torch.zeros(2)})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_outputs_that_come_twice_are_scored_once(
    direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = random_janus()
    settings = SamplingConfig(group_size=3, max_caption_tokens=8)
    drawn = rollout(adapter, examples_of(direction, draw_specs(0, 1, "train"))[:2], settings, 0, 0)
    order = torch.tensor([0, 0, 2, 3, 5, 3])
    texts = tuple(drawn.texts[i] for i in order) if drawn.texts else ()
    pixels = None if drawn.pixels is None else drawn.pixels[order]
    truncated = None if drawn.truncated is None else drawn.truncated[order]
    twice = replace(
        drawn,
        completions=drawn.completions.select(order),
        texts=texts,
        pixels=pixels,
        truncated=truncated,
    )
    seen = []

    def counted(adapter: Any, prompts: Any, completions: Any) -> Tensor:
        seen.append(len(completions))
        return completion_logprobs(adapter, prompts, completions)

    want = dual_reward(adapter, drawn, "").flatten()
    monkeypatch.setattr("viceversa.rl.rewards.completion_logprobs", counted)
    got = dual_reward(adapter, twice, "").flatten()
    assert seen == [4]
    assert got[0] == got[1] and got[3] == got[5]
    if direction == "t2i":
        torch.testing.assert_close(got, want[order], atol=1e-5, rtol=0)
