"""Evaluation sets: every format, every bad row, samples, constant memory, the sets that ship."""

import csv
import json
import random
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.genai.datasets import create_dataset

from slmflow.checkout import PROJECT_ROOT
from slmflow.errors import DataError
from slmflow.evaluation.data.check import FIELDS, example_from
from slmflow.evaluation.data.dataset import SHOWN_ERRORS, Dataset, open_dataset
from slmflow.evaluation.data.example import Example
from slmflow.evaluation.data.log import as_mlflow
from slmflow.evaluation.data.parquet import BATCH, read_parquet
from tests.conftest import Workplace

QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Capital of Spain?"}],
    "references": ["Madrid"],
}
PROMPT = {"prompt": "Spain's capital is", "references": ["Madrid", "the city of Madrid"]}
BREAKS = "a\N{LINE SEPARATOR}b\N{NEXT LINE}c\vd\fe\rf\r\ng\nh"


def write_lines(folder: Path, *rows: Any) -> Path:
    path = folder / "set.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes("\n".join(lines).encode())
    return path


def opened(path: Path | str, limit: int | None = None, seed: int | None = None) -> Dataset:
    return open_dataset("demo", path, limit, seed)


def refused(path: Path | str) -> str:
    with pytest.raises(DataError) as refusal:
        opened(path)
    return str(refusal.value)


# --- rows ---


def test_rows_become_examples(tmp_path: Path) -> None:
    tagged = {**QUESTION, "id": 7, "tags": {"topic": "cities", "level": 2, "hard": True}}
    path = write_lines(tmp_path, QUESTION, "", PROMPT, "  ", tagged, "")
    chat, prompt, labelled = opened(path)
    assert (chat.id, prompt.id, labelled.id) == ("1", "3", "7")
    assert chat.request == {"messages": QUESTION["messages"]}
    assert chat.question == "Capital of Spain?"
    assert prompt.request == {"prompt": "Spain's capital is"}
    assert prompt.question == "Spain's capital is"
    assert prompt.references == ("Madrid", "the city of Madrid")
    assert labelled.tags == {"topic": "cities", "level": "2", "hard": "true"}


def test_the_question_is_the_last_text_of_the_user() -> None:
    talk = [("system", "Be short."), ("user", "Hi"), ("user", "Spain?"), ("assistant", "Well,")]
    messages = [{"role": role, "content": content} for role, content in talk]
    assert example_from({"messages": messages}, "1").question == "Spain?"


def test_a_question_is_short_for_one_message_and_a_text_for_one_reference() -> None:
    wanted = example_from({**QUESTION, "id": "a"}, "1")
    for references in ({"references": "Madrid"}, {"reference": "Madrid"}):
        assert (
            example_from({"id": "a", "question": "Capital of Spain?", **references}, "1") == wanted
        )


def test_a_row_needs_no_reference_and_null_counts_as_absent() -> None:
    bare = example_from({"prompt": "x"}, "1")
    assert bare == Example("1", prompt="x")
    assert example_from({name: None for name in FIELDS} | {"prompt": "x"}, "1") == bare


def test_checks_are_kept_as_given() -> None:
    schema = {"type": "object", "required": ["name"]}
    row = {"prompt": "x", "regex": r"^\d+$", "json_schema": schema, "number": 12}
    example = example_from(row, "1")
    assert (example.regex, example.json_schema, example.number) == (r"^\d+$", schema, 12.0)


BAD_ROWS = [
    ("{", "is no JSON: Expecting property name enclosed in double quotes, column 2"),
    ("[1]", "is no object"),
    ('"text"', "is no object"),
    ("null", "is no object"),
    ("[" * 100_000, "nested too deeply"),
    ('{"prompt": "x", "number": NaN}', "NaN is no JSON number"),
    ('{"prompt": "x", "number": ' + "9" * 5000 + "}", "4300 digits"),
    ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
    ({}, "asks nothing; give one of messages, question, prompt"),
    ({**QUESTION, "prompt": "x"}, "has messages and prompt; give one of"),
    ({**PROMPT, "refs": []}, "unknown field 'refs'"),
    ({"prompt": "x", "referenses": []}, "did you mean references?"),
    ({"prompt": "x", "reference": "a", "references": ["b"]}, "give one of them"),
    ({"prompt": "x", "references": [1]}, "references[0] is 1; give a text"),
    ({"prompt": "x", "references": ["a", " "]}, "references[1] is ' '; give a text"),
    ({"prompt": "x", "references": {"a": 1}}, "give a list of texts, or one text"),
    ({**PROMPT, "prompt": " "}, "prompt is ' '; give a text"),
    ({**PROMPT, "prompt": ["x"]}, "prompt is ['x']; give a text"),
    ({"question": 5}, "question is 5; give a text"),
    ({**PROMPT, "id": 1.5}, "id is 1.5; give a text or a whole number"),
    ({**PROMPT, "id": True}, "id is True; give a text or a whole number"),
    ({**PROMPT, "id": ""}, "id is ''; give a text or a whole number"),
    ({**QUESTION, "messages": []}, "messages is []; give a list"),
    ({**QUESTION, "messages": 5}, "messages is 5; give a list"),
    ({**QUESTION, "messages": QUESTION["messages"][0]}, "give a list"),
    ({**QUESTION, "messages": [{"role": "tool", "content": "x"}]}, "system, user, assistant"),
    ({**QUESTION, "messages": [{"role": "user", "content": 5}]}, "messages[0].content is 5"),
    ({**QUESTION, "messages": [{"role": "user"}]}, "messages[0].content is absent"),
    ({**QUESTION, "messages": [{"rôle": "user"}]}, "did you mean role?"),
    ({**QUESTION, "messages": ["x"]}, "messages[0] is 'x'; give {"),
    ({**QUESTION, "messages": [{"role": "system", "content": "x"}]}, "no text of role user"),
    ({**PROMPT, "tags": ["a"]}, "tags is ['a']; give an object"),
    ({**PROMPT, "tags": {"a": []}}, "tags.a is []; give a text"),
    ({**PROMPT, "regex": "("}, "regex '(' is no regular expression: missing )"),
    ({**PROMPT, "regex": 5}, "regex is 5; give a text"),
    ({**PROMPT, "json_schema": "x"}, "json_schema is 'x'; give an object"),
    ({**PROMPT, "json_schema": {"type": "text"}}, "no JSON schema: type: 'text' is not valid"),
    ({**PROMPT, "json_schema": {"$ref": "https://example.com/a"}}, "points outside of it"),
    ({**PROMPT, "number": "12"}, "number is '12'; give a finite number"),
    ({**PROMPT, "number": True}, "number is True; give a finite number"),
    ({**PROMPT, "number": 10**400}, "give a finite number"),
]


@pytest.mark.parametrize(("row", "said"), BAD_ROWS)
def test_a_bad_row_is_named_with_its_line(row: Any, said: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path, QUESTION, "", row, PROMPT)
    with pytest.raises(DataError) as refusal:
        opened(path, limit=1)  # what is not asked is checked, too
    file, problem = str(refusal.value).splitlines()
    assert file == f"{path}:"
    assert problem.strip().startswith("line 3: ")
    assert said in problem


def test_every_bad_row_is_listed_up_to_a_bound(tmp_path: Path) -> None:
    path = write_lines(tmp_path, "{", PROMPT, "[]", "{}")
    places = [line.strip().split(":")[0] for line in refused(path).splitlines()[1:]]
    assert places == ["line 1", "line 3", "line 4"]
    said = refused(write_lines(tmp_path, *["{}"] * (SHOWN_ERRORS + 5)))
    assert said.count("line ") == SHOWN_ERRORS
    assert said.endswith("and 5 more")


def test_an_id_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path, {**PROMPT, "id": "a"}, PROMPT, {**QUESTION, "id": "a"})
    assert "line 3: its id 'a' is that of line 1, too" in refused(path)


# --- JSON Lines ---


def test_a_row_is_a_line_whatever_its_texts_hold(tmp_path: Path) -> None:
    separators = "a\N{LINE SEPARATOR}b\N{NEXT LINE}c"
    row = json.dumps({**PROMPT, "prompt": separators}, ensure_ascii=False)
    first, second = opened(write_lines(tmp_path, row + "\r", PROMPT))
    assert first.question == separators
    assert second.id == "2"


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(json.dumps(PROMPT).encode() + b'\n{"prompt": "\xff"}\n')
    assert "line 2: is no UTF-8 at byte 13" in refused(path)


@pytest.mark.parametrize("name", ["set.jsonl", "set.NDJSON", "set.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content = "prompt\nx\n" if name.endswith("csv") else '{"prompt": "x"}\n'
    path.write_bytes(content.encode("utf-8-sig"))
    assert [example.prompt for example in opened(path)] == ["x"]


# --- all formats ---


def write_jsonl(examples: Sequence[Example], folder: Path) -> Path:
    path = folder / "set.jsonl"
    lines = [json.dumps(example.as_row(), ensure_ascii=False) for example in examples]
    path.write_bytes("\n".join(lines).encode())
    return path


def cells(example: Example) -> dict[str, Any]:
    row = example.as_row()
    tags = row.pop("tags", {})
    as_json = {"messages", "references", "json_schema"} & set(row)
    row |= {name: json.dumps(row[name], ensure_ascii=False) for name in as_json}
    return row | {f"tag.{name}": value for name, value in tags.items()}


def write_csv(examples: Sequence[Example], folder: Path) -> Path:
    path = folder / "set.csv"
    rows = [cells(example) for example in examples]
    with path.open("w", encoding="utf-8", newline="") as file:
        columns = sorted({name for row in rows for name in row})
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(examples: Sequence[Example], folder: Path) -> Path:
    """Nested, as a program would write it."""
    path = folder / "set.parquet"
    rows = [example.as_row() for example in examples]
    for row in rows:
        row["json_schema"] = json.dumps(row["json_schema"]) if "json_schema" in row else None
    message = pa.struct({"role": pa.string(), "content": pa.string()})
    types = dict.fromkeys(("id", "prompt", "regex", "json_schema"), pa.string())
    schema = {
        **types,
        "messages": pa.list_(message),
        "references": pa.list_(pa.string()),
        "tags": pa.map_(pa.string(), pa.string()),
        "number": pa.float64(),
    }
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(schema)), path)
    return path


def write_parquet_cells(examples: Sequence[Example], folder: Path) -> Path:
    """Texts and numbers, as a table of CSV becomes."""
    path = folder / "cells.parquet"
    pd.DataFrame([cells(example) for example in examples]).to_parquet(path)
    return path


TEXTS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(list(BREAKS + '",[{;\ufeff')),
    min_size=1,
    max_size=20,
).filter(str.strip)
MESSAGES = st.builds(
    lambda before, last: (*before, {"role": "user", "content": last}),
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "assistant"]), "content": TEXTS}),
        max_size=2,
    ),
    TEXTS,
)
CHECKS: dict[str, Any] = {
    "references": st.lists(TEXTS, max_size=3).map(tuple),
    "tags": st.dictionaries(st.sampled_from(["topic", "level"]), TEXTS),
    "regex": st.none() | TEXTS.map(re.escape),
    "json_schema": st.none() | st.sampled_from([{}, {"const": 1}, {"enum": ["a", None]}]),
    "number": st.none() | st.floats(allow_nan=False, allow_infinity=False),
}
EXAMPLES = st.lists(
    st.builds(Example, st.uuids().map(str), messages=MESSAGES, **CHECKS)
    | st.builds(Example, st.uuids().map(str), prompt=TEXTS, **CHECKS),
    min_size=1,
    max_size=8,
    unique_by=lambda example: example.id,
)
Write = Callable[[Sequence[Example], Path], Path]
WRITERS: list[Write] = [write_jsonl, write_csv, write_parquet, write_parquet_cells]


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(examples=EXAMPLES)
def test_every_format_gives_the_same_examples_and_digest(
    examples: list[Example], tmp_path: Path
) -> None:
    digests = set()
    for write in WRITERS:
        dataset = opened(write(examples, tmp_path))
        assert list(dataset) == examples, write.__name__
        digests.add(dataset.digest)
    assert len(digests) == 1


def test_csv_names_the_line_that_a_row_begins_on(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    rows = ["id,question,number", 'a,"two\nlines",1', '"","one ""quoted"" word",2', "c,,3", "d,x,y"]
    path.write_text("\n".join([*rows, "e,x,5,6"]), encoding="utf-8")
    assert refused(path).splitlines()[1:] == [
        "  line 5: asks nothing; give one of messages, question, prompt",
        "  line 6: number is 'y'; give a finite number: 12 or 3.5",
        "  line 7: has 4 cells, but the first line names 3 columns",
    ]
    path.write_text("\n".join(rows[:3]), encoding="utf-8")
    assert [(e.id, e.question) for e in opened(path)] == [
        ("a", "two\nlines"),
        ("4", 'one "quoted" word'),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"id,promt\na,b\n", "line 1: unknown column 'promt' (did you mean prompt?)"),
        (b"prompt,tag.\na,b\n", "line 1: unknown column 'tag.'"),
        (b"prompt,prompt\na,b\n", "line 1: column 'prompt' stands there twice"),
        (b"id;prompt\na;b\n", "line 1: columns are separated by something else than commas"),
        (b'prompt\n"a\nb\n', "line 2: is no CSV row: unexpected end of data"),
        (b"prompt\na\n\xff\n", "line 3: is no UTF-8"),
        (b"\xff\xfep\x00\n", "line 1: is no UTF-8"),
        (b"prompt,messages\n,[{\n", "line 2: messages is no JSON: "),
        (b"prompt,references\na,[1] or 2\n", "one answer: in column reference"),
        (b"prompt,references\na,[1]\n", "line 2: references[0] is 1; give a text"),
    ],
)
def test_a_csv_that_cannot_be_read_is_told_with_the_line(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "set.csv"
    path.write_bytes(content)
    assert said in refused(path)


def test_csv_holds_prompts_longer_than_pythons_own_limit(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("prompt\n" + "a" * 200_000, encoding="utf-8")
    assert [len(example.question) for example in opened(path)] == [200_000]


def test_parquet_names_the_row_across_batches_and_passes_over_an_index_of_pandas(
    tmp_path: Path,
) -> None:
    path = tmp_path / "set.parquet"
    frame = pd.DataFrame({"prompt": ["x"] * (BATCH + 9), "tag.a": "b"})
    frame.index += 5
    frame.iloc[::3].to_parquet(path)
    assert {tuple(example.tags.items()) for example in opened(path)} == {(("a", "b"),)}
    frame.loc[BATCH + 7, "prompt"] = " "
    frame.to_parquet(path)
    assert f"row {BATCH + 3}: prompt is ' '" in refused(path)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"promt": ["a"]}, "columns: unknown column 'promt' (did you mean prompt?)"),
        ({"prompt": ["a"], "json_schema": [{"type": "object"}]}, "write it as JSON text"),
        ({"prompt": ["a"], "messages": ["[{"]}, "row 1: messages is no JSON"),
        ({"prompt": ["a"], "number": [float("inf")]}, "row 1: number is inf"),
        ({"prompt": pa.array([b"\xff"]).view(pa.string())}, "row 1: is no UTF-8"),
    ],
)
def test_a_parquet_that_cannot_be_used_is_told(
    columns: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table(columns), path)
    assert said in refused(path)


def test_a_parquet_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    path.write_text("prompt\n", encoding="utf-8")
    assert "cannot be read as Parquet" in refused(path)


def test_a_folder_has_a_prompt_a_file_and_the_answers_beside_them(tmp_path: Path) -> None:
    texts = {
        "b.md": "# Title\r\n\r\nText\n",
        "a.txt": "\ufeffOnce\n\n",
        "a.expected.txt": "upon a time\n",
        "notes.pdf": "no prompt",
        ".hidden.txt": "no prompt",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "more.txt").mkdir()
    assert list(opened(tmp_path)) == [
        Example("a.txt", prompt="Once\n", references=("upon a time",)),
        Example("b.md", prompt="# Title\n\nText"),
    ]


def test_bad_files_of_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "c.expected.txt").write_text("x", encoding="utf-8")
    assert [line.strip() for line in refused(tmp_path).splitlines()[1:]] == [
        "a.txt: is no UTF-8 at byte 1",
        "b.txt: prompt is ' '; give a text that is not blank",
        "c.expected.txt: has no prompt beside it (c.txt or c.md)",
    ]


# --- MLflow ---


@pytest.fixture
def store(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A tracking store of its own, and its experiment."""
    mlflow.set_tracking_uri(workplace.tracking_uri)
    yield workplace.client.get_experiment_by_name("tests").experiment_id
    mlflow.set_tracking_uri(None)


RECORDS = [
    {"inputs": {"question": "Spain?"}, "expectations": {"expected_response": "Madrid"}},
    {"inputs": {"prompt": "The sky is"}, "expectations": {"expected_answer": "blue", "number": 3}},
    {"inputs": {"messages": QUESTION["messages"]}, "tags": {"topic": "cities"}},
    {
        "inputs": {"question": BREAKS},
        "expectations": {"references": ["a", "b"], "guidelines": ["Be kind."]},
    },
]


def test_an_mlflow_dataset_is_read_by_name_and_by_id(store: str) -> None:
    dataset = create_dataset("cities", experiment_id=store).merge_records(RECORDS)
    by_name = opened("mlflow:cities")
    read = {example.question: example for example in by_name}
    assert read["Spain?"].references == ("Madrid",)
    assert read["Spain?"].request == {"messages": [{"role": "user", "content": "Spain?"}]}
    assert (read["The sky is"].prompt, read["The sky is"].number) == ("The sky is", 3)
    assert read["Capital of Spain?"].tags == {"topic": "cities"}  # not those that MLflow adds
    assert read[BREAKS].references == ("a", "b")
    assert by_name.source == "mlflow:cities"
    by_id = opened(f"mlflow:{dataset.dataset_id}")
    assert (by_id.digest, list(by_id)) == (by_name.digest, list(by_name))


def test_an_mlflow_dataset_stays_as_it_was_when_it_was_opened(store: str) -> None:
    made = create_dataset("cities", experiment_id=store).merge_records(RECORDS)
    dataset = opened("mlflow:cities")
    before = list(dataset)
    made.merge_records([{"inputs": {"question": "Later?"}}])
    assert list(dataset) == before


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"inputs": {"qestion": "x"}}, "unknown input 'qestion' (did you mean question?)"),
        ({"inputs": {"question": "x", "prompt": "y"}}, "has question and prompt"),
        (
            {"inputs": {"question": "x"}, "expectations": {"referenses": ["y"]}},
            "unknown expectation 'referenses' (did you mean references?)",
        ),
        (
            {
                "inputs": {"question": "x"},
                "expectations": {"expected_response": "y", "expected_answer": "z"},
            },
            "more than one expected answer",
        ),
    ],
)
def test_a_bad_record_is_named_with_its_id(record: dict[str, Any], said: str, store: str) -> None:
    create_dataset("bad", experiment_id=store).merge_records([record])
    assert re.search(rf"record dr-[0-9a-f]{{32}}: .*{re.escape(said)}", refused("mlflow:bad"))


def test_an_unknown_mlflow_dataset_is_told_with_those_that_exist(store: str) -> None:
    assert "the tracking store has no dataset" in refused("mlflow:cities")
    create_dataset("cities", experiment_id=store)
    assert "mlflow:towns" in refused("mlflow:towns")
    assert "the tracking store has mlflow:cities" in refused("mlflow:towns")
    assert "the tracking store has mlflow:cities" in refused(f"mlflow:d-{'0' * 32}")
    assert "mlflow:cities has no rows" in refused("mlflow:cities")


# --- sources that cannot be read ---


@pytest.mark.parametrize("name", ["set.json", "set.jsonl.gz", "set", "set.txt"])
def test_an_unknown_kind_of_file_is_told_with_what_is_allowed(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x", encoding="utf-8")
    assert ".jsonl, .ndjson, .csv, .parquet" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["missing.jsonl", "missing"])
def test_a_missing_source_is_told_with_what_is_allowed(name: str, tmp_path: Path) -> None:
    said = refused(tmp_path / name)
    assert f"there is no {tmp_path / name}" in said
    assert "mlflow:NAME" in said


def test_an_address_is_to_be_downloaded_first() -> None:
    assert "download it first" in refused("https://example.com/set.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n", "   \n"])
@pytest.mark.parametrize("name", ["set.jsonl", "set.csv"])
def test_a_set_without_rows_is_refused(name: str, content: str, tmp_path: Path) -> None:
    if name == "set.csv":
        content = f"prompt{content.replace(' ', '')}"
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert "has no rows" in refused(tmp_path / name)
    (tmp_path / "folder").mkdir()
    assert "has no rows" in refused(tmp_path / "folder")


def test_a_relative_path_begins_at_the_repository_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = opened("demo/heldout.jsonl")
    assert (dataset.source, dataset.of) == ("demo/heldout.jsonl", 400)


# --- samples ---


def numbered(count: int, folder: Path) -> Path:
    return write_lines(folder, *({"id": f"r{n}", "prompt": f"row {n}"} for n in range(count)))


def ids(dataset: Dataset) -> list[str]:
    return [example.id for example in dataset]


def test_the_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = numbered(5, tmp_path)
    dataset = opened(path, limit=2)
    assert ids(dataset) == ["r0", "r1"]
    assert (len(dataset), dataset.rows, dataset.of, dataset.seed) == (2, 2, 5, None)
    assert len(opened(path, limit=50)) == 5


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(count=st.integers(1, 30), limit=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_a_sample_is_the_same_for_a_seed_and_part_of_larger_ones_in_order(
    count: int, limit: int, seed: int, tmp_path: Path
) -> None:
    path = numbered(count, tmp_path)
    dataset = opened(path, limit, seed)
    chosen = ids(dataset)
    assert len(chosen) == len(set(chosen)) == len(dataset) == min(limit, count)
    assert ids(opened(path, limit, seed)) == chosen
    everything = ids(opened(path))
    assert chosen == [name for name in everything if name in chosen]
    assert set(chosen) <= set(ids(opened(path, limit + 1, seed)))
    assert (dataset.of, dataset.seed) == (count, seed)


def test_seeds_draw_every_row_about_equally_often(tmp_path: Path) -> None:
    path = numbered(10, tmp_path)
    drawn = [name for seed in range(400) for name in ids(opened(path, 3, seed))]
    counts = [drawn.count(f"r{n}") for n in range(10)]
    assert sum(counts) == 1200
    assert all(80 <= count <= 160 for count in counts)  # 120 expected, over 4 deviations each way


def test_the_digest_is_of_the_rows_that_are_asked(tmp_path: Path) -> None:
    path = numbered(20, tmp_path)
    samples = {tuple(ids(opened(path, 5, seed))): opened(path, 5, seed).digest for seed in range(9)}
    assert len(set(samples.values())) == len(samples) > 1
    first = opened(path, 5)
    assert re.fullmatch("[0-9a-f]{64}", first.digest)
    path.write_text(path.read_text("utf-8").replace("row 19", "row x"), encoding="utf-8")
    assert opened(path, 5).digest == first.digest
    path.write_text(path.read_text("utf-8").replace("row 3", "row x"), encoding="utf-8")
    assert opened(path, 5).digest != first.digest


# --- from disk, again and again ---


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0].replace("row 0", "other"), *lines[1:]],
        lambda lines: [*lines[:-1], lines[-1].replace("row 5", "other")],
        lambda lines: lines[:-1],
        lambda lines: lines[::-1],
        lambda lines: [*lines[:3], "{"],
    ],
)
def test_rows_that_change_between_two_iterations_are_refused_before_the_last_one(
    change: Callable[[list[str]], list[str]], tmp_path: Path
) -> None:
    path = numbered(6, tmp_path)
    dataset = opened(path)
    assert list(dataset) == list(dataset)
    lines = path.read_text("utf-8").split("\n")
    path.write_text("\n".join(change(lines)), encoding="utf-8")
    with pytest.raises(DataError, match="was changed while it was in use"):
        for _ in zip(range(6), dataset, strict=False):  # never asks for a seventh
            pass


def test_a_source_that_vanishes_is_told(tmp_path: Path) -> None:
    path = numbered(6, tmp_path)
    dataset = opened(path)
    path.unlink()
    with pytest.raises(DataError, match="was changed while it was in use"):
        list(dataset)


def test_rows_that_are_not_asked_may_change(tmp_path: Path) -> None:
    path = numbered(6, tmp_path)
    dataset = opened(path, limit=3)
    before = list(dataset)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n{")
    assert list(dataset) == before


def peak_bytes(dataset: Dataset) -> int:
    tracemalloc.start()
    for _ in dataset:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def many(count: int) -> list[Example]:
    words = random.Random(0)
    return [
        Example(str(n), prompt=f"{words.random()} " * 20, references=("x",)) for n in range(count)
    ]


@pytest.mark.parametrize("write", WRITERS)
def test_reading_ten_times_the_rows_takes_no_more_memory(write: Write, tmp_path: Path) -> None:
    examples = many(10_000)
    few = peak_bytes(opened(write(examples[:1_000], tmp_path)))
    large = opened(write(examples, tmp_path))
    assert len(large) == 10_000
    assert peak_bytes(large) < few * 1.5 + 100_000  # the rows themselves are 4 MB


def test_parquet_is_not_read_a_whole_row_group_at_a_time(tmp_path: Path) -> None:
    """Arrow's memory is its own: tracemalloc does not see it."""
    bits = random.Random(0)
    prompts = [bits.randbytes(2_000).hex() for _ in range(10_000)]
    peaks = []
    for count in (1_000, 10_000):
        path = tmp_path / f"{count}.parquet"
        pq.write_table(pa.table({"prompt": prompts[:count]}), path, row_group_size=count)
        before = pa.total_allocated_bytes()
        rows = read_parquet(path)
        peaks.append(max(pa.total_allocated_bytes() for _ in rows) - before)
    assert peaks[1] < peaks[0] + 2_000_000  # the texts are 40 MB


# --- for MLflow's run ---


def test_a_logged_dataset_has_its_name_digest_source_and_counts(store: str) -> None:
    dataset = opened("demo/heldout.jsonl", 50, 7)
    with mlflow.start_run(experiment_id=store) as run:
        mlflow.log_input(as_mlflow(dataset), context="evaluation")
    [logged] = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    assert logged.dataset.name == "demo"
    assert logged.dataset.digest == dataset.digest[:36]
    assert logged.dataset.source_type == "local"
    assert json.loads(logged.dataset.source) == {"uri": "demo/heldout.jsonl"}
    profile = {"num_rows": 50, "num_rows_in_source": 400, "seed": 7}
    assert json.loads(logged.dataset.profile) == profile


def test_a_set_outside_of_the_repository_is_logged_with_its_whole_path(tmp_path: Path) -> None:
    path = numbered(2, tmp_path)
    assert json.loads(as_mlflow(opened(path)).to_dict()["source"]) == {"uri": path.as_posix()}


def test_an_mlflow_dataset_is_logged_as_itself(store: str) -> None:
    made = create_dataset("cities", experiment_id=store).merge_records(RECORDS)
    with mlflow.start_run(experiment_id=store) as run:
        mlflow.log_input(as_mlflow(opened("mlflow:cities")))
    [logged] = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    assert logged.dataset.source_type == "mlflow_evaluation_dataset"
    assert json.loads(logged.dataset.source) == {"dataset_id": made.dataset_id}


# --- the sets that ship ---


def passes(example: Example) -> bool:
    """Whether the first reference does what the row asks."""
    [answer] = example.references
    if example.json_schema is not None:
        jsonschema.validate(json.loads(answer), example.json_schema)
    if example.regex is not None and not re.search(example.regex, answer):
        return False
    return example.number is None or float(answer) == example.number


def test_every_instruction_has_a_reference_that_passes_its_check() -> None:
    field = {"regex": "regex", "json_schema": "json_schema", "arithmetic": "number"}
    kinds = []
    for example in opened("demo/instructions.jsonl"):
        kinds.append(example.tags["kind"])
        has = [name for name in field.values() if getattr(example, name) is not None]
        assert has == ([field[kinds[-1]]] if kinds[-1] in field else [])
        assert passes(example), example.id
    assert kinds == ["exact", "regex", "json_schema", "arithmetic"] * 30


def test_arithmetic_that_is_written_as_a_sum_comes_out_as_its_number() -> None:
    """Python works the sums out, as nobody typed them."""
    sums = {"+": "+", "-": "-", "times": "*", "divided by": "/", "minus": "-"}
    worked = 0
    for example in opened("demo/instructions.jsonl"):
        asked = re.match(
            r"What is ([\d.]+) (\+|-|times|divided by|minus) ([\d.]+)\?", example.question
        )
        if asked:
            result = eval(f"{asked[1]} {sums[asked[2]]} {asked[3]}")
            assert result == example.number, example.question
            worked += 1
    assert worked >= 10


def test_patterns_and_schemas_refuse_other_answers() -> None:
    """Chatter before the answer is not what was asked for."""
    for example in opened("demo/instructions.jsonl"):
        if example.regex is not None:
            assert example.regex.startswith("^") and example.regex.endswith("$")
            assert not re.search(example.regex, f"Sure! Here you go: {example.references[0]} Bye.")
        if example.json_schema is not None:
            for wrong in ({"wrong": 1}, ["wrong"], "wrong", 1):
                with pytest.raises(jsonschema.ValidationError):
                    jsonschema.validate(wrong, example.json_schema)


def test_long_prompts_are_long_and_answerable_from_their_text() -> None:
    path = PROJECT_ROOT / "demo/long_prompts.jsonl"
    lengths = []
    for example in opened(path):
        passage, _, question = example.question.rpartition("\n\n")
        lengths.append(len(passage.split()))
        assert question.startswith("According to the text, ")
        assert example.references[0] in passage
    assert lengths == sorted(lengths)
    assert (len(lengths), sum(words > 3000 for words in lengths)) == (12, 2)
    assert lengths[0] >= 200
    assert path.stat().st_size < 300_000


def test_long_prompts_are_what_their_script_writes(tmp_path: Path) -> None:
    script = "import json, long_prompts; print(json.dumps(long_prompts.rows()))"
    demo = PROJECT_ROOT / "demo"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=demo, capture_output=True, text=True, check=True
    )
    lines = (demo / "long_prompts.jsonl").read_text("utf-8").splitlines()
    assert json.loads(result.stdout) == [json.loads(line) for line in lines]


def test_no_long_prompt_holds_another() -> None:
    """A model that caches beginnings of prompts must not be timed on what it has already read."""
    texts = [example.question for example in opened("demo/long_prompts.jsonl")]
    paragraphs = [text.split("\n\n")[:2] for text in texts]
    assert len({tuple(beginning) for beginning in paragraphs}) == len(texts)


@pytest.mark.parametrize("name", ["heldout", "instructions", "long_prompts"])
def test_the_config_of_a_shipped_set_leads_to_it(name: str) -> None:
    [config] = [
        loaded
        for file in (PROJECT_ROOT / "conf/data").glob("*.yaml")
        if (loaded := yaml.safe_load(file.read_text("utf-8")))["path"] == f"demo/{name}.jsonl"
    ]
    dataset = open_dataset(name, config["path"], config["limit"], None)
    assert len(list(dataset)) == (config["limit"] or dataset.of)
