"""The `viceversa` command. A wrong option or input is one clear error and exit code 2, before any
work."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from errno import ENAMETOOLONG
from typing import Any

import tyro

from viceversa.cli.audit import audit
from viceversa.cli.benchmarks import benchmark
from viceversa.cli.models import evaluate, export, merge, pretrain
from viceversa.cli.outputs import caption, draw, score
from viceversa.cli.runs import plan, report, train
from viceversa.cli.sharing import push
from viceversa.config import ConfigError, blamed
from viceversa.files import StorageError

COMMANDS = {
    "train": train,
    "plan": plan,
    "evaluate": evaluate,
    "audit": audit,
    "draw": draw,
    "caption": caption,
    "score": score,
    "benchmark": benchmark,
    "merge": merge,
    "export": export,
    "push": push,
    "pretrain": pretrain,
    "report": report,
}


def _parse(arguments: Sequence[str]) -> Callable[[], int]:
    """Return the command that is asked for, not yet run.

    tyro prints what is wrong with the arguments, or the help, and raises SystemExit.
    """
    return tyro.extras.subcommand_cli_from_dict(
        {name: _deferred(command) for name, command in COMMANDS.items()},
        prog="viceversa",
        description="Post-train unified multimodal models on their own rewards.",
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
    )


def _deferred(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Bind a command's arguments without running it: tyro takes its ValueErrors for its own."""

    @functools.wraps(command)
    def chosen(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(command, *args, **kwargs)

    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    1 for a failure during work, 2 for wrong inputs, 128 and its number for a signal. Raises
    SystemExit, with code 2 for wrong options and 0 for --help.
    """
    try:
        return _parse(sys.argv[1:] if argv is None else argv)()
    except KeyboardInterrupt as stopped:
        signum = getattr(stopped, "signum", signal.SIGINT)
        by = "" if signum == signal.SIGINT else f" by {signal.Signals(signum).name}"
        print(f"viceversa: interrupted{by}", file=sys.stderr)
        return 128 + signum
    except Exception as error:
        if (ending := _ending(error)) is None:
            raise
        code, told = ending
        print(f"viceversa: {told}", file=sys.stderr)
        return code


def _ending(error: Exception) -> tuple[int, str] | None:
    """Return the exit code for an error and the line that says it.

    None for one that comes from no input, reward or machine of the user's.
    """
    line = " ".join(str(error).split())
    if isinstance(error, ConfigError):
        return 2, line
    if note := blamed(error):
        return 1, f"{note}: {type(error).__name__}: {line}"
    # a name too long is no file's, wherever it was asked for
    if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) == ENAMETOOLONG:
        return 2, line
    if isinstance(error, FloatingPointError | MemoryError | StorageError):
        return 1, str(error)
    return None


def entry() -> None:
    """Run a command and end the process with its exit code.

    One of several processes ends without the interpreter's teardown: there, now and then, a thread
    of torch.distributed aborts a process whose work is done.
    """
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


__all__ = ["COMMANDS", "entry", "main", "plan"]
