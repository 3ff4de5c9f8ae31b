"""Every option with its default, its bounds and what it does: one dataclass a section."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool
from pydantic.dataclasses import dataclass

# Strict: neither the text "3" nor true is a number; a whole number will do for a float.
Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(ge=1e-6, le=1)]

#: Unknown names are refused, and what is assigned later is checked as well.
SECTION = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)


@dataclass(config=SECTION)
class ModelConfig:
    """The model to train."""

    path: str = "builtin"
    """`builtin`, a folder in Hugging Face or the original Janus' layout, or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights. In bfloat16 most small updates are lost to rounding."""
    image_size: Natural = 0
    """Side of the pictures in pixels, for a model that can choose (Emu3); 0 is the model's own."""


@dataclass(config=SECTION)
class LoraConfig:
    """LoRA, instead of training every weight."""

    rank: Natural = 0
    """0 trains every weight of the language model and its heads; more trains LoRA of this rank."""
    alpha: Natural = 32
    """LoRA weights act times alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout in the backward pass alone: the whole model samples and scores."""
    modules: str = ""
    """A regular expression of module names; empty: the linear layers of the language model."""


@dataclass(config=SECTION)
class DataConfig:
    """Prompts and pictures. They need not belong together: no pairs are read."""

    prompts: str = "scenes"
    """`scenes`, a file (.txt, one a line; .jsonl, .csv, .parquet), or a dataset: `hf://owner/name`,
    `hf://owner/name/config:split` or `hf:///folder:split`; the split is `train` if unnamed."""
    prompt_column: str = ""
    """The column of prompts; empty: the first there is of prompt, text, caption."""
    images: str = "scenes"
    """`scenes`, a folder tree of pictures and webdataset shards (.tar), shards by name
    (`a-{000..007}.tar`, `a-*.tar`), or a dataset as above."""
    image_column: str = ""
    """The column of pictures in a dataset; empty: its first one."""
    reference_column: str = ""
    """A column of the data that reaches the reward as `example.reference`, e.g. the answer or a
    label; of prompts and of an image dataset. Empty: none."""
    crop: Literal["center", "pad"] = "center"
    """How a picture becomes square. `pad` keeps all of it, and spends image tokens, and so part of
    the reward, on white bars."""
    streaming: StrictBool = False
    """For sets larger than memory: read in order through a shuffle buffer, each picture checked
    when its turn comes instead of before training."""
    cache_dir: str = "~/.cache/viceversa"
    """Folder that keeps verdicts on pictures, and their image tokens, for later runs."""
    prompts_per_step: Count = 16
    """t2i groups in one optimizer step, over all processes."""
    images_per_step: Count = 16
    """i2t groups in one optimizer step, over all processes."""
    scenes_size: Annotated[Count, Field(le=1_000_000)] = 4096
    """Prompts, and pictures, drawn from the built-in world."""

    def per_step(self, direction: str) -> int:
        """Return the inputs of a direction in one optimizer step, over all processes."""
        return self.prompts_per_step if direction == "t2i" else self.images_per_step


@dataclass(config=SECTION)
class SamplingConfig:
    """Settings of sampling."""

    group_size: Count = 8
    """Outputs sampled for one input, and compared with each other."""
    temperature: Positive = 1.0
    """Temperature of the distribution that is sampled and optimised. Evaluation also takes 0, which
    picks the likeliest token."""
    top_k: Natural = 0
    """0 keeps every token. Top-k and top-p shape what is sampled, not what is optimised."""
    top_p: Share = 1.0
    """Keeps the likeliest tokens that together have this probability."""
    guidance: Number = 1.0
    """Classifier-free guidance while drawing; 1 is none, and costs half."""
    max_caption_tokens: Count = 32
    """A caption that has not stopped by then is cut, and gets the worst reward of its group."""
    instruction: str = ""
    """Asks for the caption of an image; empty takes the model's own."""
    batch_rows: Count = 512
    """Rows decoded at once; never changes the result."""


@dataclass(config=SECTION)
class RewardTerm:
    """One reward, and what is made of it."""

    name: str = "dual"
    """`dual`. To compare it with: `random`, `self_certainty` (the second term alone), `verifier`
    (labels), `scenes_clip` (trained on pairs of the built-in world), `clip_score` and `pick_score`
    (their `model` is among the `options`). Or a function of your own by its import path,
    `mypackage.rewards:redness`; a class is called with `options` first."""
    weight: Number = 1.0
    """Several rewards add up: what each is turned into, times its weight."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of a class."""
    scale: Literal["group", "batch", "none"] = "batch"
    """What advantages are divided by: the standard deviation of the rewards in their group (as
    published), that of the whole step, per direction, about the groups' means, or nothing."""
    likelihood_power: Annotated[Number, Field(ge=0, le=100)] = 0.0
    """Above 0, outputs are compared by the likelihood per token to this power, not by its
    logarithm, the reward: what is half right counts for little beside what is right. Inputs are
    compared, too: one that is unlikely however well drawn counts for less."""


@dataclass(config=SECTION)
class RewardConfig(RewardTerm):
    """The reward, those added to it, and how the dual one is computed."""

    scorer: Literal["live", "frozen", "average"] = "live"
    """Who reads the outputs back: the policy, the model it started from, or a slow average."""
    average_decay: Fraction = 0.99
    """Decay of the slow average, per optimizer step."""
    t2i_own: Positive = 0.0
    """Weight of the dual reward's second term: how likely the scorer finds the output itself, given
    its input, in nats summed over its tokens and divided as the first term is. For a scorer that is
    `frozen`: a live one feeds on itself."""
    i2t_own: Positive = 0.0
    """The same for captions."""
    batch_rows: Count = 256
    """Rows scored at once; never changes the result."""
    add: list[RewardTerm] = field(default_factory=list)
    """More rewards: a name, a weight and, if need be, scale, likelihood_power and options."""

    def own(self, direction: str) -> float:
        """Return the weight of the second term in a direction."""
        return self.t2i_own if direction == "t2i" else self.i2t_own

    def terms(self) -> list[RewardTerm]:
        """Return this reward and those added to it."""
        return [self, *self.add]


@dataclass(config=SECTION)
class LossConfig:
    """The algorithm and its numbers."""

    name: str = "grpo"
    """`simpo`, `grpo`, `dpo`, `raft`, or a class of your own: `mypackage.losses:MyLoss`."""
    beta: Positive = 5.0
    """SimPO's scale of differences of mean log-probs."""
    dpo_beta: Positive = 0.1
    """DPO's scale of differences of summed log-probs."""
    gamma: Number = 0.25
    """SimPO's target margin, in reward units (after beta)."""
    group_share: Share = 1.0
    """Share of a step's groups of one direction that is learned from: those whose rewards lie
    furthest apart. The others are counted; they have the least to teach, and cost as much."""
    clip_low: Fraction = 0.2
    """GRPO clips the ratio of new to old probability at 1 less this."""
    clip_high: Positive = 0.2
    """GRPO clips the ratio at 1 and this."""
    t2i_kl: Positive = 0.0
    """Weight of the KL to the starting model, nats per token of the rows learned from, within the
    loss of `t2i`. An estimate from samples of the policy: biased for rows picked by reward."""
    i2t_kl: Positive = 0.0
    """The same within the loss of `i2t`: `i2t_weight` weighs it, too."""
    updates_per_rollout: Count = 1
    """Optimizer steps taken on one rollout (GRPO)."""
    logprob_policy: Literal["conditional", "guided"] = "conditional"
    """The distribution that is optimised where guidance is not 1."""
    t2i_weight: Positive = 1.0
    """Weight of the loss of `t2i`, to balance directions whose gradients differ by far (see
    `t2i/grad_norm`)."""
    i2t_weight: Positive = 1.0
    """Weight of the loss of `i2t`."""
    batch_rows: Natural = 0
    """Rows of one backward pass; 0 is all at once. Never changes the result."""
    direction_norms_every: Natural = 10
    """Steps between logs of each direction's gradient norm (one more backward pass); 0 is never."""

    def weight(self, direction: str) -> float:
        """Return the weight of a direction's loss."""
        return self.t2i_weight if direction == "t2i" else self.i2t_weight

    def kl(self, direction: str) -> float:
        """Return the weight of the KL within a direction's loss."""
        return self.t2i_kl if direction == "t2i" else self.i2t_kl


@dataclass(config=SECTION)
class ReplayConfig:
    """Holds abilities that are not trained: the starting model's answers are learned along."""

    questions: str = ""
    """A file of questions, one a line (or `.jsonl`, `.csv`, `.parquet`, a hub dataset), asked about
    the pictures of each step; `scenes` for the built-in world's. Empty: no replay. There is none
    either in steps without pictures, as those of schedule `t2i`."""
    per_step: Count = 64
    """Questions in one optimizer step, over all processes."""
    weight: Positive = 1.0
    """Weight of the loss: half the mean square of (log-prob now less log-prob at the start, nats a
    token) over answers that the start samples anew each step."""
    max_answer_tokens: Count = 16
    """An answer that has not stopped by then is cut."""


@dataclass(config=SECTION)
class EvalConfig:
    """What is measured before and after training: accuracy on the built-in world, and held-out
    inputs without labels."""

    specs_per_kind: Natural = 100
    """Specs of each kind, built-in world only; 0 skips the evaluation."""
    held_out_per_kind: Natural = 50
    """Specs of each kind with combinations that training never shows."""
    split: Literal["tune", "test"] = "test"
    """Specs to choose settings with, or to report on."""
    seed: Annotated[Natural, Field(le=2**32 - 2)] = 0  # is used plus one, too
    """Seeds the specs and the draws."""
    temperature: Positive = 1.0
    """Temperature of the sampled pictures and captions; 0 picks the likeliest token."""
    guidance: Number = 1.0
    """Classifier-free guidance of the sampled pictures."""
    held_out_inputs: Natural = 64
    """Prompts, and pictures, that are kept from training and measured without labels at its end: at
    most an eighth of them. 0 measures none."""
    held_out_group: Annotated[Count, Field(ge=2)] = 4
    """Outputs of each held-out input."""


@dataclass(config=SECTION)
class WatchConfig:
    """A few held-out inputs, looked at while training goes on."""

    every: Natural = 20
    """Optimizer steps between looks; 0 never looks. Never changes what is trained."""
    inputs: Count = 16
    """Held-out inputs of each direction in a look (of `eval.held_out_inputs`)."""
    shown: Annotated[Natural, Field(le=8)] = 4  # as many as are sampled together
    """Of these, inputs whose outputs are kept at each look, for the report's slider; at most 8."""
    stop_on_collapse: StrictBool = False
    """Stop where outputs collapsed, and end with the best checkpoint."""


@dataclass(config=SECTION)
class Config:
    """All options of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    schedule: Literal["joint", "alternate", "t2i", "i2t"] = "joint"
    """Which directions one optimizer step trains."""
    steps: Count = 100
    """Optimizer steps."""
    seed: Annotated[Natural, Field(le=2**32 - 1)] = 0
    """Seeds data order, sampling and LoRA's start."""
    output_dir: str = "runs/latest"
    """The run folder."""
    train: dict[str, Any] = field(default_factory=dict)
    """Any field of transformers.TrainingArguments."""

    @property
    def replays(self) -> bool:
        """Tell whether answers are replayed: questions are named, and pictures are read."""
        return bool(self.replay.questions) and self.schedule != "t2i"

    @property
    def watches(self) -> bool:
        """Tell whether held-out inputs are looked at in training: it is long enough for a look."""
        return 0 < self.watch.every <= self.steps and self.eval.held_out_inputs > 0

    def inputs(self) -> dict[str, str]:
        """Return where the inputs come from, by direction: those that the schedule needs."""
        used = {"t2i": self.data.prompts, "i2t": self.data.images}
        return {self.schedule: used[self.schedule]} if self.schedule in used else used

    def guidance(self, direction: str) -> float:
        """Return the guidance of the distribution that is optimised."""
        guided = self.loss.logprob_policy == "guided" and direction == "t2i"
        return self.sampling.guidance if guided else 1.0
