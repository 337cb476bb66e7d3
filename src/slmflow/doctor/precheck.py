"""The checks that take no time, before an entry point begins."""

from collections.abc import Callable, Sequence
from functools import partial

from slmflow import console
from slmflow.config.doctor import Doctor, Kind
from slmflow.config.schema import (
    EvaluateConfig,
    PackagingConfig,
    PredictConfig,
    ServeConfig,
    WeightsPlace,
)
from slmflow.doctor import artifacts
from slmflow.doctor.disk import check_cache
from slmflow.doctor.examine import CHECKS, Check, local_artifacts, not_known
from slmflow.doctor.finding import Finding, Level, NotReady
from slmflow.doctor.subject import at_once
from slmflow.doctor.versions import check_python
from slmflow.errors import UserError

Config = PackagingConfig | EvaluateConfig | ServeConfig | PredictConfig
CHEAP = (
    *(check for check in CHECKS if check.cheap),
    Check("artifacts", lambda subject: local_artifacts(subject.artifacts.result()), cheap=True),
)


def precheck(config: Config, *kinds: Kind, checks: tuple[Check, ...] = CHEAP) -> None:
    """``kinds``: of models that will be made; none where the config does not tell the model's.

    Warnings are noted. Raises ``NotReady`` with the first failure, in the doctor's words.
    """
    own = isinstance(config, PackagingConfig) and config.weights is WeightsPlace.own
    subject = at_once(config.model, config.hardware, config.search, kinds, Doctor().length, own)
    _judge([_look(check.name, partial(check.look, subject)) for check in checks])


def precheck_places() -> None:
    """The same for entry points that make no model: where they read and write."""
    _judge(
        [
            _look("python", check_python),
            _look("cache", check_cache),
            _look("artifacts", lambda: local_artifacts(artifacts.location_here())),
        ]
    )


def _judge(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.level is Level.failure:
            raise NotReady(_told(finding))
    for finding in findings:
        if finding.level is Level.warning and finding.mend:
            console.note(f"! {_told(finding)}")


def _look(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except UserError:
        raise
    except Exception as error:
        return not_known(name, error)


def _told(finding: Finding) -> str:
    return f"{finding.check}: {finding.found}; type {finding.mend}"
