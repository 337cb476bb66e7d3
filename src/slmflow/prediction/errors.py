"""What ends a job of batch prediction."""

from slmflow.errors import UserError


class PredictionError(UserError):
    """A job that cannot be begun or gone on with, or of which every row failed."""
