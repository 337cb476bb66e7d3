"""Where models and reports are kept: reached and written to."""

import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from slmflow.doctor import database, folder, server
from slmflow.doctor.finding import Finding, failure, ok, warning
from slmflow.doctor.stores import DEFAULT_ARTIFACTS, kind_of, local_path, tracking_uri
from slmflow.doctor.versions import pip
from slmflow.redaction import redacted

CLIENTS = {
    "s3": ("boto3", "install boto3"),
    "gs": ("google.cloud.storage", "install google-cloud-storage"),
    "wasbs": ("azure.storage.blob", "install azure-storage-blob azure-identity"),
    "abfss": ("azure.storage.filedatalake", "install azure-storage-file-datalake"),
}
S3_CREDENTIALS = "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..."
S3_MENDS = {
    "NoSuchBucket": "make the bucket, or give the experiment another place",
    "InvalidAccessKeyId": S3_CREDENTIALS,
    "SignatureDoesNotMatch": S3_CREDENTIALS,
    "RequestTimeTooSkewed": "set this machine's clock: timedatectl set-ntp true",
}


def location(seconds: float) -> str | None:
    """Of this project's experiment, or of the one that will be made; None: it cannot be asked."""
    uri = tracking_uri()
    kind = kind_of(uri)
    if kind == "http":
        try:
            return server.find_experiment(seconds).artifacts
        except server.Refusal:
            return None
    if kind in ("sqlite", "database"):
        experiment = database.find_experiment(uri)
        return None if experiment is None else experiment.artifacts
    return uri if kind == "folder" else None


def location_here() -> str | None:
    """The same, where this machine knows; None where it would have to ask over a network."""
    return location(0.0) if kind_of(tracking_uri()) in ("folder", "sqlite") else None


def check(name: str, place: str, seconds: float) -> Finding:
    kind = kind_of(place)
    if kind == "folder":
        return _check_folder(name, place)
    if kind == "mlflow-artifacts":
        return server.check_artifacts(name, place, seconds)
    package, mend = CLIENTS.get(kind, (None, ""))
    if package is not None and not _installed(package):
        return failure(
            name, f"{redacted(place)} needs {package}, which is not installed", f"{pip()} {mend}"
        )
    if kind == "s3":
        return _check_s3(name, place, seconds)
    return warning(name, f"{redacted(place)}: not tried, this kind of store is not known here")


def _check_folder(name: str, place: str) -> Finding:
    path = local_path(place)
    why_not = folder.refusal(path)
    if why_not is not None:
        mend = f"chmod u+w {folder.existing(path)}   # or another place for the experiment"
        return failure(name, why_not, mend)
    if kind_of(tracking_uri()) == "http":
        mend = "start the server with --artifacts-destination, and use a new experiment"
        found = f"{path} is a folder of each machine, not the server's: others will not find it"
        return warning(name, found, mend)
    if not path.exists() and place != DEFAULT_ARTIFACTS:
        return ok(name, f"{path}: not there yet, {folder.existing(path)} was written to")
    return ok(name, f"{path}: a file was written and removed")


def _check_s3(name: str, place: str, seconds: float) -> Finding:
    """An object of four bytes is put and deleted, with the settings that MLflow would use."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", _no_metadata())
    parts = urlsplit(place)
    key = f"{parts.path.strip('/')}/{server.NAME}".lstrip("/")
    settings = Config(connect_timeout=seconds, read_timeout=seconds, retries={"max_attempts": 0})
    insecure = os.environ.get("MLFLOW_S3_IGNORE_TLS", "").lower() in ("true", "1")
    try:
        store = boto3.client(
            "s3",
            config=settings,
            endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"),
            verify=False if insecure else None,
        )
        store.put_object(Bucket=parts.netloc, Key=key, Body=b"slm\n")
        store.delete_object(Bucket=parts.netloc, Key=key)
    except NoCredentialsError:
        return failure(name, f"{place}: no credentials for S3 were found", S3_CREDENTIALS)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        mend = S3_MENDS.get(code, f"ask for the right to put and delete objects in {place}")
        return failure(name, redacted(f"{place} refuses: {code}"), mend)
    except (BotoCoreError, ValueError) as error:
        told = redacted(" ".join(str(error).split()))
        return failure(name, f"{place}: {told}", "export MLFLOW_S3_ENDPOINT_URL=...")
    return ok(name, f"{place}: an object was put and deleted")


def _no_metadata() -> str:
    """Off a machine of Amazon's, asking it for credentials is a wait for nothing."""
    try:
        vendor = Path("/sys/class/dmi/id/sys_vendor").read_text()
        return str("amazon" not in vendor.lower()).lower()
    except OSError:
        return "true"


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False
