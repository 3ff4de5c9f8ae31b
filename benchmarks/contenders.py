"""What ours is measured against: transformers' own loops, and what the peers do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from viceversa.models.janus import JanusAdapter
from viceversa.types import Completion, PromptBatch


@torch.no_grad()
def transformers_pictures(
    adapter: JanusAdapter, prompts: PromptBatch, group_size: int, guidance: float, greedy: bool
) -> Tensor:
    """`generate(generation_mode="image")`: a static cache, conditional rows before unconditional.

    It doubles the rows at any guidance; 1 is taken as one conditional pass in two.
    """
    if greedy:  # which refuses more than one sequence an input
        prompts, group_size = prompts.repeat_interleave(group_size), 1
    # no argument of `generate` sets it
    adapter.model.generation_config.generation_kwargs = {"boi_token_id": adapter.boi_id}
    return adapter.model.generate(
        inputs=prompts.prompt_ids,
        attention_mask=prompts.attention_mask.long(),
        generation_mode="image",
        do_sample=not greedy,
        top_k=0,  # of the whole distribution, as the others
        guidance_scale=max(guidance, 1.0 + 1e-6),
        num_return_sequences=group_size,
        bos_token_id=adapter.bos_id,
        pad_token_id=adapter.pad_id,
        max_new_tokens=adapter.image_tokens,
    )


@torch.no_grad()
def transformers_captions(
    adapter: JanusAdapter, prompts: PromptBatch, group_size: int, length: int, greedy: bool
) -> Tensor:
    """`generate` in text mode, as the peers call it: each sample reads the picture anew."""
    assert prompts.pixels is not None
    found = adapter.model.generate(
        inputs=prompts.prompt_ids,
        attention_mask=prompts.attention_mask.long(),
        pixel_values=adapter.normalised(prompts.pixels),
        generation_mode="text",
        do_sample=not greedy,
        top_k=0,
        num_return_sequences=1 if greedy else group_size,
        eos_token_id=-1,  # as for ours: every caption of one length
        max_new_tokens=length,
    )
    rows = found[:, prompts.prompt_ids.shape[1] :]
    return rows.repeat_interleave(group_size, 0) if greedy else rows


@torch.no_grad()
def peer_loop(
    adapter: JanusAdapter, prompts: PromptBatch, group_size: int, guidance: float, greedy: bool
) -> Tensor:
    """The loop of the original's inference script, as reinforcement learning on Janus uses it.

    Every sample is a row of its own from the prompt on; conditional and unconditional rows
    interleave, but for guidance 1, which has none of these; the cache grows by concatenation;
    logits of both are formed at every step.
    """
    rows = prompts.repeat_interleave(group_size)
    each = [rows] if guidance == 1 else [rows, adapter.blank_prompts(rows)]
    ids = torch.stack([r.prompt_ids for r in each], dim=1).flatten(0, 1)
    mask = rows.attention_mask.repeat_interleave(len(each), 0).long()
    embeds = adapter.model.get_input_embeddings()(ids)
    model: Any = adapter.model.model.language_model
    drawn, cache = [], None
    for _ in range(adapter.image_tokens):
        out = model(
            inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
        logits = adapter.model.model.generation_head(out.last_hidden_state[:, -1])
        conditional, unconditional = logits[0 :: len(each)], logits[len(each) - 1 :: len(each)]
        mixed = unconditional + guidance * (conditional - unconditional)
        sampled = torch.multinomial(mixed.softmax(-1), 1).squeeze(-1)
        token = mixed.argmax(-1) if greedy else sampled
        drawn.append(token)
        read = token.repeat_interleave(len(each)).unsqueeze(1)
        embeds = adapter.model.prepare_embeddings_for_image_generation(read)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.stack(drawn, dim=1)


def peer_logprobs(
    adapter: JanusAdapter, prompts: PromptBatch, completions: Completion, group_size: int
) -> Tensor:
    """[B, T] nats as the peers score: every row with its own prompt, the head over every position.

    Masks are left to the caller: the rows are right-padded, and causal attention never looks there.
    """
    rows = prompts.repeat_interleave(group_size)
    image = prompts.direction == "t2i"
    written = adapter.embed_tokens(completions.completion_ids, "image" if image else "text")
    embeds = torch.cat([adapter.embed_prompts(rows), written], dim=1)
    hidden = adapter.model.model.language_model(inputs_embeds=embeds).last_hidden_state
    head = adapter.model.model.generation_head if image else adapter.model.lm_head
    logits = head(hidden)[:, rows.prompt_ids.shape[1] - 1 : -1]
    logprobs = logits.float().log_softmax(-1)
    return logprobs.gather(-1, completions.completion_ids.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def gvu_reward(adapter: JanusAdapter, prompts: PromptBatch, texts: Completion) -> Tensor:
    """[B] geometric means of the probabilities of a text's tokens given a picture, as GvU has it.

    The work of `gvu_score` in omni_r1/utils/rewards.py of github.com/matrix0721/GvU at 0a3000a:
    picture by picture, the picture encoded once; for every token of the text the whole sequence so
    far anew, no cache reused, the head over every position, a softmax of the last; the
    probabilities multiplied as Python floats, which reach 0 below 5e-324, then the root. Its model
    also pads these logits to text and image ids together: left out here, in its favour.
    """
    model: Any = adapter.model.model.language_model
    found = []
    for row, text in enumerate(texts.completion_ids):
        embeds = adapter.embed_prompts(prompts.select(slice(row, row + 1)))
        product = 1.0
        for token in text:
            logits = adapter.model.lm_head(model(inputs_embeds=embeds).last_hidden_state).float()
            product *= logits[0, -1].softmax(-1)[token].item()
            embeds = torch.cat([embeds, adapter.embed_tokens(token.view(1, 1), "text")], dim=1)
        found.append(product ** (1.0 / len(text)))
    return torch.tensor(found, dtype=torch.float64)
