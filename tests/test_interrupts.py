"""Ctrl-C and SIGTERM end a process also where Python would have gone on."""

import signal
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import ROOT

# As GitPython's, which MLflow uses for every run: it waits in a finalizer.
IN_A_FINALIZER = """
    import os, signal, sys, time
    from slmflow.interrupts import never_lost

    class Repository:
        def __del__(self):
            if sent := numbers.pop():
                os.kill(os.getpid(), sent)
            time.sleep(0.1)
            print("the finalizer goes on", flush=True)

    def interrupt(*_):
        raise KeyboardInterrupt

    def interrupt_once(*_):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    handlers = {"python": signal.default_int_handler, "each": interrupt, "one": interrupt_once}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handlers[sys.argv[2]])
    usual = signal.getsignal(signal.SIGTERM)
    never_lost()
    numbers = [int(number) for number in sys.argv[3:]] + [int(sys.argv[1])]
    try:
        while numbers:
            held = Repository()
            del held
        time.sleep(20)
    except KeyboardInterrupt:
        kept = usual if sys.argv[2] != "one" else signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == kept
        time.sleep(0.2)  # no second one comes
        print("interrupted")
"""


@pytest.mark.parametrize("handler", ["python", "each", "one"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("more", [(), ("0",)], ids=["once", "twice"])
def test_an_interrupt_within_a_finalizer_is_heard(
    sent: signal.Signals, handler: str, more: tuple[str, ...]
) -> None:
    """``twice``: where it is raised once more, there is another finalizer."""
    result = ran(IN_A_FINALIZER, str(int(sent)), handler, *more)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "interrupted\n"
    assert result.stderr == "", "nor is it shown as if it were ignored"


def test_what_else_a_finalizer_raises_is_still_shown() -> None:
    result = ran(
        """
        from slmflow.interrupts import never_lost

        class Broken:
            def __del__(self):
                raise ValueError("told")

        never_lost()
        Broken()
        print("done")
        """
    )
    assert (result.returncode, result.stdout) == (0, "done\n")
    assert "ValueError: told" in result.stderr


def test_a_sigterm_does_not_cut_short_what_a_run_is_told_of_its_end() -> None:
    result = ran(
        """
        import os, signal
        from slmflow.interrupts import no_sigterm

        signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
        with no_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            print("told", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    assert (result.returncode, result.stdout) == (0, "told\nheard\n")


def ran(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        cwd=ROOT / "src",
        capture_output=True,
        text=True,
        timeout=60,
    )
