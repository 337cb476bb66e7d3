"""Images and clusters, as far as they can be tried without an engine: what goes into an image, what
it runs, what MLflow's own backends make of this project."""

import http.client
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from docker.utils.build import exclude_paths
from mlflow.exceptions import ExecutionException, MlflowException
from mlflow.projects import _parse_kubernetes_config, load_project
from mlflow.projects import databricks as mlflow_databricks
from mlflow.projects import kubernetes as mlflow_kubernetes
from mlflow.projects.utils import get_entry_point_command
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT, Packaged, Workplace, copy_store
from tests.server import PATIENCE, READY
from tests.test_export import FORMATS, ONNX, export_here
from tests.trees import wait_for

PROJECT_FOLDER = "/mlflow/projects/code"  # where MLflow puts a project in an image
IMAGE = "registry.example.com/team/slmflow:1"
KUBERNETES = "1.33"


@dataclass
class Dockerfile:
    """What a file says, instruction by instruction, its continued lines joined."""

    instructions: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Dockerfile":
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
        pairs = (line.split(None, 1) for line in joined.splitlines() if line.strip())
        return cls([(name, rest) for name, rest in pairs])

    def all(self, name: str) -> list[str]:
        return [rest for instruction, rest in self.instructions if instruction == name]

    @property
    def environment(self) -> dict[str, str]:
        assignments = [word for rest in self.all("ENV") for word in shlex.split(rest)]
        return dict(word.split("=", 1) for word in assignments)

    @property
    def copies(self) -> list[tuple[list[str], str]]:
        """Sources and target of each."""
        words = [rest.split() for rest in self.all("COPY")]
        return [(sources, target) for *sources, target in words]


@dataclass(frozen=True)
class Context:
    """What ``docker build`` sends, and the Dockerfile."""

    folder: Path
    dockerfile: Dockerfile

    @classmethod
    def read(cls, folder: Path, dockerfile: str = "Dockerfile") -> "Context":
        return cls(folder, Dockerfile.read(folder / dockerfile))

    @property
    def sent(self) -> set[str]:
        """What can be copied, by the rules of Docker's own client."""
        patterns = [
            line.strip()
            for line in (self.folder / ".dockerignore").read_text().splitlines()
            if line.strip() and not line.startswith("#")
        ]
        paths = exclude_paths(str(self.folder), patterns)
        files = {path for path in paths if not (self.folder / path).is_dir()}
        return files - {".dockerignore", "Dockerfile"}  # which the client always sends

    def lay_out(self, root: Path) -> None:
        """The image's files below another root."""
        for sources, target in self.dockerfile.copies:
            for source in sources:
                found = [
                    name for name in self.sent if f"{name}/".startswith(f"{source.strip('/')}/")
                ]
                assert found, f"{source} is not sent"
                for name in found:
                    inner = Path(name).relative_to(source) if source.endswith("/") else Path(name)
                    place = root / target.strip("/") / inner
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.folder / name, place)


@pytest.fixture(scope="module")
def contexts(
    tmp_path_factory: pytest.TempPathFactory, packaged: Packaged
) -> Iterator[dict[str, Context]]:
    """Of the ONNX model, by the name of the format."""
    folder = tmp_path_factory.mktemp("contexts")
    store = copy_store(packaged.workplace, folder)
    before = os.environ.get("SLMFLOW_CACHE")
    os.environ["SLMFLOW_CACHE"] = store.environment["SLMFLOW_CACHE"]
    for name in ("docker", "azureml"):
        export_here(store, ONNX, folder / name, FORMATS[name])
    del os.environ["SLMFLOW_CACHE"]
    if before is not None:
        os.environ["SLMFLOW_CACHE"] = before
    yield {
        "docker": Context.read(folder / "docker"),
        "azureml": Context.read(folder / "azureml" / "environment"),
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy that is handed to a container."""
    folder = tmp_path_factory.mktemp("project") / "slmflow"
    command = [sys.executable, "docker/project.py", str(folder), "--image", IMAGE]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE)
    return folder


# What goes into an image


def test_hadolint_finds_nothing_in_a_dockerfile(contexts: dict[str, Context]) -> None:
    files = [context.folder / "Dockerfile" for context in contexts.values()]
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run(
        [hadolint, "--no-color", ROOT / "docker" / "Dockerfile", *files],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_the_image_of_the_environment_gets_its_two_files_and_no_other() -> None:
    context = Context(ROOT, Dockerfile.read(ROOT / "docker" / "Dockerfile"))
    assert context.sent == {"requirements.txt", "constraints.txt"}
    assert context.dockerfile.copies == [(["requirements.txt", "constraints.txt"], "./")]
    assert context.dockerfile.all("USER") == ["10001"]  # a number: Kubernetes proves it is not root
    assert context.dockerfile.all("WORKDIR")[-1] == PROJECT_FOLDER
    assert f"safe.directory {PROJECT_FOLDER}" in context.dockerfile.all("RUN")[0]


@pytest.mark.parametrize("name", ["docker", "azureml"])
def test_a_context_holds_what_its_image_copies_and_sends_nothing_else(
    contexts: dict[str, Context], name: str, tmp_path: Path
) -> None:
    context = contexts[name]
    context.lay_out(tmp_path)
    image = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert len(image) == len(context.sent)
    assert (tmp_path / "app/src/slmflow/serving/worker.py").is_file()
    assert (tmp_path / "app/model/MLmodel").is_file() == (name == "docker")
    assert not (tmp_path / "app/conf/local").exists()
    assert context.dockerfile.all("USER") == ["10001"]
    assert context.dockerfile.environment["HF_HUB_OFFLINE"] == "1"


def closure(requirements: Path) -> set[str]:
    """Names of the installed distributions that a file asks for, directly or not."""
    wanted = [Requirement(line) for line in requirements.read_text().splitlines()]
    found: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in found:
                continue
            found.add((name, extra))
            for line in importlib.metadata.requires(name) or []:
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    wanted.append(inner)
    return {name for name, _ in found}


def modules_without(distributions: set[str]) -> list[str]:
    """Top-level modules that are installed here and would not be in the image."""
    modules = importlib.metadata.packages_distributions().items()
    return sorted(
        module
        for module, owners in modules
        if not {canonicalize_name(owner) for owner in owners} & distributions
    )


def test_the_installed_versions_are_those_that_pip_would_take(
    contexts: dict[str, Context],
) -> None:
    folder = contexts["docker"].folder
    options = ["--dry-run", "--no-index", "-r", "requirements.txt", "-c", "constraints.txt"]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *options],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    assert "Would install" not in result.stdout  # what is tested here is what the image holds
    assert "onnxruntime-genai==" in (folder / "requirements.txt").read_text()
    assert "torch" not in closure(folder / "requirements.txt")


# What an image runs

BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if path is None and name in ABSENT:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

ABSENT = set(%r)
sys.meta_path.insert(0, Absent())
"""


@dataclass(frozen=True)
class Container:
    """A server that was started as the image would start it."""

    root: Path
    port: int
    lines: list[str]

    def post(self, path: str, content: Any) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(content), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def healthy(self) -> int:
        check = [sys.executable, str(self.root / "app" / "healthcheck.py")]
        environment = {"HEALTHCHECK_PORT": str(self.port)}
        return subprocess.run(check, env=environment, timeout=PATIENCE).returncode


@contextmanager
def container(context: Context, root: Path, **environment: str) -> Iterator[Container]:
    """The image's files below ``root``, its variables, its working folder, its command; and its
    packages: modules that it would not have cannot be imported."""
    context.lay_out(root)
    home = root / "home" / "slmflow"
    home.mkdir(parents=True)
    blocked = root / "blocked"
    blocked.mkdir()
    absent = modules_without(closure(context.folder / "requirements.txt"))
    (blocked / "sitecustomize.py").write_text(BLOCK % absent)
    below = {
        name: value.replace("/app", f"{root}/app").replace("/home/slmflow", str(home))
        for name, value in context.dockerfile.environment.items()
    }
    below["PYTHONPATH"] = f"{blocked}{os.pathsep}{below['PYTHONPATH']}"
    (entry,) = context.dockerfile.all("ENTRYPOINT")
    command = [word.replace("/app", f"{root}/app") for word in json.loads(entry)]
    assert context.dockerfile.all("WORKDIR") == ["/home/slmflow"]
    process = subprocess.Popen(
        [sys.executable, *command[1:], "serve.port=0", "serve.host=127.0.0.1"],
        cwd=home,
        env={"PATH": os.environ["PATH"], **below, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=(process.stdout,))
    reader.start()

    def listening() -> str | None:
        assert process.poll() is None, "".join(lines)
        return next((line for line in lines if READY in line), None)

    try:
        port = int(re.findall(r":(\d+)", wait_for(listening))[0])
        yield Container(root, port, lines)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        reader.join()


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_an_image_serves_its_model_and_writes_into_its_home_alone(
    contexts: dict[str, Context], tmp_path: Path
) -> None:
    asked = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
    with container(contexts["docker"], tmp_path) as running:
        before = files_of(tmp_path / "app")
        status, answer = running.post("/v1/chat/completions", asked)
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == "Madrid"
        assert answer["model"] == "phi3-demo"
        assert running.healthy() == 0
        assert (tmp_path / "home/slmflow/mlflow.db").is_file()
        assert files_of(tmp_path / "app") == before
    assert running.healthy() == 1  # it has ended


def test_azures_image_finds_the_model_that_is_mounted(
    contexts: dict[str, Context], tmp_path: Path
) -> None:
    exported = contexts["azureml"].folder.parent
    mounted = tmp_path / "models" / "phi3-demo" / "2"
    shutil.copytree(exported / "model", mounted / "model")
    asked = json.loads((exported / "request.json").read_text())
    with container(contexts["azureml"], tmp_path / "image", MODEL_DIR=str(mounted)) as running:
        deployment = yaml.safe_load((exported / "deployment.yml").read_text())
        route = deployment["environment"]["inference_config"]["scoring_route"]["path"]
        status, answer = running.post(route, asked)
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == "Madrid"
    start = [sys.executable, str(tmp_path / "image" / "app" / "start.py")]
    nowhere = subprocess.run(start, env={"MODEL_DIR": str(tmp_path / "image")}, capture_output=True)
    assert nowhere.returncode == 1
    assert b"holds no MLmodel file" in nowhere.stderr


# The project in a container


def test_the_copy_of_the_project_differs_in_its_environment_alone(project: Path) -> None:
    text = (ROOT / "MLproject").read_text()
    expected = text.replace("conda_env: conda.yaml\n", f"docker_env:\n  image: {IMAGE}\n")
    assert (project / "MLproject").read_text() == expected != text
    here, there = load_project(str(ROOT)), load_project(str(project))
    assert there.docker_env == {"image": IMAGE}
    assert {name: entry.command for name, entry in there._entry_points.items()} == {
        name: entry.command for name, entry in here._entry_points.items()
    }


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_copy_is_on_the_same_commit_and_holds_nothing_that_git_ignores(project: Path) -> None:
    assert git(project, "rev-parse", "HEAD") == git(ROOT, "rev-parse", "HEAD")
    assert git(project, "remote") == ""  # whose address may hold a password
    for name in git(ROOT, "ls-files").splitlines():
        if name != "MLproject" and (ROOT / name).is_file():
            assert (project / name).read_bytes() == (ROOT / name).read_bytes(), name
    assert not {".venv", "mlruns", "multirun"} & {path.name for path in project.iterdir()}


def test_links_are_copied_as_they_are_now_and_nothing_is_written_through_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("project", ROOT / "docker/project.py")
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    tree, outside = (tmp_path / "tree").resolve(), tmp_path / "outside"
    tree.mkdir()
    outside.write_text("mine")
    for name in ("file", "moved", "same"):
        (tree / name).symlink_to(outside)
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "links")
    (tree / "file").unlink()
    (tree / "file").write_text("a file now")
    (tree / "moved").unlink()
    (tree / "moved").symlink_to("file")
    (tree / "new").symlink_to("not there")
    monkeypatch.setattr(code, "ROOT", tree)
    copy = tmp_path / "copy"
    code.write_project(copy, None)
    assert outside.read_text() == "mine"
    assert (copy / "file").read_text() == "a file now"
    assert not (copy / "file").is_symlink()
    links = {name: str((copy / name).readlink()) for name in ("moved", "same", "new")}
    assert links == {"moved": "file", "same": str(outside), "new": "not there"}


def test_the_copy_of_a_project_is_never_written_over_another_folder(tmp_path: Path) -> None:
    command = [sys.executable, "docker/project.py", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert "is there already" in result.stderr
    assert list(tmp_path.iterdir()) == []


# Kubernetes


def job(project: Path, environment: dict[str, str], *parameters: str) -> dict[str, Any]:
    """As MLflow's kubernetes backend renders and submits it."""
    backend = json.loads((ROOT / "docker/kubernetes/backend.json").read_text())
    assert backend["kube-job-template-path"] == "docker/kubernetes/job.yaml"  # from the checkout
    backend["kube-job-template-path"] = str(ROOT / backend["kube-job-template-path"])
    loaded = load_project(str(project))
    given = dict(parameter.split("=", 1) for parameter in parameters)
    command = get_entry_point_command(loaded, "custom_onnx", given, None)
    rendered: dict[str, Any] = mlflow_kubernetes._get_kubernetes_job_definition(
        loaded.name,
        IMAGE,
        "sha256:" + 64 * "0",
        mlflow_kubernetes._get_run_command(command),
        dict(environment),
        _parse_kubernetes_config(backend)["kube-job-template"],
    )
    return rendered


def test_the_job_is_one_that_kubernetes_accepts_and_that_has_no_rights(project: Path) -> None:
    rendered = job(project, {"MLFLOW_RUN_ID": "abc"}, "search.temperature=0.7")
    kubernetes_validate.validate(rendered, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):  # it does look
        kubernetes_validate.validate(rendered | {"spec": {"backoff": 0}}, KUBERNETES, strict=True)
    assert rendered["spec"]["backoffLimit"] == 0
    pod = rendered["spec"]["template"]["spec"]
    assert (pod["restartPolicy"], pod["automountServiceAccountToken"]) == ("Never", False)
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["image"] == f"{IMAGE}@sha256:{64 * '0'}"
    assert container["command"][:3] == ["python", "-m", "entrypoints.custom_onnx"]
    assert container["command"][-2:] == ["--search.temperature", "0.7"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"] == container["resources"]["requests"]


def test_no_secret_is_in_a_job_but_by_its_name(project: Path) -> None:
    (container,) = job(project, {"MLFLOW_RUN_ID": "abc"})["spec"]["template"]["spec"]["containers"]
    plain = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    assert plain == {"MLFLOW_RUN_ID": "abc"}  # what MLflow adds
    secret = {one["name"]: one["valueFrom"] for one in container["env"] if "valueFrom" in one}
    assert {"HF_TOKEN", "MLFLOW_TRACKING_PASSWORD"} <= secret.keys()
    assert all(of["secretKeyRef"]["optional"] for of in secret.values())


def test_the_jobs_command_finishes_the_run_that_was_opened_for_it(
    project: Path, workplace: Workplace
) -> None:
    """Command, variables and folder are those of the job; only the packages are this machine's."""
    (experiment,) = workplace.client.search_experiments(filter_string="name = 'tests'")
    run = workplace.client.create_run(experiment.experiment_id)
    told = {"MLFLOW_RUN_ID": run.info.run_id, "MLFLOW_TRACKING_URI": workplace.tracking_uri}
    (spec,) = job(project, told)["spec"]["template"]["spec"]["containers"]
    result = subprocess.run(
        spec["command"],
        cwd=project,
        env={
            "PATH": workplace.environment["PATH"],
            "SLMFLOW_CACHE": workplace.environment["SLMFLOW_CACHE"],
            **Dockerfile.read(ROOT / "docker/Dockerfile").environment,
            "HOME": str(workplace.folder),
            **{one["name"]: one["value"] for one in spec["env"] if "value" in one},
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    ended = workplace.client.get_run(run.info.run_id)
    assert ended.info.status == "FINISHED"
    assert ended.data.tags["slmflow.models"] == "models:/phi3-demo/1"
    assert ended.data.tags["git_commit"].startswith(git(ROOT, "rev-parse", "HEAD"))
    assert git(project, "status", "--porcelain", "mlruns", "multirun", "outputs") == ""


# Databricks


class Workspace(BaseHTTPRequestHandler):
    """Databricks' REST API, as far as MLflow asks it when it submits a project."""

    asked: list[tuple[str, str, bytes]]

    def do_GET(self) -> None:
        self._answer({"error_code": "RESOURCE_DOES_NOT_EXIST"})

    def do_POST(self) -> None:
        self._answer({"run_id": 7})

    def _answer(self, content: dict[str, Any]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.command, self.path, body))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, bytes]]]:
    """What a workspace was asked: method, path, body."""
    asked: list[tuple[str, str, bytes]] = []
    handler = type("Handler", (Workspace,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("DATABRICKS_TOKEN", "of-nobody")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_databricks_gets_the_project_and_a_new_cluster(
    workspace: list[tuple[str, str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "slmflow"
    subprocess.run([sys.executable, "docker/project.py", str(folder)], cwd=ROOT, check=True)
    cluster = json.loads((ROOT / "docker/databricks/cluster.json").read_text())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    mlflow_databricks.before_run_validations("databricks", cluster)
    runner = mlflow_databricks.DatabricksJobRunner("databricks")
    parameters = {"model": "phi3_demo"}
    job = runner.run_databricks(
        str(folder), "custom_onnx", str(folder), parameters, "1", cluster, "abc", "uv"
    )
    assert job == 7
    (_, place, archive), (_, path, request) = [one for one in workspace if one[0] == "POST"]
    assert place.startswith("/dbfs/mlflow-experiments/1/projects-code/")
    (tmp_path / "project.tar.gz").write_bytes(archive)
    with tarfile.open(tmp_path / "project.tar.gz") as tar:
        sent = {name.partition("/")[2] for name in tar.getnames()}
    assert {"MLproject", "conda.yaml", "requirements.txt", "entrypoints/custom_onnx.py"} <= sent
    assert not any(name.startswith((".venv", "mlruns")) for name in sent)
    assert path == "/api/2.0/jobs/runs/submit"
    submitted = json.loads(request)
    assert submitted["new_cluster"] == cluster["new_cluster"]
    assert {"pypi": {"package": "uv"}} in submitted["libraries"]
    *_, command = submitted["shell_command_task"]["command"]
    assert "--entry-point custom_onnx --env-manager uv" in command


def test_databricks_demands_what_the_documentation_says() -> None:
    cluster = json.loads((ROOT / "docker/databricks/cluster.json").read_text())
    with pytest.raises(ExecutionException, match="tracking URI must be"):
        mlflow_databricks.before_run_validations("sqlite:///mlflow.db", cluster)
    with pytest.raises(MlflowException, match="new cluster"):
        mlflow_databricks.before_run_validations("databricks", {"existing_cluster_id": "1"})
    for name, value in cluster["new_cluster"]["spark_env_vars"].items():
        assert re.fullmatch(r"\{\{secrets/slmflow/[\w-]+\}\}", value), name
