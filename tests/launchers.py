"""Stand-ins for the programs that scripts of the documents call: smaller, and here.

A script finds them on its PATH and is run as it stands: on one machine for eight, in two processes
for eight, for fewer steps, with a tiny model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
#: In place of eight machines of eight GPUs.
FEWER = {
    "torchrun": {"--nnodes": "1", "--nproc-per-node": "2", "--rdzv-endpoint": "localhost:0"},
    "accelerate": {"--num_processes": "2"},
}
PROGRAMS = {
    "torchrun": "launchers.torchrun",
    "accelerate": "launchers.accelerate",
    "viceversa": "launchers.viceversa",
    "pytest": "launchers.pytest",
    "python": "launchers.benchmark",
}
#: `srun` starts its command once, `scontrol` names this machine.
SHELL = {"srun": 'exec "$@"', "scontrol": "echo localhost"}


def fewer(words: list[str], program: str) -> list[str]:
    """Return a launcher's words with the values of `FEWER`."""
    small = FEWER[program]
    return [small.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def torchrun() -> None:
    from torch.distributed.run import main

    words = fewer(sys.argv[1:], "torchrun")
    # on a port of its own: tests run beside each other
    main(words if "--rdzv-endpoint" in words else ["--standalone", *words])


def accelerate() -> None:
    from accelerate.commands.accelerate_cli import main

    # on a CPU alone it starts one process, unless it is told of GPUs
    sys.argv[1:] = [
        "launch",
        "--multi_gpu",
        "--main_process_port",
        "0",
        *fewer(sys.argv[2:], "accelerate"),
    ]
    main()


def viceversa() -> None:
    """Run a command for fewer steps, with checkpoints and models that are there."""
    from snippets import shortened
    from viceversa.cli import main

    raise SystemExit(main(shortened(sys.argv[1:], Path.cwd())))


def pytest() -> None:
    """Run the tests with a model that is there in place of the reader's own."""
    words = ["emu3" if word == "mine" else word for word in sys.argv[1:]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    raise SystemExit(subprocess.run(command, cwd=ROOT).returncode)


def benchmark() -> None:
    """Run a benchmark with the bundled model, once."""
    few = ["--size", "builtin", "--prompts", "2", "--rounds", "1"]
    command = [sys.executable, *sys.argv[1:], *few]
    raise SystemExit(subprocess.run(command, cwd=ROOT).returncode)


def run_script(text: str, folder: Path) -> int:
    """Run a shell script in `folder`; return its exit code."""
    programs = folder / "stand-ins"
    programs.mkdir(exist_ok=True)
    python = f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(HERE)!r})\n"
    bodies = {
        name: f"{python}import launchers\n{called}()\n" for name, called in PROGRAMS.items()
    } | {name: f"#!/bin/sh\n{body}\n" for name, body in SHELL.items()}
    for name, body in bodies.items():
        (programs / name).write_text(body)
        (programs / name).chmod(0o755)
    (folder / "script.sh").write_text(text)
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "localhost",
    }
    command = ["bash", "-e", "-o", "pipefail", "script.sh"]
    return subprocess.run(command, cwd=folder, env=env, timeout=900).returncode
