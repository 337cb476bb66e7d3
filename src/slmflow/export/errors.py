"""What a person can act on when a model is exported."""

from slmflow.errors import UserError


class ExportError(UserError):
    """A model that cannot be exported so, or an output that cannot be written."""
