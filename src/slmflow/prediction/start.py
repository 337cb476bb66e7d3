"""The entry point predict, within its run: to the end, the record and the exit code."""

from slmflow.prediction.job import demand_no_job
from slmflow.prediction.predict import Asked, demand_one_answer
from slmflow.prediction.predict import predict as answer_all
from slmflow.prediction.record import log_job
from slmflow.prediction.show import show_job

__all__ = ["Asked", "demand_no_job", "predict"]


def predict(asked: Asked) -> None:
    """Raises ``UserError`` where the job cannot be done, or every row failed."""
    summary = answer_all(asked)
    log_job(summary, asked.input)
    show_job(summary)
    demand_one_answer(summary)
