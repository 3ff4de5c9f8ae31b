"""Decoding by CUDA graphs draws the same as without. On the CPU: replay.py says what a graph is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from builders import ADAPTERS
from replay import Gpu
from viceversa.config import LoraConfig, SamplingConfig
from viceversa.inference.engines import Plain
from viceversa.inference.graphs import Graphed
from viceversa.inference.logprobs import evaluating
from viceversa.inference.sampler import DrawKeys, Sampled, _Decoder, sample
from viceversa.models.base import Adapter
from viceversa.models.lora import add_lora
from viceversa.rl.rollout import input_prompts
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import draw_specs
from viceversa.types import Direction

#: Several strides for each output, several steps of each kind in a stride.
STRIDE: dict[Direction, int] = {"t2i": 12, "i2t": 6}
PLAIN = SamplingConfig(max_caption_tokens=20)
FILTERED = replace(PLAIN, guidance=1.5, top_k=60, top_p=0.97, temperature=1.2)
Fault = Callable[[pytest.MonkeyPatch], None]


@torch.no_grad()
def talkative(name: str) -> Adapter:
    """A random model whose captions go on for a while."""
    adapter = ADAPTERS[name]()
    adapter.model.lm_head.weight[adapter.stop_id] *= 0.6
    return adapter


@pytest.fixture(scope="module", params=list(ADAPTERS))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    """Not to be changed."""
    return talkative(request.param)


@pytest.fixture(scope="module")
def janus() -> Adapter:
    """Not to be changed."""
    return talkative("janus")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    stand_in = Gpu()
    stand_in.install(monkeypatch)
    return stand_in


@pytest.fixture(autouse=True)
def _looks_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viceversa.inference.sampler._look_every", lambda adapter: 4)


def drawn(
    adapter: Adapter, direction: Direction, config: SamplingConfig, engine: Any, autocast: bool
) -> Sampled:
    """Four outputs of each of three inputs, of different lengths."""
    examples = examples_of(direction, draw_specs(0, 1, "train"))[:3]
    keys = DrawKeys(0, 0, tuple((e.example_id, g) for e in examples for g in range(4)))
    with pytest.MonkeyPatch.context() as patch, evaluating(adapter.model):
        patch.setattr("viceversa.inference.sampler.engine_of", lambda adapter: engine)
        prompts = input_prompts(adapter, examples, "")
        patch.setattr(adapter, "image_tokens", 24)  # of a picture, its first rows
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return sample(adapter, prompts, keys, config)


def check_graphs(
    adapter: Adapter, direction: Direction, config: SamplingConfig, autocast: bool = False
) -> None:
    """Graphs draw what the same engine draws step by step, bit by bit; in float32 that is what the
    plain engine draws, too."""
    graphed = partial(Graphed, stride=STRIDE[direction])
    found = drawn(adapter, direction, config, graphed, autocast)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graphed, "_new_capture", never_captured)
        stepwise = drawn(adapter, direction, config, graphed, autocast)
    check_same(found, stepwise)
    if adapter.model.dtype == torch.float32 and not autocast:
        check_same(found, drawn(adapter, direction, config, Plain, autocast), atol=1e-3)


def check_same(found: Sampled, wanted: Sampled, atol: float = 0.0) -> None:
    close = partial(torch.testing.assert_close, rtol=0, atol=0)
    close(found.completions.completion_ids, wanted.completions.completion_ids)
    close(found.completions.completion_mask, wanted.completions.completion_mask)
    close(found.truncated, wanted.truncated)
    close(found.drawn_logprobs, wanted.drawn_logprobs, atol=atol)


def never_captured(engine: Graphed) -> Any:
    return lambda work, t: None


def test_pictures_are_drawn_by_graphs(
    adapter: Adapter, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guided, filtered; in rows that end in a forced token, where the model has them."""
    by_graph: set[int] = set()
    honest = Graphed.repeat

    def repeat(engine: Graphed, work: Any, t: int, tokens: int) -> None:
        before = gpu.replayed
        honest(engine, work, t, tokens)
        by_graph.update([tokens] if gpu.replayed > before else [])

    monkeypatch.setattr(Graphed, "repeat", repeat)
    check_graphs(adapter, "t2i", FILTERED)
    assert by_graph == ({1, 2} if adapter.row_tokens else {1})
    assert gpu.captured >= 2
    assert gpu.replayed > 12
    assert gpu.emptied == 0
    assert len(gpu.pools) == 1


def test_captions_are_written_by_graphs(
    adapter: Adapter, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that have stopped leave on the way, and graphs of the others begin anew."""
    left: list[int] = []
    honest = Graphed.keep
    monkeypatch.setattr(Graphed, "keep", lambda e, rows: left.append(len(rows)) or honest(e, rows))
    check_graphs(adapter, "i2t", PLAIN)
    assert len(left) >= 2
    assert gpu.captured >= 3
    assert len(gpu.pools) >= 2  # none is used again once its graphs are gone
    assert gpu.replayed > 6


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", list(ADAPTERS))
def test_graphs_draw_the_same_in_every_precision(
    name: str, autocast: bool, lora: bool, direction: Direction, gpu: Gpu
) -> None:
    """Filtered and guided; with LoRA on weights in bfloat16, as released models are trained."""
    adapter = talkative(name)
    if lora:
        adapter.model.to(torch.bfloat16)
        add_lora(adapter, LoraConfig(rank=4), "")
        torch.manual_seed(0)
        for weight in (p for n, p in adapter.model.named_parameters() if "lora_B" in n):
            torch.nn.init.normal_(weight, std=0.1)
    check_graphs(adapter, direction, FILTERED, autocast)
    assert gpu.replayed > 3


def on_the_host(patch: pytest.MonkeyPatch) -> None:
    """Which token it is, as a number of the host."""
    honest = Graphed.repeat

    def repeat(engine: Graphed, work: Any, t: int, tokens: int) -> None:
        honest(engine, lambda _: work(t), t, tokens)

    patch.setattr(Graphed, "repeat", repeat)


def place_on_the_host(patch: pytest.MonkeyPatch) -> None:
    """Where keys are written, of a number of the host."""
    honest = Graphed.read

    def read(engine: Graphed, embeds: torch.Tensor) -> None:
        engine.place = torch.full((1,), engine.length)
        honest(engine, embeds)

    patch.setattr(Graphed, "read", read)


def wait_for_the_host(patch: pytest.MonkeyPatch) -> None:
    honest = _Decoder.draw
    patch.setattr(_Decoder, "draw", lambda decoder, t: honest(decoder, int(t)))


def copy_from_the_host(patch: pytest.MonkeyPatch) -> None:
    honest = _Decoder.draw
    patch.setattr(_Decoder, "draw", lambda d, t: honest(d, t + torch.tensor(0)))


def move_positions(patch: pytest.MonkeyPatch) -> None:
    honest = Graphed.read

    def read(engine: Graphed, embeds: torch.Tensor) -> None:
        honest(engine, embeds)
        engine.position = engine.position.clone()

    patch.setattr(Graphed, "read", read)


def move_tokens(patch: pytest.MonkeyPatch) -> None:
    honest = _Decoder.draw

    def draw(decoder: _Decoder, t: int | torch.Tensor) -> None:
        honest(decoder, t)
        decoder.tokens = decoder.tokens.clone()

    patch.setattr(_Decoder, "draw", draw)


def keep_old_graphs(patch: pytest.MonkeyPatch) -> None:
    """When rows leave, and with them the buffers."""
    honest = Graphed._forget_graphs

    def forget(engine: Graphed) -> None:
        if not hasattr(engine, "graphs"):
            honest(engine)

    patch.setattr(Graphed, "_forget_graphs", forget)


FAULTS: list[tuple[Fault, str]] = [
    (on_the_host, "not match|not equal"),
    (place_on_the_host, "not match|not equal"),
    (wait_for_the_host, "waits for the GPU"),
    (copy_from_the_host, "numbers on the host"),
    (move_positions, "a tensor that is gone"),
    (move_tokens, "a tensor that is gone"),
    (keep_old_graphs, "a tensor that is gone"),
]


@pytest.mark.parametrize(("fault", "noticed"), FAULTS, ids=[f.__name__ for f, _ in FAULTS])
def test_what_a_graph_cannot_do_is_noticed(
    fault: Fault, noticed: str, janus: Adapter, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these goes unseen where Python runs again."""
    honest = drawn(janus, "i2t", PLAIN, Plain, False)
    fault(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graphed, "_new_capture", never_captured)
        unseen = drawn(janus, "i2t", PLAIN, partial(Graphed, stride=6), False)
    assert torch.equal(unseen.completions.completion_ids, honest.completions.completion_ids)
    with pytest.raises(AssertionError, match=noticed):
        check_graphs(janus, "i2t", PLAIN)


OUT_OF_MEMORY = partial(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate")
NOT_PERMITTED = "operation not permitted when stream is capturing"
REFUSED = partial(RuntimeError, f"{NOT_PERMITTED}. And more")


@pytest.mark.filterwarnings("ignore:decoding without a CUDA graph")
def test_what_cannot_be_captured_is_run_as_it_is(janus: Adapter, gpu: Gpu) -> None:
    """With a warning that gives the first reason, on the stream that was current."""
    gpu.errors = [REFUSED] * 20
    graphed = partial(Graphed, stride=6)
    with pytest.warns(UserWarning, match=f"slower: {NOT_PERMITTED}$"):
        found = drawn(janus, "i2t", PLAIN, graphed, False)
    check_same(found, drawn(janus, "i2t", PLAIN, Plain, False), atol=1e-3)
    assert (gpu.captured, gpu.replayed, gpu.stream_now) == (0, 0, "default")


def test_a_capture_is_tried_again_with_the_memory_that_others_keep(
    janus: Adapter, gpu: Gpu
) -> None:
    gpu.errors = [OUT_OF_MEMORY]
    check_graphs(janus, "i2t", PLAIN)
    assert gpu.emptied == 1
    assert gpu.captured >= 3


def test_a_capture_without_memory_is_for_the_row_budget(janus: Adapter, gpu: Gpu) -> None:
    gpu.errors = [OUT_OF_MEMORY] * 20
    with pytest.raises(torch.OutOfMemoryError):
        drawn(janus, "i2t", PLAIN, partial(Graphed, stride=6), False)
    assert gpu.emptied == 1
    assert gpu.stream_now == "default"


@pytest.mark.filterwarnings("ignore:decoding without a CUDA graph")
@pytest.mark.parametrize("captured", [True, False])
def test_nothing_holds_the_cache_once_it_is_used(janus: Adapter, gpu: Gpu, captured: bool) -> None:
    """Without waiting for the garbage collector, which comes when it likes."""
    gpu.errors = [] if captured else [REFUSED] * 20
    prompts = janus.prompts("t2i", ["a red ring"])
    with pytest.MonkeyPatch.context() as patch, evaluating(janus.model):
        patch.setattr("viceversa.inference.sampler.engine_of", lambda adapter: Graphed)
        decoder = _Decoder(janus, prompts, DrawKeys(0, 0, ((0, 0), (0, 1))), PLAIN)
        decoder.draw(0)
        for t in range(1, 6):
            decoder.step(t)
    assert gpu.replayed == (4 if captured else 0)
    keys = weakref.ref(decoder.engine.cache.layers[0].keys)
    gc.disable()
    try:
        del decoder
        assert keys() is None
    finally:
        gc.enable()
