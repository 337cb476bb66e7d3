"""Parameters and tags as MLflow takes them: short. What is longer is an artifact, never cut."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from slmflow.redaction import redacted, redacted_overrides

FOLDER = "parameters"  # of the artifacts that hold long values
TAGS = "tags"  # the same, of tags
CUT = "slmflow.parameters.cut"  # on a run whose parameters MLflow has cut: where they are whole
ERROR = "slmflow.error"
ERROR_FILE = "error.txt"
LONGEST_TAG = 5000  # characters that every server takes
REFUSED = re.compile(r"(?:limit of|maximum length of) (\d+)")  # MLflow's words, old and new


def log_parameters(values: Mapping[str, str], limit: int = MAX_PARAM_VAL_LENGTH) -> None:
    """A longer value than the server takes is the artifact ``parameters/KEY.txt``, which the
    parameter names."""
    short = {key: value for key, value in values.items() if len(value) <= limit}
    long = {key: value for key, value in values.items() if key not in short}
    for key, value in long.items():
        mlflow.log_text(value, place_of(key))
        short[key] = f"{len(value)} characters, in the artifact {place_of(key)}"
    try:
        mlflow.log_params(short)
    except MlflowException as error:
        told = REFUSED.search(str(error))
        if told is None or int(told[1]) >= limit:
            raise
        log_parameters(values, int(told[1]))


def place_of(key: str, folder: str = FOLDER) -> str:
    return f"{folder}/{re.sub(r'[^A-Za-z0-9._-]', '_', key)}.txt"


def cut(
    known: Mapping[str, str], values: Mapping[str, str], overrides: Sequence[str]
) -> dict[str, str]:
    """Whole: what ``mlflow run`` had logged, ``known``, as long as MLflow takes it, by key.

    As it is composed, ``values``, else as it was typed. What was typed need not begin as what is
    composed, so that the length decides.
    """
    typed = dict(one.lstrip("+").partition("=")[::2] for one in redacted_overrides(overrides))
    whole = {**typed, **values}
    return {
        key: whole[key]
        for key, recorded in known.items()
        if key in whole
        and (len(recorded) >= MAX_PARAM_VAL_LENGTH or len(whole[key]) > MAX_PARAM_VAL_LENGTH)
    }


def log_cut(whole: Mapping[str, str]) -> None:
    """As artifacts. A parameter stays as it is on a server, so that a tag names them."""
    if not whole:
        return
    run = mlflow.active_run()
    assert run is not None
    for key, value in whole.items():
        mlflow.log_text(value, place_of(key))
    set_tag(run.info.run_id, CUT, " ".join(map(place_of, sorted(whole))), MlflowClient())


def set_tag(run_id: str, name: str, value: str, client: MlflowClient) -> None:
    """A longer value than every server takes is the artifact ``tags/NAME.txt``, which the tag
    names; ``whole_tag`` reads either."""
    if len(value) > LONGEST_TAG:
        place = place_of(name, TAGS)
        client.log_text(run_id, value, place)
        value = f"{len(value)} characters, in the artifact {place}"
    client.set_tag(run_id, name, value)


def whole_tag(run: Run, name: str, client: MlflowClient) -> str:
    value: str = run.data.tags[name]
    place = place_of(name, TAGS)
    if not value.endswith(f" characters, in the artifact {place}"):
        return value
    return Path(client.download_artifacts(run.info.run_id, place)).read_text("utf-8")


def log_error(message: str, run_id: str, client: MlflowClient | None = None) -> None:
    """Why the run failed. The first characters as a tag, a longer one as an artifact."""
    client = client or MlflowClient()
    message = redacted(message)
    if len(message) > LONGEST_TAG:
        client.log_text(run_id, message, ERROR_FILE)
        rest = f"... (all of it: the artifact {ERROR_FILE})"
        message = message[: LONGEST_TAG - len(rest)] + rest
    client.set_tag(run_id, ERROR, message)
