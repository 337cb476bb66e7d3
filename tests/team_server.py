"""A tracking server as a team has it: accounts, PostgreSQL, an object store behind a proxy.

``docs/remote.md`` tells its commands. All of it runs on loopback, in processes of their own.
"""

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from mlflow import MlflowClient

from tests.conftest import Workplace
from tests.postgres import postgres
from tests.s3_server import Store, s3_server
from tests.tracking_server import mlflow_server

CANARY = f"canary-{secrets.token_hex(8)}"  # begins every password: nothing else can hold it
ADMIN = ("admin", f"{CANARY}-of-the-admin")
EXPERIMENT = "team"

# Everybody reads. EDIT is not enough to take back a version that could not be completed.
ACCOUNTS = """\
[mlflow]
default_permission = READ
database_uri = {database}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""
TEAM = {"experiment": "EDIT", "registered_model": "EDIT", "registered_model_version": "MANAGE"}


@dataclass(frozen=True)
class User(Workplace):
    """An account, with a home and a cache of its own, as on another machine."""

    name: str
    password: str

    @property
    def client(self) -> MlflowClient:
        """For this process, whose environment knows no account."""
        parts = urlsplit(self.tracking_uri)
        return MlflowClient(f"http://{self.name}:{quote(self.password)}@{parts.netloc}")


@dataclass(frozen=True)
class Team:
    address: str
    store: Store
    folder: Path
    role: int

    def user(self, name: str, may_write: bool = True, in_file: bool = False) -> User:
        """A new account. ``in_file``: user name and password stand in ~/.mlflow/credentials, not
        in the environment."""
        home = self.folder / name
        home.mkdir()
        password = f"{CANARY}-of-{name}"
        _request(self.address, "2.0/mlflow/users/create", username=name, password=password)
        if may_write:
            _request(self.address, "3.0/mlflow/roles/assign", username=name, role_id=self.role)
        variables = {
            "HOME": str(home),
            "SLMFLOW_CACHE": str(home / "cache"),
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
        }
        account = {"mlflow_tracking_username": name, "mlflow_tracking_password": password}
        if in_file:
            file = home / ".mlflow" / "credentials"
            file.parent.mkdir()
            file.write_text(
                "\n".join(["[mlflow]", *(f"{key} = {account[key]}" for key in account)])
            )
        else:
            variables |= {key.upper(): value for key, value in account.items()}
        return User(home, clean_environment() | variables, name, password)


def clean_environment() -> Mapping[str, str]:
    """Of a machine that knows neither the server nor its store."""
    prefixes = ("MLFLOW_", "SLMFLOW_", "HF_", "AWS_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    chosen = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return kept | chosen


@contextmanager
def team_server(folder: Path) -> Iterator[Team]:
    """With an experiment and a role, whose users may write."""
    with (
        postgres(f"{CANARY}-of-the-database", ["tracking", "accounts"]) as (tracking, accounts),
        s3_server(folder, f"{CANARY}-of-the-store") as store,
    ):
        settings = folder / "accounts.ini"
        settings.write_text(ACCOUNTS.format(database=accounts, admin=ADMIN[0]))
        environment = {
            **clean_environment(),
            **store.environment,
            # Not as an option: command lines are for everyone to see.
            "MLFLOW_BACKEND_STORE_URI": tracking,
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
        }
        options = ["--app-name", "basic-auth", "--workers", "2"]
        options += ["--artifacts-destination", f"s3://{store.bucket}/artifacts"]
        with mlflow_server(options, environment, folder) as address:
            _request(address, "2.0/mlflow/experiments/create", name=EXPERIMENT)
            yield Team(address, store, folder, _role_that_writes(address))


def _role_that_writes(address: str) -> int:
    made = _request(address, "3.0/mlflow/roles/create", workspace="default", name="writers")
    role = int(made["role"]["id"])
    for kind, permission in TEAM.items():
        about = {"role_id": role, "resource_type": kind, "resource_pattern": "*"}
        _request(address, "3.0/mlflow/roles/permissions/add", **about, permission=permission)
    return role


def _request(address: str, path: str, **about: Any) -> Any:
    answer = requests.post(f"{address}/api/{path}", json=about, auth=ADMIN, timeout=60)
    assert answer.ok, answer.text
    return answer.json()
