"""An object store with S3's API on loopback (moto), in a process of its own."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3

PATIENCE = 60  # seconds; a guard against hanging, no promise of speed
RUNNING = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")


@dataclass(frozen=True)
class Store:
    """``environment`` is what a process needs to reach it; ``bucket`` is empty at first."""

    address: str
    bucket: str
    secret_key: str

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "AKIATESTSTESTSTESTST",
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def keys(self) -> list[str]:
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]

    def parts(self, name: str) -> int:
        """In how many the newest object of that file name was sent: S3 tells by its ETag."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        found = [one for page in pages for one in page.get("Contents", [])]
        named = [one for one in found if one["Key"].endswith(f"/{name}")]
        newest = max(named, key=lambda one: one["LastModified"])
        return int(newest["ETag"].strip('"').partition("-")[2] or 1)

    def _client(self) -> "boto3.client":
        return boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        )


@contextmanager
def s3_server(folder: Path, secret_key: str, bucket: str = "mlflow") -> Iterator[Store]:
    """The store, and its log in the folder."""
    log = folder / "s3.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        store = Store(_address(log, server), bucket, secret_key)
        store._client().create_bucket(Bucket=bucket)
        yield store
    finally:
        server.terminate()
        server.wait(PATIENCE)


def _address(log: Path, server: "subprocess.Popen[bytes]") -> str:
    """It takes a free port and tells which."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        if found := RUNNING.search(log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())
