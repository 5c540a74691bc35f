"""A program of l2v in a process of its own, which hears of Ctrl-C and other signals through the one that waits."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from l2v.errors import L2VError, Stopped

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def run_program(name: str, arguments: Sequence[str], what: str) -> None:
    """Run ``l2v <name> <arguments>`` to its end.

    The process has its own group, so that Ctrl-C reaches it once, through this one: a second signal would stop it at
    once instead of after saving.

    Args:
        name: of the program.
        arguments: of it.
        what: it is, for an error.

    Raises:
        Stopped: by a signal, of whichever process.
        L2VError: it failed, and has said why.
    """
    process = subprocess.Popen([sys.executable, "-m", f"l2v.cli.{name}", *arguments], process_group=0)
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _STOPPING}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in _STOPPING:
        if number in received or code in (-number, 128 + number):  # it may end before it hears of the signal
            raise Stopped(number, "stopped; the same command goes on from here")
    if code != 0:
        raise L2VError(f"{what} failed (exit code {code}); its message is above")
