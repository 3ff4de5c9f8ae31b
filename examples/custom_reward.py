"""A reward of your own is a function from a rollout to [P, G]: here, how red a picture is."""

import torch

import viceversa as vv


def redness(rollout: vv.Rollout) -> torch.Tensor:
    """Rate P prompts' G pictures each by how much redder than grey they are, from -1 to 1."""
    assert rollout.pixels is not None  # [P * G, 3, H, W] uint8
    red, green, blue = rollout.pixels.float().mean((2, 3)).T / 255
    return (red - (green + blue) / 2).view(-1, rollout.group_size)


def main(steps: int = 20, output: str = "runs/redness", resume: bool = False) -> vv.Run:
    prompts = [f"a {colour} circle" for colour in ("red", "green", "blue", "yellow")]
    return vv.train(
        "builtin",
        prompts=prompts,
        reward=redness,  # several add up: {redness: 1.0, "dual": 0.1}
        schedule="t2i",
        steps=steps,
        output=output,
        resume=resume,
        options={"data.prompts_per_step": 4},
    )


if __name__ == "__main__":
    main()
