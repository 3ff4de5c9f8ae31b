"""Rewards that a scorer which never changes has given before: a pair is not read again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
import xxhash
from torch import Tensor

from viceversa.types import DIRECTIONS, Example, Rollout

#: Pairs that are remembered, those looked up last: 10 MB.
MOST = 2**16


class KnownRewards:
    """Remember the reward of each pair of input and output, by a checksum of both."""

    def __init__(self, most: int = MOST):
        self.most = most
        self._found: OrderedDict[bytes, float] = OrderedDict()

    def look_up(self, pairs: Sequence[bytes]) -> Tensor:
        """Return the rewards of pairs, [N] float32; nan where one is not known."""
        for pair in pairs:
            if pair in self._found:
                self._found.move_to_end(pair)
        return torch.tensor([self._found.get(pair, torch.nan) for pair in pairs])

    def add(self, pairs: Sequence[bytes], rewards: Tensor) -> None:
        """Remember rewards [N]; the pairs that were looked up longest ago are forgotten."""
        self._found.update(zip(pairs, rewards.tolist(), strict=True))
        while len(self._found) > self.most:
            self._found.popitem(last=False)

    def forget(self) -> None:
        """Remember nothing, as at the start of a run."""
        self._found.clear()

    def state(self) -> dict[str, Tensor]:
        """Return all of it, for a checkpoint: a resumed run then scores the same rows together."""
        pairs = np.frombuffer(b"".join(self._found), np.uint8).reshape(-1, 16)
        rewards = torch.tensor(list(self._found.values()), dtype=torch.float32)
        return {"pairs": torch.from_numpy(pairs.copy()), "rewards": rewards}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.forget()
        self.add([bytes(pair) for pair in state["pairs"].numpy()], state["rewards"])


def pairs_of(rollout: Rollout, rows: Tensor) -> list[bytes]:
    """Return a checksum of 16 bytes for the input and the output of each of `rows`."""
    ids, mask = rollout.completions.completion_ids.cpu(), rollout.completions.completion_mask.cpu()
    inputs = [_checksum(rollout, example) for example in rollout.examples]
    found = []
    for row in rows.tolist():
        pair = inputs[row // rollout.group_size].copy()
        pair.update(ids[row][mask[row]].numpy().tobytes())
        found.append(pair.digest())
    return found


def _checksum(rollout: Rollout, example: Example) -> xxhash.xxh3_128:
    text = (example.text or "").encode()
    found = xxhash.xxh3_128(bytes([DIRECTIONS.index(rollout.direction)]))
    found.update(len(text).to_bytes(8, "little") + text)
    picture = example.pixels if example.image_ids is None else example.image_ids
    if picture is not None:
        found.update(picture.cpu().contiguous().numpy().tobytes())
    return found
