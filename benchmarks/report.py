"""How long the report of a run with thousands of pictures takes to open, in a headless Chromium.

    python benchmarks/report.py --pictures 2000 --side 384

Needs chromium and chromedriver. A page that links its pictures, and the same page with the pictures
inside; each is opened several times in turn. `painted` is when the first words or pictures were on
the screen, `loaded` when the page and the pictures of its first screen were there, in seconds after
the address was entered.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from viceversa.report.page import write_report

#: After the load event, whose end is not known before it returns.
TIMES = """
await new Promise((done) => setTimeout(done, 100));
const [page] = performance.getEntriesByType("navigation");
const paint = performance.getEntriesByName("first-contentful-paint")[0];
return [paint ? paint.startTime : NaN, page.loadEventEnd];
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--side", type=int, default=384, help="pixels")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", given.pictures, given.side)
        pages = {"linked": write_report(run), "inside": write_report(run, single_file=True)}
        times = {kind: [] for kind in pages}
        for _ in range(given.rounds):
            for kind, page in pages.items():
                times[kind].append(opened(page))
        for kind, page in pages.items():
            painted, loaded = (median(column) / 1000 for column in zip(*times[kind], strict=True))
            size = page.stat().st_size / 1e6
            print(f"{kind}: {size:.1f} MB, painted {painted:.2f} s, loaded {loaded:.2f} s")


def make_run(run: Path, pictures: int, side: int) -> Path:
    """Write a run folder with half of the pictures before training and half after."""
    rows: list[dict[str, Any]] = [
        {"direction": "t2i", "input_text": f"prompt {i}"}
        | {who: {"image": f"samples/{who}-{i}.png"} for who in ("base", "tuned")}
        for i in range(pictures // 2)
    ]
    (run / "samples").mkdir(parents=True)
    (run / "samples/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    noise = np.random.default_rng(0)
    for name in (row[who]["image"] for row in rows for who in ("base", "tuned")):
        blocks = Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        blocks.resize((side, side)).save(run / name)
    return run


def opened(page: Path) -> tuple[float, float]:
    """Open a page in a new browser, and return its first paint and its load event, ms."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from browser import chromium, show  # pyright: ignore[reportMissingImports]

    with chromium() as driver:
        show(driver, page)
        painted, loaded = driver.execute_script(TIMES)
    return painted, loaded


if __name__ == "__main__":
    main()
