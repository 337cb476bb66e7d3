"""The entry point doctor: look at everything, tell it, and fail where something cannot work."""

import time

from slmflow.config.doctor import DoctorConfig
from slmflow.config.schema import WeightsPlace
from slmflow.doctor.examine import examine
from slmflow.doctor.finding import Level, NotReady
from slmflow.doctor.show import as_json, show
from slmflow.doctor.subject import begin

LEAST = 0.5  # seconds for the checks, where starting took nearly all of the time


def start(config: DoctorConfig) -> None:
    """Raises ``NotReady`` where a check failed."""
    settings = config.doctor
    left = max(settings.seconds - _running(), LEAST)
    subject = begin(
        config.model,
        config.hardware,
        config.search,
        tuple(settings.kinds),
        settings.length,
        left,
        config.weights is WeightsPlace.own,
    )
    findings = examine(subject, left)
    if settings.json:
        print(as_json(findings, _running()))
    else:
        show(findings)
    failed = [finding.check for finding in findings if finding.level is Level.failure]
    if failed:
        raise NotReady(f"{', '.join(failed)}: this machine is not ready for what is configured")


def _running() -> float:
    """Seconds since this process was started: what the person has been waiting for."""
    import psutil

    return max(0.0, time.time() - psutil.Process().create_time())
