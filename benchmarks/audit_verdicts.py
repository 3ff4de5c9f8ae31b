"""`viceversa audit` on three bases, before any of them is trained on: verdicts to be tested.

    git archive a6d4f98 src/viceversa/assets/tiny-janus | tar -x -C former
    python benchmarks/audit_verdicts.py --former former/src/viceversa/assets/tiny-janus

Bases: `bundled`, the model that comes with the package; `former`, the one that came before, which
draws badly and reads well; `damaged`, the bundled one with noise on its head that writes text
(`lm_head`), and so reads: each weight plus a normal draw (seed 0) of DAMAGE times the standard
deviation of the head's weights.
Each is audited on 20 specs a kind of the built-in world with the plain reward, on the CPU.
Writes benchmarks/audit_verdicts.json, which was committed before any training on these three was
held against it. How training went on `bundled` and on `former` was known when the rules were
written (LOG.md); only `damaged` was not, so it alone is a test that could not be fitted to.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from viceversa.cli import main
from viceversa.config import ModelConfig
from viceversa.models import load_adapter

RESULTS = Path(__file__).with_suffix(".json")
#: Of the standard deviation of the head's weights.
DAMAGE = 0.5


def damaged(folder: Path) -> str:
    """Save the bundled model with noise on the weights of its text head."""
    adapter = load_adapter(ModelConfig())
    weight = adapter.model.lm_head.weight.data
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight += DAMAGE * weight.std() * noise
    adapter.model.save_pretrained(folder)
    adapter.processor.save_pretrained(folder)
    return str(folder)


def audited(model: str, inputs: int, folder: Path) -> dict[str, Any]:
    """Audit a model; what the command writes, without the model's place."""
    output = folder / "audit.json"
    if main(["audit", model, "--inputs", str(inputs), "--output", str(output)]):
        raise SystemExit(f"the audit of {model} failed")
    found = json.loads(output.read_text(encoding="utf-8"))
    del found["model"]
    return found


def run() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--former", required=True, help="the folder of the former bundled model")
    parser.add_argument("--inputs", type=int, default=140)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        bases = {
            "bundled": "builtin",
            "former": args.former,
            "damaged": damaged(folder / "damaged"),
        }
        found = {name: audited(model, args.inputs, folder) for name, model in bases.items()}
    args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, record in found.items():
        verdict = record["verdict"]
        print(f"{name}: train {verdict['train']}, i2t_weight {verdict['i2t_weight']}")


if __name__ == "__main__":
    run()
