"""What libraries log, and the stack traces of bugs, without secrets."""

import logging
import os
import sys
import threading
import traceback
from types import TracebackType

from slmflow.redaction import holds_secret, redacted


def redact_output() -> None:
    """From now on, in this process."""
    sys.excepthook = _show_trace
    threading.excepthook = _show_trace_of_thread
    sys.unraisablehook = _show_unraisable
    logging.setLogRecordFactory(_Record)
    if holds_secret(os.environ.get("MLFLOW_TRACKING_URI", "")):  # MLflow prints links with it
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


class _Record(logging.LogRecord):
    """Of any library: what it says of a failure may repeat a URL or a variable."""

    def getMessage(self) -> str:
        if self.exc_info and not self.exc_text:
            self.exc_text = redacted(logging.Formatter().formatException(self.exc_info))
        return redacted(super().getMessage())


def _show_trace(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    told = "".join(traceback.format_exception(kind, error, trace))
    print(redacted(told), file=sys.stderr, end="")


def _show_trace_of_thread(raised: "threading.ExceptHookArgs") -> None:
    if raised.exc_type is not SystemExit:
        name = "" if raised.thread is None else f" {raised.thread.name}"
        print(redacted(f"Exception in thread{name}:"), file=sys.stderr)
        _show_trace(raised.exc_type, raised.exc_value, raised.exc_traceback)


def _show_unraisable(raised: "sys.UnraisableHookArgs") -> None:
    """Of what Python calls itself: the end of an object, a generator that nobody closed."""
    where = f"{raised.err_msg or 'Exception ignored in'}: {raised.object!r}"
    print(redacted(where), file=sys.stderr)
    _show_trace(raised.exc_type, raised.exc_value, raised.exc_traceback)
