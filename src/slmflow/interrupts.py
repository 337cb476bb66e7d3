"""Interrupts that are not lost.

Ctrl-C and SIGTERM become a ``KeyboardInterrupt`` in the main thread, wherever it is. Within a
finalizer or the callback of a C library Python prints it and goes on: nobody could end the process
at such a moment, and a sweep's point would outlive its driver.
"""

import _thread  # no locks: a finalizer may run while threading holds its own
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType

SOON = 0.01  # seconds: after the finalizer


def never_lost() -> None:
    """From now on, in this process: one that was ignored is raised once more. What else was
    ignored is shown as before."""
    shown = sys.unraisablehook

    def hook(raised: "sys.UnraisableHookArgs") -> None:
        if raised.exc_type is KeyboardInterrupt:  # which handlers raise in the main thread only
            _raise_again(hook.__code__)
        else:
            shown(raised)

    sys.unraisablehook = hook


@contextmanager
def no_sigterm() -> Iterator[None]:
    """While a run is told how it ended: `mlflow run` sends one behind its own Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    usual = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def _raise_again(hook: CodeType) -> None:
    """By SIGTERM, whatever it means by now: who hears one interrupt alone ignores it already."""
    usual = signal.getsignal(signal.SIGTERM)
    heard: list[bool] = []

    def send() -> None:
        time.sleep(SOON)
        if not heard:
            os.kill(os.getpid(), signal.SIGTERM)

    def again(_: int, at: FrameType | None) -> None:
        if _is_within(hook, at):  # where it would be lost for good
            _thread.start_new_thread(send, ())
            return
        heard.append(True)
        signal.signal(signal.SIGTERM, usual)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, again)
    _thread.start_new_thread(send, ())


def _is_within(code: CodeType, at: FrameType | None) -> bool:
    while at is not None and at.f_code is not code:
        at = at.f_back
    return at is not None
