"""What a person types and a run records: paths and addresses that hold no credentials."""

import re

from slmflow.errors import ConfigError
from slmflow.redaction import holds_secret

QUERY = re.compile(r"://.*\?.*=")  # a signature, whatever it is called


def check_loggable(key: str, place: str | None) -> None:
    """Raises ``ConfigError`` for a place with credentials in it: it is told, and logged."""
    if place is not None and (holds_secret(place) or QUERY.search(place)):
        raise ConfigError(
            f"{key} has credentials in its URL (a password before @, or a query behind ?), which "
            "would be logged; give the URL without them, and the credentials as the package of "
            "its protocol reads them: environment variables or its own file"
        )
