"""A real PostgreSQL on loopback: a scratch cluster, with passwords, gone in the end.

Needs what ``install_postgres.sh`` installs.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg2

USER = "tracking"
PATIENCE = 60  # seconds; a guard against hanging, no promise of speed
# Nobody needs these files after a crash.
FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")


@contextmanager
def postgres(password: str, databases: Sequence[str]) -> Iterator[list[str]]:
    """The SQLAlchemy URIs of these databases, which are empty."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as place:
        folder, port = Path(place), _free_port()
        secret = folder / "password"
        secret.write_text(password)
        _hand_over(folder)
        data = str(folder / "data")
        access = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}"]
        _run("initdb", "--no-sync", "--encoding=UTF8", "--locale=C", f"--pgdata={data}", *access)
        options = [f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"]
        options += [f"-c {setting}" for setting in FAST]
        log = f"--log={folder / 'log'}"
        _run("pg_ctl", "start", "--wait", f"--pgdata={data}", log, f"--options={' '.join(options)}")
        try:
            for name in databases:
                _create(name, port, password)
            # SQLAlchemy takes a bare postgresql:// for psycopg 3 since 2.1.
            address = f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{port}"
            yield [f"{address}/{name}" for name in databases]
        finally:
            _run("pg_ctl", "stop", "--mode=immediate", f"--pgdata={data}")


def missing() -> str | None:
    """Why there can be no PostgreSQL here."""
    if _program("initdb") is None:
        return "PostgreSQL is not installed: run tests/install_postgres.sh"
    return None


def _program(name: str) -> str | None:
    # Debian keeps it off the PATH, one folder a version.
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, folders)]))


def _run(name: str, *arguments: str) -> None:
    program = _program(name)
    assert program is not None, missing()
    # To a file: the server that pg_ctl starts would hold a pipe open.
    with tempfile.TemporaryFile("w+") as said:
        result = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd="/",
            timeout=PATIENCE,
            user=_owner(),
        )
        said.seek(0)
        assert result.returncode == 0, said.read()


def _owner() -> str | None:
    """It refuses to run as root; its package has made this user."""
    return "postgres" if os.geteuid() == 0 else None


def _hand_over(folder: Path) -> None:
    if (owner := _owner()) is not None:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, owner)


def _create(name: str, port: int, password: str) -> None:
    connection = psycopg2.connect(
        host="127.0.0.1", port=port, user=USER, password=password, dbname="postgres"
    )
    connection.autocommit = True  # a database cannot be made in a transaction
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{name}"')
    connection.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
