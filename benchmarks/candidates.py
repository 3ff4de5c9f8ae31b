"""Other rewards of the model itself, tried against the dual one (ablation.py, LOG.md).

Each is read by a frozen copy of the base. None sees a label; `Questions` and `Phrasings` know the
grammar of the built-in world.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from viceversa.config import ModelConfig, load_config
from viceversa.inference.logprobs import evaluating
from viceversa.models import load_adapter
from viceversa.rl.rewards import dual_reward, read_back, swapped
from viceversa.rl.rollout import input_image_ids
from viceversa.scenes.language import (
    NUMBERS,
    OPENINGS,
    noun,
    parse_caption,
    plural,
    without_opening,
)
from viceversa.scenes.spec import Object
from viceversa.types import Rollout

ROWS = 64


class Candidate:
    """A reward with a frozen judge, loaded when first asked."""

    def __init__(self, base: str):
        self.base = base
        self._judge = None

    @property
    def judge(self):
        if self._judge is None:
            self._judge = load_adapter(ModelConfig(path=self.base))
            self._judge.model.requires_grad_(False)
        return self._judge

    def pictures(self, rollout: Rollout) -> Tensor:
        """Return the picture of each row, read or drawn, [B, 3, H, W]."""
        if rollout.pixels is not None:
            return rollout.pixels
        pixels = torch.stack([e.pixels for e in rollout.examples if e.pixels is not None])
        return pixels.repeat_interleave(rollout.group_size, 0)


class Contrast(Candidate):
    """The dual reward, less how likely the input is where the output says nothing.

    Nothing is a grey picture, or the prompt of guidance's unconditional row. Within a group it is a
    constant; with `likelihood_power` it decides which groups count.
    """

    def __call__(self, rollout: Rollout) -> Tensor:
        plain = dual_reward(self.judge, rollout, "", ROWS).cpu()
        prompts, completions = swapped(self.judge, rollout, "")
        first = slice(None, None, rollout.group_size)
        prompts, completions = prompts.select(first), completions.select(first)
        if rollout.direction == "i2t":
            prompts = self.judge.blank_prompts(prompts)
        else:
            grey = torch.full_like(self.pictures(rollout)[first], 128)
            asked = [self.judge.default_instruction] * len(grey)
            prompts = self.judge.prompts("i2t", asked, grey)
        return plain - read_back(self.judge, prompts, completions, ROWS).cpu().unsqueeze(1)


class Phrasings(Candidate):
    """The dual reward, its text in each of the world's opening phrases: the mean over them."""

    def __call__(self, rollout: Rollout) -> Tensor:
        found = [self._read(rollout, prefix) for prefix in OPENINGS]
        return torch.stack(found).mean(0).view(-1, rollout.group_size)

    def _read(self, rollout: Rollout, prefix: str) -> Tensor:
        judge = self.judge
        texts = [prefix + without_opening(t) for t in rollout.row_texts]
        if rollout.direction == "t2i":
            asked = [judge.default_instruction] * len(texts)
            prompts = judge.prompts("i2t", asked, self.pictures(rollout))
            return read_back(judge, prompts, judge.text_completion(texts), ROWS).cpu()
        with evaluating(judge.model):
            ids = input_image_ids(judge, rollout.examples)
        completion = judge.image_completion(ids.repeat_interleave(rollout.group_size, 0))
        return read_back(judge, judge.prompts("t2i", texts), completion, ROWS).cpu()


class EvenGroups(Candidate):
    """The reward of the recipe `builtin`, of drawings less the best of their group.

    With `likelihood_power` a prompt that the reader finds unlikely however it is drawn then counts
    as much as any other. Captions stay as they are.
    """

    def __call__(self, rollout: Rollout) -> Tensor:
        own = load_config("builtin").reward.own(rollout.direction)
        rewards = dual_reward(self.judge, rollout, "", ROWS, own).cpu()
        return rewards - rewards.amax(-1, keepdim=True) if rollout.direction == "t2i" else rewards


class Questions(Candidate):
    """Asks about the picture what the text claims: the mean log-likelihood of the answers.

    Is there each object, how many of each shape, where one is relative to another. A text that
    breaks the grammar claims nothing and gets the least.
    """

    least = -10.0

    def __call__(self, rollout: Rollout) -> Tensor:
        asked, answers, owner = [], [], []
        for row, text in enumerate(rollout.row_texts):
            for question, answer in _claimed(text):
                asked.append(question)
                answers.append(answer)
                owner.append(row)
        rows = len(rollout.completions)
        found = torch.full((rows,), self.least)
        if asked:
            which = torch.tensor(owner)
            judge = self.judge
            prompts = judge.prompts("i2t", asked, self.pictures(rollout)[which])
            read = read_back(judge, prompts, judge.text_completion(answers), ROWS).cpu()
            sums = torch.zeros(rows).index_add(0, which, read)
            counts = torch.zeros(rows).index_add(0, which, torch.ones(len(which)))
            found = torch.where(counts > 0, sums / counts.clamp_min(1), found)
        return found.view(-1, rollout.group_size)


def _claimed(text: str) -> Sequence[tuple[str, str]]:
    """Return questions, and the answers that a text implies."""
    claims = parse_caption(text)
    if claims is None:
        return []
    found = [(f"is there {noun(o)}?", "yes") for o in claims.counts]
    shapes: dict[str, int] = {}
    for o, n in claims.counts.items():
        shapes[o.shape] = shapes.get(o.shape, 0) + n
    found += [
        (f"how many {plural(s)} are there?", NUMBERS[n]) for s, n in shapes.items() if n in NUMBERS
    ]
    colour = [o for o in claims.counts if shapes[o.shape] == 1]
    found += [(f"what colour is the {o.shape}?", o.colour) for o in colour if _coloured(o)]
    for a, relation, b in claims.relations:
        if shapes[a.shape] == shapes[b.shape] == 1:
            asked = f"where is the {a.shape} relative to the {b.shape}?"
            found.append((asked, relation.removesuffix(" of")))
    return found


def _coloured(o: Object) -> bool:
    return noun(o) != f"a {o.shape}"


CANDIDATES = {
    "contrast": Contrast,
    "phrasings": Phrasings,
    "questions": Questions,
    "even_groups": EvenGroups,
}
