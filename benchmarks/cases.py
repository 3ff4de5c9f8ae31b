"""The models and inputs that the speed benchmarks run on, and what the machine could do at best."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from rich.console import Console
from timing import copy_bandwidth, matrix_rate
from transformers import JanusForConditionalGeneration

from viceversa.config import ModelConfig
from viceversa.models import load_adapter
from viceversa.models.geometry import KNOWN, stand_in
from viceversa.models.janus import JanusAdapter
from viceversa.types import Direction, PromptBatch

SIZES = {"builtin": "builtin", "1b": "janus-pro-1b", "7b": "janus-pro-7b"}
IMAGE_ID = 3  # of random weights: what holds the place of a picture's tokens
PROMPT_TOKENS = {"builtin": 16, "1b": 32, "7b": 32}


def arguments(doc: str | None, prompts: int, rounds: int) -> argparse.ArgumentParser:
    """What every speed benchmark may be told."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    parser.add_argument("--size", default="builtin", choices=list(SIZES))
    parser.add_argument("--prompts", type=int, default=prompts)
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def begin(size: str, console: Console) -> tuple[JanusAdapter, Machine]:
    """The model and what the machine can do, which is printed."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapter = make(size, device)
    machine = Machine.of(adapter)
    console.print(f"{device}, {torch.get_num_threads()} threads, {adapter.model.dtype}, {machine}")
    return adapter, machine


def make(size: str, device: torch.device) -> JanusAdapter:
    """The built-in model, or a known geometry with random weights in bfloat16."""
    if size == "builtin":
        adapter = load_adapter(ModelConfig())
        assert isinstance(adapter, JanusAdapter)
        return adapter
    geometry = KNOWN[SIZES[size]]()
    geometry.image_token_id = IMAGE_ID
    with torch.device(device):
        model = JanusForConditionalGeneration._from_config(geometry, dtype=torch.bfloat16)
    adapter = JanusAdapter(model.eval(), stand_in(geometry))
    # a stand-in tokenizer knows no ids: any distinct ones do
    adapter.bos_id, adapter.boi_id, adapter.pad_id, adapter.image_id = 0, 1, 2, IMAGE_ID
    return adapter


@dataclass(frozen=True)
class Machine:
    bandwidth: float
    """Bytes a second, read and written."""
    rate: float
    """Operations a second."""

    @staticmethod
    def of(adapter: JanusAdapter) -> Machine:
        device = adapter.device
        return Machine(copy_bandwidth(device), matrix_rate(device, adapter.model.dtype))

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e9:.1f} GB/s copied, {self.rate / 1e12:.2f} TFLOP/s"


def prompts_of(adapter: JanusAdapter, direction: Direction, n: int, tokens: int) -> PromptBatch:
    """Random ids between BOS and begin-of-image; or a picture of noise and an instruction."""
    special = {adapter.bos_id, adapter.boi_id, adapter.pad_id, adapter.image_id}
    plain = torch.tensor([i for i in range(400) if i not in special], device=adapter.device)
    words = plain[torch.randint(len(plain), (n, tokens), device=adapter.device)]
    edge = torch.full((n, 1), adapter.bos_id, device=adapter.device)
    begin = torch.full((n, 1), adapter.boi_id, device=adapter.device)
    if direction == "t2i":
        ids = torch.cat([edge, words, begin], dim=1)
        return PromptBatch("t2i", ids, torch.ones_like(ids, dtype=torch.bool))
    holders = torch.full((n, adapter.image_tokens), adapter.image_id, device=adapter.device)
    ids = torch.cat([edge, begin, holders, words], dim=1)
    size = (n, 3, adapter.image_size, adapter.image_size)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, device=adapter.device)
    return PromptBatch("i2t", ids, torch.ones_like(ids, dtype=torch.bool), pixels)
