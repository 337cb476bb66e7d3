"""No secret reaches a run, an artifact, a log or an error: canaries are planted, and everything
that was logged is searched."""

import gc
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import ViewType

from slmflow import cli
from slmflow.config.store import SCHEMAS
from slmflow.redacted_output import redact_output
from slmflow.redaction import (
    HIDDEN,
    holds_secret,
    names_secret,
    redacted,
    redacted_override,
    without_secrets,
)
from slmflow.tracking.run import flatten
from tests.conftest import ROOT, Workplace, make_workplace
from tests.tracking_server import tracking_server
from tests.trees import artifact, parents, points

CANARY = "Cn4ryZq9xW"  # in every planted secret, so that one search finds any
SEARCHED = CANARY.encode()
OF_MLFLOW_RUN = rb"=== Running command '|View (run|experiment) "
PLANTED = {  # in the environment of every process that is started here
    "HF_TOKEN": f"hf_{CANARY}{'a' * 20}",
    "MY_SERVICE_PASSWORD": f"{CANARY} with a space",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}/plus+slash",
    "SLMFLOW_API_KEY": f"{CANARY}-api",
}
IN_URL = f"https://bob:{CANARY}-url@host.invalid/x"
TYPED = f"model.onnx.source={IN_URL}"
SIGNED = f"https://host.invalid/x?X-Amz-Signature={CANARY}"
ADDRESSES = [
    ("https://bob:{}@host/x", "https://***@host/x"),
    ("postgresql+psycopg2://bob:{}@db:5432/x", "postgresql+psycopg2://***@db:5432/x"),
    ("https://{}@github.com/o/r.git", "https://***@github.com/o/r.git"),
    ("https://b/x?X-Amz-Signature={}&a=1", "https://b/x?X-Amz-Signature=***&a=1"),
    ("https://b/x?sig={}", "https://b/x?sig=***"),
    ("AccountName=me;AccountKey={}==;Suffix=net", "AccountName=me;AccountKey=***;Suffix=net"),
    ("Authorization: Bearer {}0", "Authorization: Bearer ***"),
    ("fs.s3a.secret.key: {}", "fs.s3a.secret.key: ***"),
    ('{{"api_key": "{}", "max_tokens": 5}}', '{"api_key": "***", "max_tokens": 5}'),
    ("+    hub_token = '{}'", "+    hub_token = '***'"),
    ("password={} host=db", "password=*** host=db"),
    ("mlflow_tracking_password = {}\nnext = 1", "mlflow_tracking_password = ***\nnext = 1"),
    ('password="correct horse {}"', 'password="***"'),
    (r"password='it\'s {}'", "password='***'"),
    ("PASSWORD={}(def", "PASSWORD=***"),
    ("access_token=some.{}", "access_token=***"),
    ("access_token=foo.bar x{}", "access_token=*** x{}"),
    ("Authorization: token {}0", "Authorization: token ***"),
    ("password=${}", "password=***"),
    ("hub login --token={}", "hub login --token=***"),
    ("mysql --user bob --password {} db", "mysql --user bob --password *** db"),
    ('login --api-key "{}"', 'login --api-key "***"'),
    ("['hub', '--token', '{}']", "['hub', '--token', '***']"),
    ("machine host login bob password {}", "machine host login bob password ***"),
    ("machine host\n  login bob\n  password {}\n", "machine host\n  login bob\n  password ***\n"),
    ("+password {}\n", "+password ***\n"),
    ("DB_PASS=correct_horse_{}", "DB_PASS=***"),
    ("refused: api_key={}", "refused: api_key=***"),
    ('{{"detail": "no such token={}"}}', '{"detail": "no such token=***"}'),
    ("a=b=password={}", "a=b=password=***"),
]
NAMES = [  # of secrets, as services, tools and people call them
    *("PGPASSWORD", "MYSQLPASSWORD", "DB_PASS", "SMTP_PASS", "RCLONE_CONFIG_PASS", "SSHPASS"),
    *("OPENAI_KEY", "AZURE_OPENAI_KEY", "KAGGLE_KEY", "MISTRAL_KEY", "MY_OWN_KEY", "LICENSE_KEY"),
    *("api_keys", "OPENAI_API_KEYS", "openai_key", "azure_openai_key_2", "engine.conf.api_keys"),
    *("hf_tokens", "hub.tokens", "access_tokens", "HF_TOKEN_1", "MY_TOKEN_VALUE", "tokenValue"),
    *("passwords", "password2", "clientsecret", "authToken", "user_credentials"),
    *(
        "REDIS_AUTH",
        "proxy_auth",
        "JWT",
        "jwt",
        "SESSION_JWT",
        "HF_TOKEN",
        "api_key",
        "keyPassword",
    ),
]
READABLE = [  # names that share a word with one of a secret
    *(
        "max_tokens",
        "max_new_tokens",
        "prompt_tokens",
        "completion_tokens",
        "stop_tokens",
        "tokens",
    ),
    *("special_tokens", "additional_special_tokens", "pad_token", "unk_token", "token_id"),
    *("first_token_1", "max_token_value", "NEW_TOKENS", "SPECIAL_TOKENS", "tokenizer"),
    *(
        "cache_key",
        "primary_key",
        "sort_key",
        "sort_keys",
        "foreign_key",
        "key",
        "keys",
        "model.key",
    ),
    *(
        "CACHE_KEY",
        "SORT_KEY",
        "PUBLIC_KEY",
        "FIRST_KEYS",
        "KEY",
        "KEYS",
        "group_key",
        "answer_key",
    ),
    *("author", "authorized", "authority", "XAUTHORITY", "auth_mode", "SSH_AUTH_SOCK", "use_auth"),
    *("MLFLOW_TRACKING_AUTH", "pass_rate", "bypass", "compass", "passed", "first_pass", "passes"),
    *("monkey", "keyboard", "keyword", "turkey", "jwt_algorithm", "PGPASSFILE", "GIT_ASKPASS"),
    *("DB_PASS_FILE", "API_KEYS_PATH", "secret_names", "passwordless", "num_key_value_heads"),
]
SHAPED = [
    f"hf_{'aB3' * 8}",
    f"sk-{'aB3' * 8}",
    f"ghp_{'aB3' * 12}",
    f"glpat-{'aB3' * 7}",
    "AKIAIOSFODNN7EXAMPLE",
    "xoxb-123456789012-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----",
]
HARMLESS = [
    "models:/phi3-demo@champion",
    "openai:/http://127.0.0.1:8000/v1#phi3",
    "abfss://container@account.dfs.core.windows.net/rows",
    "ssh://git@host/repository.git",
    "sqlite:////home/me/mlflow.db",
    "search.max_new_tokens=256",
    "pad_token='<|endoftext|>' eos_token_id=32000",
    "tokenizer=tokenizer.json decode_tokens_per_second: 144.2",
    "engine.conf={spark.hadoop.fs.s3a.aws.credentials.provider: org.Provider}",
    'curl -H "Authorization: Bearer $SLMFLOW_API_KEY"',
    "token: str, password: str | None = None",
    "login(token=settings.hub_token)",
    "token = get_token()\nself.token = self._token\nself.credentials = credentials\n",
    "    token=settings.hub_token,\n    key=a\n",
    "authorization_function = mlflow.server.auth:authenticate_request",
    "password=$DB_PASSWORD token=${TOKEN}",
    "model.key=${oc.env:MY_KEY}",
    "a question about the secret: what is it?",
    "--token $HF_TOKEN --password '${oc.env:X}' --max-tokens 12345678 --api-key ",
    "the password is wrong, and password authentication failed for user bob",
    "give --token and a name; --password-file /home/me/password",
    "bypass=pass_rate.csv compass=northwards author=somebody_else monkey=bananas1",
]
PIECES = ["***", "token=", "://", "--token ", "password ", "login a ", "DB_PASS=", "'", " ", "\n"]
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="@:=?&;-", exclude_categories="C"))


@given(st.text() | st.lists(st.sampled_from([*SHAPED, *HARMLESS, *PIECES])).map("".join))
@example("password=***")
@example("http://a:b@***@c")
def test_what_is_redacted_is_not_redacted_again(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)
    assert not holds_secret(redacted(text))


@given(PLAIN)
def test_a_text_that_names_and_addresses_nothing_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_a_secret_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(("form", "shown"), ADDRESSES)
@given(secret=st.text("abcxyzABC019", min_size=8, max_size=30).map("s3cret".__add__))
def test_credentials_are_hidden_and_the_rest_is_kept(form: str, shown: str, secret: str) -> None:
    assert redacted(form.format(secret)) == shown.replace("{}", secret)


@pytest.mark.parametrize("secret", SHAPED)
@given(before=PLAIN, after=PLAIN)
def test_the_shape_of_a_token_is_enough_wherever_it_stands(
    secret: str, before: str, after: str
) -> None:
    assert secret not in redacted(f"{before} {secret} {after}")


def test_the_value_of_a_variable_with_a_secret_name_is_hidden_wherever_it_occurs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_API_KEY", 'quite "plain" words')
    monkeypatch.setenv("SOME_TOKEN_PATH", "/home/me/token")
    monkeypatch.setenv("SHORT_TOKEN", "on")
    assert redacted('x quite "plain" words y') == "x *** y"
    assert redacted(json.dumps({"a": 'quite "plain" words'})) == '{"a": "***"}'
    assert redacted("http://h/quite%20%22plain%22%20words") == "http://h/***"
    assert redacted("/home/me/token is on") == "/home/me/token is on"


def test_a_secret_may_begin_as_a_path_does_unless_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("SOME_TOKEN", str(tmp_path))
    assert redacted("x /wJalrXUtnFEMI/K7MDENG y") == "x *** y"
    assert redacted(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[(name, True) for name in ("HF_TOKEN", "hub.token", "api_key", "keyPassword", "DB_PWD")],
        *[(name, True) for name in ("fs.s3a.secret.key", "AZURE_CLIENT_SECRET", "GITHUB_PAT")],
        *[(name, True) for name in ("MLFLOW_TRACKING_PASSWORD", "fs.azure.account.key.a.net")],
        *[(name, False) for name in ("search.max_tokens", "tokenizer", "pad_token", "token_id")],
        *[(name, False) for name in ("PWD", "HF_TOKEN_PATH", "SSH_AUTH_SOCK", "cache_key")],
        *[(name, False) for name in ("seconds_per_token", "first_token", "secret_name", "tokens")],
    ],
)
def test_a_name_tells_whether_its_value_is_a_secret(name: str, secret: bool) -> None:
    assert names_secret(name) is secret


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(secret=st.text("abcxyzABC019_-", min_size=8, max_size=30).filter(lambda s: s.isalnum()))
@example(secret="hunter2hunter2")
@example(secret="correcthorse")
def test_no_value_under_the_name_of_a_secret_survives(name: str, secret: str) -> None:
    """However it is given: typed, in a config or in a text. One of digits alone is a number."""
    value = f"{secret}x"
    told = [
        redacted_override(f"{name}={value}"),
        redacted_override(f"+my.{name}=[{value},'{value}']"),
        redacted_override(f"engine.conf={{x: 1,{name}: {value}}}"),
        json.dumps(without_secrets({name: [value], "b": {name: value}})),
        redacted(f"cannot open x with {name}={value} today"),
        redacted(f"{name}: {value}\n"),
        redacted(json.dumps({name: value})),
        redacted(f"--{name}={value}"),
        redacted(f"--{name} {value}"),
    ]
    assert not [one for one in told if value in one]


@pytest.mark.parametrize("name", READABLE)
def test_a_name_that_shares_a_word_with_a_secret_keeps_its_value(name: str) -> None:
    assert not names_secret(name)
    for typed in (f"{name}=readable8", f"x={{{name}: readable8}}", f"--{name} readable8"):
        assert redacted_override(typed) == typed
        assert redacted(typed) == typed


def test_every_key_of_the_configs_and_of_their_schemas_is_readable() -> None:
    keys = {field for schema in SCHEMAS.values() for field in _fields(schema)}
    for file in (ROOT / "conf").rglob("*.yaml"):
        keys |= set(flatten(yaml.safe_load(file.read_text()) or {}))
    assert "search.max_new_tokens" in keys, "both are looked through"
    assert "max_new_tokens" in keys
    assert [key for key in keys if names_secret(key)] == []


def _fields(schema: type, prefix: str = "") -> Iterator[str]:
    for field, kind in get_type_hints(schema).items():
        yield f"{prefix}{field}"
        for one in (kind, *get_args(kind)):
            if is_dataclass(one):
                yield from _fields(cast(type, one), f"{prefix}{field}.")


@pytest.mark.parametrize("value", [None, True, False, 3, 0.5, [], {}])
@pytest.mark.parametrize("name", ["hf_tokens", "api_keys", "REDIS_AUTH"])
def test_switches_and_counts_are_no_secrets(name: str, value: Any) -> None:
    assert without_secrets({name: value}) == {name: value}


def test_a_config_loses_its_secrets_and_nothing_else() -> None:
    config = {
        "api": {"key": "abc", "keys": 3},
        "engine": {"conf": {"fs.s3a.secret.key": "hunter2", "a.b": 1}},
        "models": [IN_URL, "models:/a/1"],
        "token": None,
        "hub_token": "${oc.env:HF_TOKEN}",
        "max_tokens": 12345678,
    }
    assert without_secrets(config) == {
        "api": {"key": HIDDEN, "keys": 3},
        "engine": {"conf": {"fs.s3a.secret.key": HIDDEN, "a.b": 1}},
        "models": ["https://***@host.invalid/x", "models:/a/1"],
        "token": None,
        "hub_token": "${oc.env:HF_TOKEN}",
        "max_tokens": 12345678,
    }


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("+hub.token=a", "+hub.token=***"),
        ("engine.conf={spark.password: hunters,x: 1}", "engine.conf={spark.password: ***,x: 1}"),
        ("api={key: abc, 'b': [1, 2]}", "api={key: ***, 'b': [1, 2]}"),
        ("secret=[abc,d]", "secret=***"),
        (f"models=[models:/a/1,{IN_URL}]", "models=[models:/a/1,https://***@host.invalid/x]"),
        ("hub.token=1234567890123456", "hub.token=***"),
        ("hub.token=12", "hub.token=12"),
        ("hub.token=$ecret", "hub.token=***"),
        ("x={max_tokens: 12345678, password: '${oc.env:X}'}", None),
        ("search.stop=['User: ', \"it's: b\"]", None),
        ("model.openai_key=hunter2hunter2", "model.openai_key=***"),
        ("engine.conf={api_keys: [abc, 'd e']}", "engine.conf={api_keys: [***, ***]}"),
        ("hub.tokens=[abc,def]", "hub.tokens=***"),
        ("hub.tokens=12", None),
    ],
)
def test_what_was_typed_is_shown_without_its_secrets(typed: str, shown: str | None) -> None:
    assert redacted_override(typed) == (shown or typed)


def test_a_stack_trace_of_a_thread_or_of_the_garbage_collector_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, name in ((sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(place, name, getattr(place, name))  # as they were, afterwards
    monkeypatch.setattr(logging, "setLogRecordFactory", lambda _: None)
    redact_output()

    def fail() -> None:
        raise ValueError(f"no answer of {IN_URL}")

    class Fails:
        def __del__(self) -> None:
            fail()

    thread = threading.Thread(target=fail, name="the one")
    thread.start()
    thread.join()
    Fails()
    told = capsys.readouterr().err
    assert canaries(told.encode()) == []
    assert "Exception in thread the one:" in told
    assert told.count("ValueError: no answer of https://***@host.invalid/x") == 2


def test_what_was_typed_is_hidden_also_where_it_cannot_be_swept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden: list[str] = []
    for name in ("redact_output", "remember_overrides", "silence_libraries", "register"):
        monkeypatch.setattr(cli, name, lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(cli, "_hide_typed", hidden.extend)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setattr(sys, "argv", ["serve", "hub.token=abc", "search.temperature=0,1"])
    with pytest.raises(SystemExit) as ended:
        cli.run_entry_point("serve")
    assert ended.value.code == 1
    assert "serve cannot be swept" in capsys.readouterr().err
    assert "hub.token=abc" in hidden


def canaries(content: bytes, mlflow_run: bool = False) -> list[bytes]:
    """The lines with one. ``mlflow_run``: but for those that its own process prints, before and
    after the code of a project: the command, links with the tracking server's address."""
    lines = [line for line in content.splitlines() if SEARCHED in line]
    return [line for line in lines if not (mlflow_run and re.search(OF_MLFLOW_RUN, line))]


def assert_clean(workplace: Workplace, *outputs: str, mlflow_run: bool = False) -> None:
    """The bytes of the store, every artifact by name and content, all that was printed."""
    for output in outputs:
        assert canaries(output.encode(), mlflow_run) == []
    files = [file for file in workplace.folder.rglob("*") if file.is_file()]
    assert files, "the store at least"
    for file in files:
        assert CANARY not in str(file)
        assert canaries(file.read_bytes()) == [], file


@dataclass(frozen=True)
class Checkout:
    """A clone of this repository whose remote, new file and changed file hold canaries."""

    folder: Path
    workplace: Workplace

    def mlflow_run(self, *parameters: str) -> tuple[int, str]:
        command = [str(Path(sys.executable).with_name("mlflow")), "run", str(self.folder)]
        command += ["-e", "custom_onnx", "--env-manager", "local"]
        for parameter in parameters:
            command += ["-P", parameter]
        return self._run(command)

    def script(self, *arguments: str) -> tuple[int, str]:
        return self._run([sys.executable, "-m", "entrypoints.custom_onnx", *arguments])

    def _run(self, command: list[str]) -> tuple[int, str]:
        result = self.workplace.run(command, cwd=self.folder)
        return result.returncode, result.stdout + result.stderr


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def files_of_this_tree() -> Iterator[str]:
    """What runs, as it is, committed or not."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run([*command, "--exclude-standard"], check=True, capture_output=True)
    names = listed.stdout.decode().split("\0")
    apart = ("tests/", "bench/", "docs/")
    yield from (n for n in names if n and not n.startswith(apart) and (ROOT / n).is_file())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in files_of_this_tree():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "as it is")
    git(folder, "remote", "add", "origin", f"https://x:{CANARY}@git.invalid/r.git")
    with (folder / "conf" / "task" / "chat.yaml").open("a") as file:
        file.write(f"# hub_token: {CANARY}9\n")
    (folder / "notes.txt").write_text(f"password = '{CANARY}'\n")
    return folder


@pytest.fixture
def planted(tmp_path: Path, shared_cache: Path, checkout: Path) -> Checkout:
    (tmp_path / "store").mkdir()
    workplace = make_workplace(tmp_path / "store", shared_cache)
    environment = {**workplace.environment, **PLANTED}
    return Checkout(checkout, Workplace(workplace.folder, environment))


def test_a_run_that_was_given_secrets_everywhere_keeps_none(planted: Checkout) -> None:
    """Variables, a typed URL, git's remote, a changed and a new file: all parts of one run."""
    code, output = planted.mlflow_run(TYPED)
    assert code == 0, output
    assert "had recorded a secret as model.onnx.source" in " ".join(output.split())
    assert_clean(planted.workplace, output, mlflow_run=True)
    (run,) = planted.workplace.client.search_runs(["1"])
    assert run.data.params["model.onnx.source"] == "https://***@host.invalid/x"
    told = json.loads(artifact(planted.workplace, run, "provenance/provenance.json"))
    assert told["code"]["remote"] == "https://***@git.invalid/r.git"
    assert told["overrides"] == ["model.onnx.source=https://***@host.invalid/x"]
    diff = artifact(planted.workplace, run, "provenance/code.diff")
    assert "+# hub_token: ***" in diff
    assert "+password = '***'" in diff


def test_an_error_that_repeats_a_secret_is_told_without_it(planted: Checkout) -> None:
    code, output = planted.script(f"model.source=/no/such?token={CANARY}")
    assert code == 1
    assert "/no/such?token=***" in output
    assert_clean(planted.workplace, output)
    (run,) = planted.workplace.client.search_runs(["1"])
    assert "/no/such?token=***" in run.data.tags["slmflow.error"]


def test_a_secret_in_what_fails_before_the_run_is_joined_is_gone_too(planted: Checkout) -> None:
    code, output = planted.mlflow_run(TYPED, "hardware=cuda", f"api_key={CANARY}")
    assert code == 1
    assert_clean(planted.workplace, output, mlflow_run=True)
    (run,) = planted.workplace.client.search_runs(["1"])
    assert run.data.params["api_key"] == HIDDEN


def test_settings_that_travel_in_the_model_may_hold_no_secret(planted: Checkout) -> None:
    code, output = planted.script(f"search.stop=['{SIGNED}']")
    assert code == 1
    assert "search.stop=" in output
    assert "packaged model" in output
    assert_clean(planted.workplace, output)


def test_a_sweep_and_its_points_keep_no_secret_and_tell_what_they_ran_with(
    planted: Checkout,
) -> None:
    """The points fail at once, so that their errors and their output are searched, too."""
    typed = ["hardware.block_size=16,32", f"model.source=/no/such?sig={CANARY}", TYPED]
    code, output = planted.script(*typed)
    assert code == 1
    assert_clean(planted.workplace, output)
    (parent,) = parents(planted.workplace)
    both = points(planted.workplace, parent)
    assert len(both) == 2
    for run in (parent, *both):
        told = json.loads(artifact(planted.workplace, run, "provenance/provenance.json"))
        assert told["entry_point"] == "custom_onnx"
        assert "model.onnx.source=https://***@host.invalid/x" in told["overrides"]
    code, output = planted.script(f"sweep.resume={parent.info.run_id}")
    assert code == 1
    assert "typed with a secret" in output


def test_a_sweep_over_secrets_is_refused(planted: Checkout) -> None:
    code, output = planted.script(f"model.onnx.source='{IN_URL}',null")
    assert code == 1
    assert "tell the points of a sweep apart" in output
    assert_clean(planted.workplace, output)


def test_through_a_tracking_server_a_run_with_a_typed_secret_is_ended_and_deleted(
    planted: Checkout, tmp_path: Path
) -> None:
    """Its parameters cannot be changed; what can be is, and the person is told what to do. The
    server's own address has a password in it."""
    (tmp_path / "server").mkdir()
    store = planted.workplace
    with tracking_server(store, tmp_path / "server") as address:
        uri = address.replace("//", f"//bob:{CANARY}-server@")
        experiment = {"MLFLOW_EXPERIMENT_NAME": "through a server"}
        MlflowClient(address).create_experiment("through a server")
        environment = {**store.environment, "MLFLOW_TRACKING_URI": uri, **experiment}
        remote = Checkout(planted.folder, Workplace(store.folder, environment))
        typed, told = remote.mlflow_run(TYPED)
        failed, output = remote.script("model.source=/no/such")
    assert (typed, failed) == (1, 1)
    assert canaries(told.encode(), mlflow_run=True) == []
    assert canaries(output.encode()) == []
    found = store.client.search_runs(["2"], run_view_type=ViewType.ALL)
    by_stage = {run.info.lifecycle_stage: run for run in found}
    assert by_stage["deleted"].info.status == "FAILED"
    words = " ".join(told.split())
    assert f"mlflow gc --run-ids {by_stage['deleted'].info.run_id}" in words
    assert "revoke the secret" in words
    folders = [file for file in (tmp_path / "server").rglob("*") if file.is_file()]
    assert [file for file in folders if canaries(file.read_bytes())] == []
    shown = {**by_stage["active"].data.params, **by_stage["active"].data.tags}
    assert not [key for key, value in shown.items() if CANARY in value]
