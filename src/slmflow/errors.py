"""Errors that a person can act on. ``cli`` prints them as one message and exits with 1.

UserError
├── ConfigError      a key, value, option or combination that cannot work
├── HardwareError    the chosen target is not on this machine
├── SourceError      weights that cannot be fetched or found
├── BuildError       the ONNX model builder failed
├── CheckError       the packaged model did not pass its check
├── DataError        rows that cannot be read (an evaluation set, the input of predict)
├── TrackingError    the tracking server or registry cannot do what is asked
│   ├── ServerAway   it did not answer for as long as was waited
│   └── SecretRecorded  it was told a secret, which it cannot forget (tracking/recorded.py)
├── ServeError       a model that cannot be served, or an address that cannot be listened on
├── PredictionError  a batch prediction that cannot be begun or gone on with (prediction/errors.py)
├── ExportError      a model that cannot be exported so, or its output (export/errors.py)
├── NotReady         this machine cannot do what is configured (doctor/finding.py)
├── RerunDiffers     with rerun.strict=true, a result that is not what it was (replay/start.py)
├── PointsFailed     points of a sweep that did not finish (sweeps/drive.py)
├── SchedulerError   Slurm refuses, or does not answer (sweeps/scheduler.py)
├── JobLost          a job that ended without a result (sweeps/scheduler.py)
├── TimeIsUp         the time limit of a job is near (sweeps/jobs.py)
└── AskError         a packaged model did not load or died (answering/ask.py)
"""

INTERRUPTED = 130  # the exit code: 128 + SIGINT, as shells report it


class UserError(Exception):
    """What was given, what is allowed, what to type next."""


class ConfigError(UserError):
    """A key, value, option or combination that cannot work."""


class HardwareError(UserError):
    """The chosen target is not on this machine."""


class SourceError(UserError):
    """Weights that cannot be fetched or found."""


class BuildError(UserError):
    """The ONNX model builder failed."""


class CheckError(UserError):
    """The packaged model did not pass its check."""


class DataError(UserError):
    """Rows that cannot be read: an evaluation set, the input of predict."""


class TrackingError(UserError):
    """The tracking server or registry cannot do what is asked."""


class ServerAway(TrackingError):
    """The tracking server did not answer for as long as was waited."""


class ServeError(UserError):
    """A model that cannot be served, or an address that cannot be listened on."""


def first_line(error: BaseException) -> str:
    """What it says, in short; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
