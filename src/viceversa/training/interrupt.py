"""Stopping a run by Ctrl-C, SIGTERM or SIGHUP, so that it can be resumed, in all its processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPING = "stopping: this step is finished and a checkpoint saved; {} once more stops at once"
#: A scheduler signals torchrun and the processes that it started, and torchrun passes the signal on
#: to them: the same signal again within so many seconds is a copy, and not a second request.
COPY_SECONDS = 5.0


class Interrupted(KeyboardInterrupt):
    """Raised where a run stops; `signum` is the signal that asked for it."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class Interrupt:
    """While entered, a signal stops the run: at once, or, while deferred, at the end of the step.

    A second signal stops it at once. Where SIGHUP was ignored, as `nohup` has it, it stays so.
    """

    def __init__(self) -> None:
        self.received = 0
        """The signal that this process got; 0 before it gets one."""
        self.agreed = 0
        """The signal for which all processes stop at the end of one step."""
        self._received_at = 0.0
        self._tell: Callable[[str], None] | None = None  # while deferred
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []

    @property
    def asked(self) -> int:
        return self.received or self.agreed

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
            for signum in SIGNALS:
                if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.agreed and _several():  # torchrun ends the others as soon as one has left
            with suppress(RuntimeError):  # at once, on a second signal
                dist.barrier()
        for signum, handler in self._previous.items():
            signal.signal(signum, handler or signal.SIG_DFL)  # None: not set by Python

    def _handle(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGHUP:
            self._leave_terminals()
        if self._is_copy(signum):
            return
        second = self.received
        self.received, self._received_at = signum, time.monotonic()
        if second or (self._tell is None and not self.agreed):
            raise Interrupted(signum)
        if not self.agreed:
            self._say(signum)

    def _is_copy(self, signum: int) -> bool:
        soon = time.monotonic() - self._received_at < COPY_SECONDS
        return soon and signum == self.received and "TORCHELASTIC_RUN_ID" in os.environ

    def _leave_terminals(self) -> None:
        """Print to nowhere from now on: to write to a terminal that hung up is an error."""
        null = os.open(os.devnull, os.O_WRONLY)
        for terminal in self._terminals:
            os.dup2(null, terminal)
        os.close(null)

    def _say(self, signum: int) -> None:
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        if self._tell is not None:
            with suppress(RuntimeError):  # in the middle of another print
                self._tell(STOPPING.format(name))

    @contextmanager
    def deferred(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Say by `tell` that a signal came, let the step end, and raise Interrupted after it."""
        self._tell = tell
        try:
            yield
        finally:
            self._tell = None
        if self.asked:
            raise Interrupted(self.asked)

    def agree(self, device: torch.device) -> bool:
        """Tell whether any process was asked to stop. All call this at once and get one answer."""
        asked = self.received  # a signal that comes while they talk waits for the next step
        if _several():
            most = torch.tensor(asked, device=device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            if not asked and most:
                self._say(int(most))
            asked = int(most)
        self.agreed = asked
        return bool(asked)


def _several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


class StopTogether(TrainerCallback):
    """Once a process was asked to stop: all save after the same step, and stop.

    With several updates of one rollout it is the last of them, from which a run resumes exactly.
    """

    def __init__(self, interrupt: Interrupt, updates: int):
        self.interrupt, self.updates = interrupt, updates

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.updates == 0 and self.interrupt.agree(args.device):
            control.should_training_stop = control.should_save = True
