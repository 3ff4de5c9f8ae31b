"""Train a captioner of any kind with TRL on the dual reward: how likely a unified model, the judge,
finds the picture given its caption. `pip install trl`."""

from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from trl import GRPOConfig, GRPOTrainer

import viceversa as vv


def main(
    folder: str,
    captioner: Any = "Qwen/Qwen2.5-VL-3B-Instruct",
    processor: Any = None,
    judge: str = "deepseek-community/Janus-Pro-1B",
    **settings: Any,
) -> GRPOTrainer:
    files = sorted(str(path) for path in Path(folder).iterdir())
    asked = [{"role": "user", "content": "Describe the image in one sentence."}]
    data = Dataset.from_dict({"prompt": [asked] * len(files), "image": files})
    trainer = GRPOTrainer(
        captioner,
        reward_funcs=vv.trl_reward(vv.load(judge)),
        args=GRPOConfig(output_dir="runs/trl", **settings),
        train_dataset=data.cast_column("image", Image()),
        processing_class=processor,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main("photos")
