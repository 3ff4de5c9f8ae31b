"""Draw, caption and score with a model, train it on its own rewards, and draw again."""

from typing import Any

import viceversa as vv


def main(steps: int = 20, output: str = "runs/first-steps", **options: Any) -> vv.Run:
    model = vv.load("builtin")  # or a folder in Hugging Face layout, or a hub name
    (pictures,) = model.draw(["a red circle and a blue square"], n=4)
    print(model.caption(pictures, best_of=8))
    print(model.score(["a red circle and a blue square"] * 4, pictures))

    run = vv.train(model, steps=steps, output=output, options=options)
    model.draw(["a red circle and a blue square"])[0][0].save(f"{output}/after.png")
    print(run.checkpoint, run.report, run.metrics[-1]["t2i/reward_mean"])
    return run


if __name__ == "__main__":
    main()
