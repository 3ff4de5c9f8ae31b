"""Post-train unified multimodal models on their own dual rewards.

    import viceversa as vv

    model = vv.load("builtin")
    pictures = model.draw(["a red circle"], n=4)
    run = vv.train(model, steps=20, output="runs/mine")

Every public name is imported when it is first used, so that `import viceversa` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from viceversa.api.model import Model, Scores, load
    from viceversa.api.training import Run, train
    from viceversa.api.trl import trl_reward
    from viceversa.config import Config, ConfigError
    from viceversa.rl.algorithms import Algorithm, LossAndSums
    from viceversa.rl.rewards import dual_reward
    from viceversa.rl.rollout import rollout
    from viceversa.rl.selection import Judged
    from viceversa.training.trainer import DualRewardTrainer
    from viceversa.types import Example, Rollout, TrainingRows

    __version__: str

_HOMES = {
    "Algorithm": "viceversa.rl.algorithms",
    "Config": "viceversa.config",
    "ConfigError": "viceversa.config",
    "DualRewardTrainer": "viceversa.training.trainer",
    "Example": "viceversa.types",
    "Judged": "viceversa.rl.selection",
    "LossAndSums": "viceversa.rl.algorithms",
    "Model": "viceversa.api.model",
    "Rollout": "viceversa.types",
    "Run": "viceversa.api.training",
    "Scores": "viceversa.api.model",
    "TrainingRows": "viceversa.types",
    "dual_reward": "viceversa.rl.rewards",
    "load": "viceversa.api.model",
    "rollout": "viceversa.rl.rollout",
    "train": "viceversa.api.training",
    "trl_reward": "viceversa.api.trl",
}

__all__ = [
    "Algorithm",
    "Config",
    "ConfigError",
    "DualRewardTrainer",
    "Example",
    "Judged",
    "LossAndSums",
    "Model",
    "Rollout",
    "Run",
    "Scores",
    "TrainingRows",
    "__version__",
    "dual_reward",
    "load",
    "rollout",
    "train",
    "trl_reward",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("viceversa")
    if name not in _HOMES:
        raise AttributeError(f"module 'viceversa' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
