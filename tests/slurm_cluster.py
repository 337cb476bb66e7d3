"""A real Slurm cluster on this machine, without systemd: two nodes, accounting, own ports.

    with slurm_cluster(tmp_path) as cluster:
        subprocess.run(["sbatch", ...], env={**os.environ, **cluster.environment})
        cluster.take_down("n1")

Needs root and what ``install_slurm.sh`` installs. All files lie in the folder; every process that
was started, those of the jobs included, is gone when the context is left.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NODES = ("n1", "n2")
PATIENCE = 60  # seconds; a guard against hanging, no promise of speed
SYSTEM_PATH = "/usr/sbin:/sbin"  # where the daemons are; not on every user's PATH

# AccountingStoragePass: the socket of munged once more, for what goes to slurmdbd.
# cred_expire: how long a requeued job waits before it starts again, 120 s if nothing is said.
# MinJobAge: how long squeue still knows a job that has ended; sacct knows it for ever.
SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={folder}/munge.socket
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,nohold_on_prolog_fail
ReturnToService=2
JobRequeue=1
MaxArraySize={largest_array}
MinJobAge=10
KillWait=2
GresTypes=gpu
NodeName=DEFAULT CPUs={cpus} RealMemory=64000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1_port} Feature=small
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2_port} Feature=big Gres=gpu:1
PartitionName=cpu Nodes=n1,n2 Default=YES
PartitionName=short Nodes=n1,n2 MaxTime=5
PartitionName=gpu Nodes=n2
"""

# A GPU by name only: what a job may ask for, not what it could compute on.
GRES_CONF = """\
NodeName=n2 Name=gpu File=/dev/null
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""


@dataclass
class Cluster:
    folder: Path
    environment: Mapping[str, str]  # what a command needs on top of its own
    _daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def run(self, *command: str) -> str:
        """What it printed. Raises ``AssertionError`` with its errors where it failed."""
        result = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert result.returncode == 0, f"{' '.join(command)}: {result.stderr or result.stdout}"
        return result.stdout

    def queue(self) -> dict[str, str]:
        """Jobs that wait or run: id (``12_3`` in an array) to Slurm's state."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i|%T").splitlines()
        return dict(line.split("|") for line in lines)

    def accounting(self, jobs: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
        """Every job, or those: id to its last state and its node."""
        command = ["sacct", "--allocations", "--noheader", "--parsable2"]
        command += ["--format=JobID,State,NodeList", "--starttime=now-1day"]
        if jobs:
            command.append(f"--jobs={','.join(jobs)}")
        rows = (line.split("|") for line in self.run(*command).splitlines())
        return {job: (state, node) for job, state, node in rows}

    def take_down(self, node: str) -> None:
        """As when the power goes: its daemon and all that runs on it die, Slurm is told."""
        self._kill(node)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")

    def bring_back(self, node: str) -> None:
        self._start_node(node)

        def up() -> bool:
            if self._are_up([node]):
                return True
            # Refused where its daemon has brought it back meanwhile, which is not always enough.
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
            return False

        self._wait_until(up, f"{node} up")

    def _start_node(self, node: str) -> None:
        self._start(node, ["slurmd", "-D", "-N", node])

    def _start(self, name: str, command: Sequence[str], **environment: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                command,
                env={**os.environ, **self.environment, **environment},
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )

    def _kill(self, node: str) -> None:
        if daemon := self._daemons.get(node):
            daemon.kill()
            daemon.wait()
        _kill_all(lambda: _on_node(self.folder, node))

    def _stop(self, name: str) -> None:
        daemon = self._daemons.get(name)
        if daemon is None:  # it did not even start
            return
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _wait_for_nodes(self, nodes: Sequence[str]) -> None:
        self._wait_until(lambda: self._are_up(nodes), f"{' and '.join(nodes)} up")

    def _are_up(self, nodes: Sequence[str]) -> bool:
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N|%T").splitlines()
        states = dict(line.split("|") for line in lines)
        return all(states[node] in ("idle", "mixed", "allocated") for node in nodes)

    def _wait_until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            said = ""
            try:
                if done():
                    return
            except AssertionError as error:  # commands fail until the daemons listen
                said = str(error)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} after {PATIENCE} s; {said}\n{self._logs()}")
            time.sleep(0.1)

    def _logs(self) -> str:
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(
            "\n".join([file.name, *file.read_text(errors="replace").splitlines()[-10:]])
            for file in files
        )


@contextmanager
def slurm_cluster(folder: Path, cpus: int = 1, largest_array: int = 1001) -> Iterator[Cluster]:
    """Nodes n1 and n2 with so many CPUs each, partitions cpu (the default),
    short (at most 5 minutes) and gpu (n2)."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    cluster = Cluster(folder, _environment(folder))
    _write_configuration(folder, cpus=cpus, largest_array=largest_array)
    with ExitStack() as stack:
        for name, start in _starts(cluster).items():
            stop = cluster._kill if name in NODES else cluster._stop
            stack.callback(stop, name)
            start()
        cluster._wait_for_nodes(NODES)
        yield cluster


def _starts(cluster: Cluster) -> dict[str, Callable[[], None]]:
    """What to start, in this order; each waits until what it needs is there."""

    def munged() -> None:
        place = cluster.folder
        files = [f"--{kind}-file={place}/munged.{kind}" for kind in ("log", "pid", "seed")]
        files.append(f"--key-file={place}/munge.key")
        command = ["munged", "--foreground", "--force", f"--socket={place}/munge.socket", *files]
        cluster._start("munged", command)
        cluster._wait_until((place / "munge.socket").exists, "socket of munged")

    def mariadb() -> None:
        data = ["--no-defaults", "--user=root", f"--datadir={cluster.folder}/mariadb"]
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        cluster.run("mariadb-install-db", *data, *options)
        connection = ["--skip-networking", "--skip-grant-tables"]
        connection.append(f"--socket={cluster.environment['MYSQL_UNIX_PORT']}")
        cluster._start("mariadb", ["mariadbd", *data, *connection, "--innodb-flush-method=fsync"])
        cluster._wait_until(Path(cluster.environment["MYSQL_UNIX_PORT"]).exists, "MariaDB")

    def slurmdbd() -> None:
        cluster._start("slurmdbd", ["slurmdbd", "-D"])
        cluster._wait_until(lambda: bool(cluster.run("sacctmgr", "-n", "show", "user")), "slurmdbd")

    def slurmctld() -> None:
        cluster._start("slurmctld", ["slurmctld", "-D"])
        cluster._wait_until(lambda: bool(cluster.run("sinfo", "--noheader")), "slurmctld")

    return {
        "munged": munged,
        "mariadb": mariadb,
        "slurmdbd": slurmdbd,
        "slurmctld": slurmctld,
        "n1": lambda: cluster._start_node("n1"),
        "n2": lambda: cluster._start_node("n2"),
    }


def _environment(folder: Path) -> dict[str, str]:
    return {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "MYSQL_UNIX_PORT": str(folder / "mariadb.socket"),
        "PATH": f"{os.environ['PATH']}{os.pathsep}{SYSTEM_PATH}",
    }


def _write_configuration(folder: Path, **settings: int) -> None:
    names = ("control_port", "accounting_port", "n1_port", "n2_port")
    values = dict(zip(names, _free_ports(len(names)), strict=True))
    known = {"folder": folder, "host": socket.gethostname(), **settings, **values}
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**known))
    (folder / "gres.conf").write_text(GRES_CONF)
    (folder / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(**known))
    (folder / "slurmdbd.conf").chmod(0o600)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    (folder / "state").mkdir(exist_ok=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [int(free.getsockname()[1]) for free in sockets]


def _on_node(folder: Path, node: str) -> list[psutil.Process]:
    """What runs there: first the daemons of its steps, who would report an end, then the jobs'."""
    daemons, jobs = [], []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "slurmstepd":  # overwrites its environment with its title
                if str(folder / f"slurmd-{node}.log") in {f.path for f in process.open_files()}:
                    daemons.append(process)
                continue
            seen = process.environ()
            if seen.get("SLURMD_NODENAME") == node and seen.get("SLURM_CONF") == str(
                folder / "slurm.conf"
            ):
                jobs.append(process)
    return daemons + jobs


def _kill_all(find: Callable[[], list[psutil.Process]]) -> None:
    """Until there are none: one may start another before it dies."""
    deadline = time.monotonic() + PATIENCE
    while found := find():
        assert time.monotonic() < deadline, f"these do not end: {found}"
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=1)


def missing() -> str | None:
    """Why there can be no cluster here."""
    path = f"{os.environ['PATH']}{os.pathsep}{SYSTEM_PATH}"
    needed = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd")
    if absent := [name for name in needed if shutil.which(name, path=path) is None]:
        return f"Slurm is not installed ({', '.join(absent)}): run tests/install_slurm.sh"
    return None if os.geteuid() == 0 else "Slurm's daemons are started as root"
