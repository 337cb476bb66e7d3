"""How a point of a sweep does so far, for the sweep that may stop it half-way."""

import os

from mlflow.tracking import MlflowClient

FOLLOWED = "SLMFLOW_FOLLOWED_RUN"  # in the environment: the run id of the point
SO_FAR = "so_far/"  # how the names of such metrics begin; the step is the number of rows
PRUNED = "slmflow.sweep.pruned"  # the tag by which the sweep stops the point, and says why


class Pruned(KeyboardInterrupt):
    """The sweep wants no more of this point: its runs end KILLED."""


def report(metric: str, mean: float, rows: int) -> None:
    """Tell the mean over the rows so far. Raises ``Pruned`` where the sweep has seen enough.

    Does nothing where no sweep follows.
    """
    run_id = os.environ.get(FOLLOWED)
    if run_id is None:
        return
    client = MlflowClient()
    client.log_metric(run_id, f"{SO_FAR}{metric}", mean, step=rows)
    why = client.get_run(run_id).data.tags.get(PRUNED)
    if why is not None:
        raise Pruned(why)
