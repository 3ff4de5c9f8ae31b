"""Run a script or a module in two processes, as torchrun does, after importing once what both need.

`python forked.py SCRIPT ARGUMENT ...` or `python forked.py -m MODULE ARGUMENT ...`. It leaves with
the first exit code that is not zero, after stopping the other process.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import sys
from pathlib import Path

import viceversa.training.run  # noqa: F401  # most of a small run's time is this import

PROCESSES = 2


def start(rank: int, port: int) -> int:
    """Fork one process; return its id in the parent."""
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    _, name, *arguments = sys.argv
    if name == "-m":
        name, *arguments = arguments
        sys.argv = [name, *arguments]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [name, *arguments]
        sys.path[0] = str(Path(name).parent)
        runpy.run_path(name, run_name="__main__")
    raise SystemExit


def main() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = {start(rank, port) for rank in range(PROCESSES)}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    code = 0
    try:
        while running and not code:
            pid, status = os.wait()
            running.discard(pid)
            code = os.waitstatus_to_exitcode(status)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
    raise SystemExit(code and 1)


if __name__ == "__main__":
    main()
