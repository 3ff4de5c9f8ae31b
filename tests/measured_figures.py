"""What eval.json holds after a run, for tests: on the built-in world, and on held-out inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from viceversa.scenes.evaluate import by_kind

N = 200


def accuracy(share: float) -> dict[str, Any]:
    right = [bool(r) for r in np.arange(N) < share * N]
    return by_kind(["two"] * N, right, [str(i) for i in range(N)])


WORLD = {
    "base": {"t2i": accuracy(0.5), "i2t": accuracy(0.6), "questions": accuracy(0.9)},
    "tuned": {"t2i": accuracy(0.75), "i2t": accuracy(0.4), "questions": accuracy(0.9)},
}


def likelihood(base: float, tuned: float, half: float) -> dict[str, Any]:
    change = {"value": tuned - base, "low": tuned - base - half, "high": tuned - base + half}
    return {"training": {"base_likelihood": {"base": base, "tuned": tuned, "change": change}}}


HELD_OUT = {
    "held_out": {
        "verdict": "better",
        "sentence": "Drawing got better by the base's own judgement. Look at the outputs.",
        "t2i": {"verdict": "better", **likelihood(-3.0, -2.5, 0.1)},
        "i2t": {"verdict": "unchanged", **likelihood(-4.0, -4.01, 0.2)},
    }
}
