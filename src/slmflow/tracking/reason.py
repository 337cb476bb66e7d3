"""MLflow's errors in few words."""

import re

from slmflow.redaction import redacted

CAUSE = re.compile(r"\[Errno -?\d+\] [^'\")]+")  # at the bottom of what its HTTP client tells
REFUSED = re.compile(r"(?:failed with error code (40[13]) )|(?:\b(40[13]) Client Error)")


def reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    cause = CAUSE.search(text)
    return refused(error) or redacted(cause.group(0) if cause else text.splitlines()[0])


def refused(error: Exception) -> str | None:
    """What to do where a server with accounts lets this one not in, or not that far; else None."""
    found = REFUSED.search(str(error))
    if found is None:
        return None
    if "401" in found.groups():
        return (
            "HTTP 401: it does not know this user name with this password; set both, "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write them to "
            "~/.mlflow/credentials"
        )
    return (
        f"HTTP 403: it does not permit this to {_account()}; ask whoever runs the server for the "
        "permission EDIT, or name an experiment of your own (MLFLOW_EXPERIMENT_NAME)"
    )


def _account() -> str:
    from mlflow.utils.credentials import read_mlflow_creds  # late: the rest needs no MLflow

    return read_mlflow_creds().username or "this account"
