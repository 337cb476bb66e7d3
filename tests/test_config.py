"""What can be typed: every option composes, and what is wrong is told with key, value, allowed."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slmflow import machine
from slmflow.config.arguments import quoted, sweeps, to_overrides
from slmflow.config.explain import explain, is_config_error
from slmflow.config.load import typed
from slmflow.config.schema import DTYPES, PRECISIONS, Device, Provider, Target
from slmflow.config.store import SCHEMAS, register
from slmflow.errors import ConfigError
from slmflow.served.search import SearchOptions

CONF = Path(__file__).resolve().parents[1] / "conf"
ENTRY_POINTS = sorted(path.stem for path in CONF.glob("*.yaml") if "." not in path.stem)
OPTIONS = sorted(
    (path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name != "local"
)
GROUPS = sorted({group for group, _ in OPTIONS})
PACKAGING_GROUPS = {"model", "task", "search", "hardware"}
CHAT_ONLY = {"main", "transformers_pipeline"}
WITHOUT_GROUPS = {"lock", "materialise", "rerun"}  # what they work on tells all
NEEDED = {  # that have no default
    "predict": ("input=prompts.jsonl", "output=answers"),
    "export": ("output=exported",),
    "rerun": ("run_id=abc",),
    "materialise": ("model_uri=models:/phi3-demo/1",),
}


@pytest.fixture(scope="module", autouse=True)
def composer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hydra over a copy of conf/ without conf/local, which differs from checkout to checkout."""
    folder = tmp_path_factory.mktemp("conf") / "conf"
    shutil.copytree(CONF, folder, ignore=shutil.ignore_patterns("local"))
    register()
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        yield


def config_of(entry_point: str, *overrides: str) -> Any:
    given = [*NEEDED.get(entry_point, ()), *overrides]
    return typed(compose(entry_point, overrides=given))


def refusal_of(entry_point: str, *overrides: str) -> str:
    """What a person is told."""
    try:
        config = config_of(entry_point, *overrides)
    except ConfigError as error:
        return str(error)
    except Exception as error:
        assert is_config_error(error), f"{error!r} would be shown as a bug"
        return explain(error)
    raise AssertionError(f"{overrides} was accepted: {config}")


def defaults_of(entry_point: str) -> dict[str, str | None]:
    config = yaml.safe_load((CONF / f"{entry_point}.yaml").read_text())
    choices: dict[str, str | None] = {}
    for entry in config["defaults"]:
        if isinstance(entry, dict):
            choices |= entry
    return {group: choices[group] for group in GROUPS if group in choices}


def entry_points_with(group: str) -> list[str]:
    return [name for name in ENTRY_POINTS if group in defaults_of(name)]


def test_there_is_something_to_compose() -> None:
    assert set(ENTRY_POINTS) == set(SCHEMAS)
    assert set(GROUPS) >= {*PACKAGING_GROUPS, "data", "experiment"}
    for group in GROUPS:
        assert entry_points_with(group), f"no entry point has the group {group}"
    for name in set(ENTRY_POINTS) - WITHOUT_GROUPS:
        searches = {"search"} if name != "export" else set()
        assert set(defaults_of(name)) >= PACKAGING_GROUPS - {"search"} | searches


@pytest.mark.parametrize(
    ("entry_point", "group", "option"),
    [
        (entry_point, group, option)
        for group, option in OPTIONS
        for entry_point in entry_points_with(group)
        if group != "experiment"
    ],
)
def test_every_option_composes_under_every_entry_point(
    entry_point: str, group: str, option: str
) -> None:
    override = f"{group}={option}"
    if (override, entry_point in CHAT_ONLY) == ("task=prompt", True):
        assert "use the entry point custom_onnx" in refusal_of(entry_point, override)
        return
    config = config_of(entry_point, override)
    assert isinstance(config, SCHEMAS[entry_point])
    assert getattr(config, group) is not None


EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment"]


def test_there_is_an_experiment() -> None:
    assert EXPERIMENTS


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_where_its_task_can_be_served(experiment: str) -> None:
    preset = f"experiment={experiment}"
    config = config_of("custom_onnx", preset)
    if config.task.name == "chat":
        for entry_point in CHAT_ONLY:
            config_of(entry_point, preset)


def test_an_experiment_beats_the_defaults_and_a_typed_key_beats_the_experiment() -> None:
    preset = config_of("custom_onnx", "experiment=cookbook")
    assert (preset.model.name, preset.task.name) == ("phi3-mini-4k", "prompt")
    assert preset.search == SearchOptions(
        max_new_tokens=None, max_length=300, temperature=0.2, seed=0
    )
    changed = config_of("custom_onnx", "experiment=cookbook", "search.temperature=0.9")
    assert changed.search.temperature == 0.9


@pytest.mark.parametrize("target", list(Target))
def test_hardware_auto_is_the_target_that_this_machine_has(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = {name: None if name == target else "not here" for name in ("cuda", "directml", "mps")}
    monkeypatch.setattr(machine, "survey", lambda: survey)
    auto = config_of("custom_onnx", "hardware=auto").hardware
    assert auto == config_of("custom_onnx", f"hardware={target}").hardware
    assert auto.target is target


def test_groups_that_entry_points_share_have_one_default() -> None:
    shared = {name: defaults_of(name) for name in ENTRY_POINTS}
    for name in ("evaluate", "serve", "predict"):
        assert shared[name].pop("search") is None  # each model as it was packaged
    assert shared["main"].pop("speed") == "quick"  # a first impression
    for group in GROUPS:
        assert len({choices[group] for choices in shared.values() if group in choices}) == 1


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_default_leaves_the_choice_to_the_config(entry_point: str) -> None:
    nobody_chose = [f"{group}=default" for group in defaults_of(entry_point)]
    assert to_overrides(nobody_chose) == []


def test_a_yaml_option_says_nothing_but_what_its_schema_has() -> None:
    search = [path for path in CONF.glob("search/*.yaml") if yaml.safe_load(path.read_text())]
    assert search
    for path in search:
        SearchOptions.from_mapping(yaml.safe_load(path.read_text()))


VALID_DTYPES = "hardware.device=cpu: float32, bfloat16; hardware.device=cuda: float32, bfloat16"
VALID_PRECISIONS = "hardware.provider=cpu: fp32, int8, int4; hardware.provider=cuda: fp32, fp16"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        # keys
        ("search.temprature=1", ["search.temprature", "did you mean temperature?", "num_beams"]),
        ("sreach=greedy", ["sreach", "did you mean search?", "model, task, search"]),
        ("model.onnx.sourc=x", ["model.onnx.sourc", "did you mean source?", "prebuilt"]),
        ("foo=1", ["foo: no such key", "model, task, search, hardware"]),
        ("+foo=1", ["foo", "model, task, search, hardware"]),
        ("+search.temprature=1", ["search.temprature", "did you mean temperature?"]),
        ("+model.probe.foo=1", ["model.probe.foo", "question, expect"]),
        ("model.onnx.prebuilt=[{folder: x, foo: 1}]", ["foo", "folder, provider, precision"]),
        ("search.temperature", ["'search.temperature' is not KEY=VALUE"]),
        # options
        ("search=gredy", ["search=gredy", "did you mean greedy?", "beam, cookbook, greedy"]),
        ("hardware=tpu", ["hardware=tpu", "auto, cpu, cuda, directml, mps"]),
        ("experiment=cookbok", ["experiment=cookbok", "did you mean cookbook?"]),
        ("model=null", ["null", "leave it out"]),
        ("~model", ["model is not set"]),
        # types
        ("search.temperature=hot", ["search.temperature", "'hot'", "Float"]),
        ("search.temperature='is not in'", ["search.temperature", "'is not in'", "Float"]),
        ("search.temperature=true", ["search.temperature", "True", "Float"]),
        ("search.top_k=1.5", ["search.top_k", "1.5", "Integer"]),
        ("search.stop=END", ["search.stop", "search.stop=[A,B]"]),
        ("search.stop=null", ["search.stop", "not Optional"]),
        ("model.name=null", ["model.name", "not Optional"]),
        ("search.temperature=0.1,0.2", ["search.temperature=0.1,0.2", "--multirun"]),
        ("hardware.target=tpu", ["hardware.target", "'tpu'", "cpu, cuda, directml, mps"]),
        ("hardware.precision=fp17", ["hardware.precision", "'fp17'", "fp32, fp16, bf16, int8"]),
        ("task.name=poem", ["task.name", "'poem'", "chat, prompt"]),
        ("model.source=???", ["model.source is not set", "model.source=..."]),
        ("model.source=${nowhere}", ["model.source", "nowhere"]),
        # ranges
        ("search.max_new_tokens=0", ["search.max_new_tokens is 0", "1 or more, or null"]),
        ("search.max_length=1", ["search.max_length is 1", "2 or more, or null"]),
        ("search.temperature=nan", ["search.temperature is nan", "0 (greedy) to 100"]),
        ("search.seed=-1", ["search.seed is -1", "0 to 2147483647"]),
        ("search.stop=['']", ["search.stop is ['']", "none of them empty"]),
        ("data.limit=0", ["data.limit is 0", "1 or more"]),
        ("hardware.threads=0", ["hardware.threads is 0", "auto, or a number from 1"]),
        ("hardware.threads=some", ["hardware.threads is 'some'", "auto"]),
        ("hardware.threads=true", ["hardware.threads is True", "auto"]),
        ("hardware.threads=1.5", ["hardware.threads is 1.5", "auto"]),
        ("hardware.block_size=7", ["hardware.block_size is 7", "null, 16, 32"]),
        ("hardware.accuracy_level=9", ["hardware.accuracy_level is 9", "null, 0, 1, 2, 3, 4"]),
        ("hardware.package=torch", ["hardware.package is torch", "onnxruntime-genai-cuda"]),
        # pairs
        ("hardware.precision=fp16", ["hardware.precision=fp16", "provider=cpu", VALID_PRECISIONS]),
        ("hardware.dtype=float16", ["hardware.dtype=float16", "device=cpu", VALID_DTYPES]),
        ("hardware.provider=dml hardware.precision=int8", ["int8", "hardware.provider=dml: fp16"]),
        (
            "search.num_beams=4 search.temperature=0.5",
            ["search.num_beams is 4", "search.temperature is 0.5", "num_beams=1 or temperature=0"],
        ),
        (
            "search.max_new_tokens=null search.max_length=null",
            ["search.max_new_tokens and search.max_length are both null"],
        ),
        ("task=prompt", ["task is prompt", "task=chat only", "custom_onnx"]),
    ],
)
def test_wrong_input_is_told_with_key_value_and_what_is_allowed(
    override: str, said: list[str]
) -> None:
    overrides = [override] if override.count("=") < 2 else re.split(r" (?=\w+\.\w+=)", override)
    message = refusal_of("main", *overrides)
    for part in said:
        assert part in message
    assert "full_key" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("models=models:/a/1", ["models: a list is needed", "models=[A,B]"]),
        ("search=null", ["null", "leave it out"]),
        ("search.temperature=1", ["null", "search=greedy search.temperature="]),
    ],
)
def test_evaluate_tells_what_its_own_keys_need(override: str, said: list[str]) -> None:
    message = refusal_of("evaluate", override)
    for part in said:
        assert part in message
    changed = config_of("evaluate", "search=greedy", "search.temperature=0.5", "models=[a,b]")
    assert changed.search.temperature == 0.5
    assert changed.models == ["a", "b"]


def test_an_error_that_is_no_config_error_stays_a_bug() -> None:
    assert not is_config_error(ValueError("something else"))
    assert not is_config_error(AssertionError())
    assert not is_config_error(KeyError("model"))


def test_every_pair_that_is_listed_as_valid_is_accepted_and_no_other() -> None:
    for device in Device:
        for dtype in {dtype for dtypes in DTYPES.values() for dtype in dtypes}:
            pair = [f"hardware.device={device}", f"hardware.dtype={dtype}"]
            if dtype in DTYPES[device]:
                assert config_of("custom_onnx", *pair).hardware.dtype is dtype
            else:
                assert "valid pairs" in refusal_of("custom_onnx", *pair)
    for provider in Provider:
        for precision in {p for precisions in PRECISIONS.values() for p in precisions}:
            pair = [f"hardware.provider={provider}", f"hardware.precision={precision}"]
            if precision in PRECISIONS[provider]:
                assert config_of("custom_onnx", *pair).hardware.precision is precision
            else:
                assert "valid pairs" in refusal_of("custom_onnx", *pair)


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["search.stop=[END,'a b, c']"], "stop", ["END", "a b, c"]),
        (["search.temperature=1"], "temperature", 1.0),
        (["search.max_new_tokens=null", "search.max_length=20"], "max_new_tokens", None),
        (["search={temperature: 0.5}"], "temperature", 0.5),
    ],
)
def test_good_values_reach_the_dataclass(overrides: list[str], key: str, value: Any) -> None:
    assert getattr(config_of("main", *overrides).search, key) == value


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        # what `mlflow run -P KEY=VALUE` appends for a key that MLproject does not declare
        (["--search.temperature", "0.5"], ["search.temperature=0.5"]),
        (["--search.temperature", "-1"], ["search.temperature=-1"]),
        (["--a", "1", "--b.c", "2"], ["a=1", "b.c=2"]),
        (["--model.revision", ""], ["model.revision="]),
        (["--model.name", "It's (very) hot"], [r"model.name='It\'s (very) hot'"]),
        (["--model.name", "Is it, say, (very) hot?"], ["model.name='Is it, say, (very) hot?'"]),
        (["--search.stop", "['<|end|>']"], ["search.stop=['<|end|>']"]),
        (["--search.stop", "[<|end|>]"], ["search.stop='[<|end|>]'"]),
        (["--model.probe.expect", "<|end|>"], ["model.probe.expect='<|end|>'"]),
        (["--search.temperature", "0.1,0.2", "-m"], ["search.temperature=0.1,0.2", "-m"]),
        (["--model.probe.expect", "--cfg"], ["model.probe.expect=--cfg"]),
        (["--model.probe.expect", "a=b"], ["model.probe.expect='a=b'"]),
        (["--search.temperature=0.5", "a=1"], ["search.temperature=0.5", "a=1"]),
        (["--model.probe.expect=it's"], [r"model.probe.expect='it\'s'"]),
        # Hydra's own
        (["search.seed=0", "+a=1", "~b", "++c=2"], ["search.seed=0", "+a=1", "~b", "++c=2"]),
        (["--cfg", "job"], ["--cfg", "job"]),
        (["-c", "job", "--resolve"], ["-c", "job", "--resolve"]),
        (["--cfg=job", "--package", "search"], ["--cfg=job", "--package", "search"]),
        (["--help"], ["--help"]),
        (["--multirun", "search=greedy,sample"], ["--multirun", "search=greedy,sample"]),
        # what MLproject passes for what nobody chose
        (["model=default", "search=default"], []),
        (["model=default", "search=sample"], ["search=sample"]),
        (["model.name=default"], ["model.name=default"]),
        (["model.probe.expect=a=default"], ["model.probe.expect='a=default'"]),
        (["models=[]", ""], ["models=[]"]),
        (["models=[models:/a/1,models:/a@champion]"], ["models=[models:/a/1,models:/a@champion]"]),
    ],
)  # fmt: skip
def test_arguments_become_overrides(arguments: list[str], overrides: list[str]) -> None:
    assert to_overrides(arguments) == overrides


def parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def value_of(text: str) -> Any:
    return parse(text).value()


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.text("\\'\" ,([${=a")


@settings(deadline=None)
@given(TEXTS)
@example("it's")
@example("\\")
@example("\\'")
@example("a\\b'c\\\\'d\\")
@example("a\\b\\")
@example("('\"\\")
@example("(\n")
@example("<|im_end|>")
@example("(${a}")
def test_any_text_arrives_as_itself_or_as_what_hydras_grammar_says_of_it(text: str) -> None:
    for arguments in (["--model.name", text], [f"model.name={text}"]):
        (override,) = to_overrides(arguments)
        parsed = parse(override)
        assert parsed.key_or_group == "model.name"
        try:
            understood = parse(f"model.name={text}")
        except HydraException:
            assert parsed.value() == text
        else:
            assert (parsed.value_type, repr(parsed.value())) == (
                understood.value_type,
                repr(understood.value()),
            )


@settings(deadline=None)
@given(TEXTS)
def test_a_text_that_hydra_would_take_apart_is_one_text_when_quoted(text: str) -> None:
    override = quoted("model.name", f"(){text}")
    assert value_of(override) == f"(){text}"


@pytest.mark.parametrize(
    "question", ["It's (very) hot?", "{'a': 1} or not)", "C:\\models\\'new'\\", "<|end|> & <b>"]
)
def test_a_typed_text_reaches_the_config_as_it_was_typed(question: str) -> None:
    overrides = to_overrides(["--model.probe.question", question])
    assert config_of("main", *overrides).model.probe.question == question


@pytest.mark.parametrize(
    ("overrides", "swept"),
    [
        (["search.temperature=0.0,0.4"], True),
        (["search.temperature=0.0"], False),
        (["hardware.threads=range(1,4)"], True),
        (["search=glob(*)"], True),
        (["search=choice(greedy,sample)"], True),
        (["sweep=precision"], True),
        (["sweep.resume=0123"], True),
        (["sweep.resume=never"], False),
        (["sweep.objectives=[correct,size_bytes]"], False),
        (["speed.batch_sizes=[1,8]"], False),
        (["model.probe.question='Hi, who?'"], False),
        (["models=['models:/a/1','models:/a/2']"], False),
        (["--multirun", "search.temperature=0.0,0.4"], False),  # said already
        (["--cfg", "job", "search.temperature=0.0,0.4"], False),
    ],
)
def test_more_than_one_value_makes_a_sweep(overrides: list[str], swept: bool) -> None:
    assert sweeps(overrides) is swept


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sweep.trials=0", "sweep.trials is 0; allowed: 1 or more"),
        ("sweep.timeout=0", "sweep.timeout is 0.0; allowed: seconds above 0, or null"),
        ("sweep.seed=-1", "sweep.seed is -1"),
        ("sweep.objectives=[]", "sweep.objectives is empty"),
        ("sweep.prune=true", "sweep.prune=true needs sweep.strategy=tpe"),
        ("sweep.strategy=random", "grid"),
    ],
)
def test_what_a_sweep_cannot_be_is_told(override: str, told: str) -> None:
    assert told in refusal_of("main", override)


def test_pruning_needs_one_objective() -> None:
    asked = ("sweep.strategy=tpe", "sweep.prune=true")
    assert "needs one objective, and there are 4" in refusal_of("main", *asked)
    assert config_of("main", *asked, "sweep.objectives=[correct]").sweep.prune
