"""What an evaluation needs from its config, and its end: report, promotion, exit code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slmflow import console
from slmflow.checkout import PROJECT_ROOT
from slmflow.config.schema import Data, EvaluateConfig, MainConfig
from slmflow.evaluation.candidates import check_addresses
from slmflow.evaluation.data.dataset import Dataset, open_dataset
from slmflow.evaluation.data.origin import MLFLOW
from slmflow.evaluation.decide import carry_out, check_measured, decide, with_incumbent
from slmflow.evaluation.evaluate import evaluate_models
from slmflow.evaluation.gate import GateRefused
from slmflow.evaluation.record import log_evaluation, log_report, report_place
from slmflow.evaluation.results import Evaluation
from slmflow.tracking.registry import champion_of

BY_ALIAS = "the version that the champion's alias points at"

__all__ = [
    "BY_ALIAS",
    "check_addresses",
    "compare",
    "demand_one_that_passed",
    "figures",
    "open_data",
    "show",
]


def open_data(data: Data) -> Dataset:
    """Raises ``DataError`` with every bad row."""
    name = data.name or Path(data.path.removeprefix(MLFLOW)).stem
    return open_dataset(name, data.path, data.limit, data.seed)


def compare(
    uris: Sequence[str],
    dataset: Dataset,
    config: EvaluateConfig | MainConfig,
    parameters: Mapping[str, Any],
    incumbent: str | None = BY_ALIAS,
) -> Evaluation:
    """Evaluate, judge, and move the champion's alias where that is asked and earned.

    ``incumbent``: the URI of the version in use that a gate judges beside; None: there is none.
    """
    alias = champion_of(config.hardware.target.value, config.task.name.value)
    if config.gate is not None:
        check_measured(config.gate, config.speed)
        if incumbent == BY_ALIAS:
            uris, incumbent = with_incumbent(uris, alias, config.promote)
        elif incumbent is not None:
            uris = [incumbent, *(uri for uri in uris if uri != incumbent)]
    prompts = PROJECT_ROOT / Path(config.speed.prompts).expanduser()
    evaluation = evaluate_models(uris, dataset, config, parameters, prompts)
    if config.gate is not None:
        evaluation = decide(evaluation, config.gate, alias, incumbent)
    with console.step("write the report") as told:
        log_evaluation(evaluation)
        told.append(report_place())
    if config.promote:
        evaluation = carry_out(evaluation)
        log_report(evaluation)
    return evaluation


def figures(evaluation: Evaluation) -> dict[str, float]:
    """Of the candidate, which is the last one: what the others are there to be compared with."""
    return {name: figure.value for name, figure in evaluation.candidates[-1].figures.items()}


def demand_one_that_passed(evaluation: Evaluation) -> None:
    """Raise ``GateRefused`` where a gate let none pass."""
    decision = evaluation.decision
    if decision is not None and decision.chosen is None:
        raise GateRefused(decision)


def show(evaluation: Evaluation) -> None:
    from slmflow.evaluation.show import show_evaluation  # late, as the report is

    show_evaluation(evaluation)
