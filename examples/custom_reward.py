"""A reward of your own is a function from a rollout to [P, G]: here, how red a picture is."""

import torch

import viceversa as vv


def redness(rollout: vv.Rollout) -> torch.Tensor:
    """Rate P prompts' G pictures each by the mean of their red channel, from 0 to 1."""
    assert rollout.pixels is not None  # [P * G, 3, H, W] uint8
    red = rollout.pixels[:, 0].float().mean((1, 2)) / 255
    return red.view(-1, rollout.group_size)


def main(steps: int = 20, output: str = "runs/redness", resume: bool = False) -> vv.Run:
    prompts = [f"a {colour} circle" for colour in ("red", "green", "blue", "yellow")]
    return vv.train(
        "builtin",
        prompts=prompts,
        reward={redness: 1.0, "dual": 0.1},  # several add up; one alone: reward=redness
        schedule="t2i",
        steps=steps,
        output=output,
        resume=resume,
        options={"data.prompts_per_step": 4},
    )


if __name__ == "__main__":
    main()
