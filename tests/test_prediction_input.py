"""Rows of every format become parts: none lost, none doubled, their own columns as they were."""

import csv
import datetime
import gzip
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmflow.errors import DataError
from slmflow.prediction.part import PROBLEM, REQUEST
from slmflow.prediction.places import find, staged
from slmflow.prediction.reading.columns import output_names
from slmflow.prediction.reading.files import find_files, identity
from slmflow.prediction.reading.request import request_of
from slmflow.prediction.staging import divided, stage

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@pytest.fixture
def output() -> Iterator[str]:
    url = f"memory://{uuid4().hex}"
    yield url
    system, path = find(url)
    if system.exists(path):
        system.rm(path, recursive=True)


def staged_table(place: str, output: str, part_rows: int = 1_000) -> pa.Table:
    counts = stage(find_files(place), output, part_rows).part_rows
    tables = []
    for number in range(len(counts)):
        system, path = find(staged(output, number))
        tables.append(pq.read_table(pa.BufferReader(system.cat_file(path))))
    assert [table.num_rows for table in tables] == counts
    return pa.concat_tables(tables)


def staged_rows(place: str, output: str, part_rows: int = 1_000) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = staged_table(place, output, part_rows).to_pylist()
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_every_format_asks_the_same(tmp_path: Path, output: str) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": 'One, two\n"three"', "messages": None},
        {"prompt": None, "messages": CHAT},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    as_text = [{**row, "messages": row["messages"] and json.dumps(CHAT)} for row in rows]
    with (tmp_path / "c.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "messages"])
        writer.writeheader()
        writer.writerows(as_text)
    pq.write_table(pa.Table.from_pylist(as_text), tmp_path / "d.parquet")
    wanted = [{"prompt": rows[0]["prompt"]}, {"messages": CHAT}]
    for name in ("a.jsonl", "b.parquet", "c.csv", "d.parquet"):
        found = staged_rows(str(tmp_path / name), output)
        assert [json.loads(row[REQUEST]) for row in found] == wanted, name
        assert [row[PROBLEM] for row in found] == [None, None]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{broken", "line 2: is no JSON"),
        ("[1]", "line 2: is no JSON object"),
        ("{}", "line 2: has no prompt; give one of prompt, messages"),
        ('{"prompt": " "}', "prompt is ' '; give a text that is not blank"),
        ('{"prompt": 5}', "prompt is 5; give a text"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}', "prompt and messages"),
        ('{"messages": []}', "messages is []; give a list"),
        ('{"messages": "[oops"}', "messages is no JSON"),
        ('{"messages": [{"role": "user"}]}', "messages[0].content is absent; give a text"),
        ('{"messages": [{"role": "user", "content": "a", "name": "b"}]}', "'name'; allowed: role"),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
        ('{"prompt": NaN}', "NaN is no JSON number"),
        ("\udcff", "is no UTF-8 at byte 1"),
    ],
)
def test_a_bad_row_keeps_its_place_and_says_what_is_wrong(
    tmp_path: Path, output: str, line: str, told: str
) -> None:
    good = '{"prompt": "fine", "n": 1}'
    file = tmp_path / "rows.jsonl"
    file.write_bytes("\n".join([good, line, "", good]).encode("utf-8", "surrogateescape"))
    first, bad, last = staged_rows(str(file), output)
    assert (first["row"], bad["row"], last["row"]) == (0, 1, 2)
    assert (first["n"], bad["n"], last["n"]) == (1, None, 1)
    assert bad[REQUEST] is None
    assert bad[PROBLEM].startswith("rows.jsonl line 2: ")
    assert told in bad[PROBLEM]
    assert last[PROBLEM] is None


def test_a_bad_row_of_csv_keeps_its_place(tmp_path: Path, output: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(
        b'prompt,n\nfine,1\nshort\n"two\nlines",2\n\xff,3\nfine,\n"big" dogs?,4\nfine,5\n'
        b'"over\ntwo" lines,6\nfine,7\n'
    )
    rows = staged_rows(str(file), output)
    assert [row["n"] for row in rows] == ["1", None, "2", None, None, None, "5", None, "7"]
    problems = {index: row[PROBLEM] for index, row in enumerate(rows) if row[PROBLEM]}
    assert problems[1] == "rows.csv line 3: has 1 cells, but the first line names 2 columns"
    assert problems[3] == "rows.csv line 6: is no UTF-8"
    assert problems[5] == "rows.csv line 8: is no CSV row: ',' expected after '\"'"
    assert problems[7].startswith("rows.csv lines 10 to 11: is no CSV row: ")
    assert len(problems) == 4


@pytest.mark.parametrize("longest", [100, 16_777_216])
def test_a_quote_that_is_never_closed_takes_no_row_silently(
    tmp_path: Path, output: str, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmflow.prediction.reading.text_rows.LONGEST_CELL", longest)
    file = tmp_path / "rows.csv"
    file.write_text("prompt,n\nfine,1\n" + '"open,2\n' + "fine,3\n" * 50)
    with pytest.raises(DataError, match=r"rows\.csv line 3: .*quote.*never closed"):
        stage(find_files(str(file)), output, 10)


def test_columns_of_parquet_keep_their_types(tmp_path: Path, output: str) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "small": pa.array([1, None], pa.int8()),
            "when": pa.array([datetime.datetime(2026, 1, 2)] * 2, pa.timestamp("ms", "UTC")),
            "price": pa.array([Decimal("1.20"), None], pa.decimal128(9, 2)),
            "raw": pa.array([b"\x00\xff", b""], pa.binary()),
            "nested": pa.array([{"a": [1, 2]}, None], pa.struct([("a", pa.list_(pa.int32()))])),
            "kind": pa.array(["x", "y"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=1)
    found = staged_table(str(tmp_path / "rows.parquet"), output)
    assert found.select(table.column_names).cast(table.schema).equals(table)
    kept = [name for name in table.column_names if name != "kind"]
    assert all(found.schema.field(name).type == table.schema.field(name).type for name in kept)


def test_a_column_of_mixed_values_becomes_text_and_others_keep_their_kind(
    tmp_path: Path, output: str
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "whole": 2**60, "number": 1, "flag": True, "mixed": "x", "list": [1]},
        {"prompt": "b", "whole": None, "number": 0.5, "mixed": 7, "list": {"é": 1}},
        {"prompt": "c", "whole": 1, "flag": False, "mixed": False, "huge": 10**30},
        {"prompt": "d", "exact": 2**60},
        {"prompt": "e", "exact": 0.5},
    ]
    found = staged_rows(write_jsonl(tmp_path / "rows.jsonl", rows), output)
    assert [row["whole"] for row in found[:3]] == [2**60, None, 1]
    assert [row["number"] for row in found[:3]] == [1.0, 0.5, None]
    assert [row["flag"] for row in found[:3]] == [True, None, False]
    assert [row["mixed"] for row in found[:3]] == ["x", "7", "false"]
    assert [row["list"] for row in found[:3]] == ["[1]", '{"é": 1}', None]
    assert [row["exact"] for row in found[3:]] == [str(2**60), "0.5"], "no float holds both"
    assert found[2]["huge"] == "1" + "0" * 30


def test_a_folder_is_read_by_name_and_its_columns_are_joined(tmp_path: Path, output: str) -> None:
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "second", "n": 2}])
    (tmp_path / "a.csv").write_text("prompt,source\nfirst,book\n")
    pq.write_table(pa.table({"prompt": ["third"], "n": [0.5]}), tmp_path / "c.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".hidden").write_text("")
    found = staged_rows(str(tmp_path), output)
    assert [row["prompt"] for row in found] == ["first", "second", "third"]
    assert [row["n"] for row in found] == [None, 2.0, 0.5]
    assert [row["source"] for row in found] == ["book", None, None]
    assert [row["row"] for row in found] == [0, 1, 2]


def test_a_url_and_a_packed_file_are_read_like_a_path(tmp_path: Path, output: str) -> None:
    line = b'{"prompt": "hello"}\n'
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(line))
    with fsspec.open("memory://given/rows.jsonl", "wb") as file:
        file.write(line)
    (tmp_path / "rows.jsonl").write_bytes(line)
    for place in (
        str(tmp_path / "rows.jsonl.gz"),
        (tmp_path / "rows.jsonl").as_uri(),
        "memory://given/rows.jsonl",
        "memory://given",
    ):
        assert staged_rows(place, output)[0]["prompt"] == "hello", place


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "folder without files"),
        ({"notes.txt": "hello"}, "notes.txt is of no format that can be read; allowed: .jsonl"),
        ({"inner/a.csv": "prompt\na\n"}, "has a folder inner in it"),
        ({"a.csv": "text\na\n"}, "the rows have no prompt; their columns are text"),
        ({"a.csv": "prompt;id\na;1\n"}, "something else than commas"),
        ({"a.csv": "prompt,prompt\na,b\n"}, "'prompt' stands there twice"),
        ({"a.csv": "prompt\n"}, "no rows (a.csv)"),
        ({"a.jsonl.gz": "not packed"}, "a.jsonl.gz cannot be read: Not a gzipped file"),
        ({"a.parquet": "no such thing"}, "a.parquet cannot be read: .*Parquet"),
        (
            {"a.csv": "prompt,n\na,1\n", "b.jsonl": '{"prompt": "b", "n": 1}\n'},
            "b.jsonl has a column of another type than the files before it: .*n",
        ),
    ],
)
def test_an_input_that_cannot_be_read_says_what_is_wrong(
    tmp_path: Path, output: str, files: dict[str, str], told: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=told.replace("(", r"\(").replace(")", r"\)")):
        stage(find_files(str(tmp_path)), output, 10)


def test_an_input_that_is_not_there_says_where_relative_paths_begin() -> None:
    with pytest.raises(DataError, match="begins at the repository's root"):
        find_files("nowhere/rows.jsonl")


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [{"prompt": "a"}])
    same = write_jsonl(tmp_path / "same.jsonl", [{"prompt": "a"}])
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "b"}])
    first, second, third = (identity(find_files(place)[0]) for place in (one, same, other))
    assert first["digest"] == second["digest"] != third["digest"]


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@given(st.lists(st.one_of(names, st.sampled_from(["row", "Answer", "error", "input_error"]))))
def test_a_column_whose_name_is_taken_is_renamed_and_never_lost(own: list[str]) -> None:
    columns = list(dict.fromkeys(own))
    found = output_names(columns)
    assert list(found) == columns
    renamed = [name for name in columns if found[name] != name]
    assert all(found[name].endswith(f"input_{name}") for name in renamed)
    taken = [name.lower() for name in ("row", "answer", "error")]
    assert not {found[name].lower() for name in columns} & set(taken)
    new = [found[name].lower() for name in renamed]
    assert len(set(new)) == len(new)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.integers(1, 7),
)
def test_parts_hold_every_row_once_in_order(batch_rows: list[int], part_rows: int) -> None:
    start, batches = 0, []
    for count in batch_rows:
        values = pa.array(range(start, start + count), pa.int64())
        batches.append(pa.RecordBatch.from_arrays([values], ["n"]))
        start += count
    parts = [table["n"].to_pylist() for table in divided(batches, part_rows)]
    assert [number for part in parts for number in part] == list(range(start))
    assert all(len(part) == part_rows for part in parts[:-1])
    assert all(0 < len(part) <= part_rows for part in parts)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), names
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.dictionaries(names, st.one_of(scalars, st.lists(scalars, max_size=2)), max_size=4),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
)
def test_json_lines_of_any_shape_keep_every_row_and_value(
    rows: list[dict[str, Any]], part_rows: int
) -> None:
    asked = [{**row, "prompt": f"row {number}"} for number, row in enumerate(rows)]
    content = "".join(json.dumps(row) + "\n" for row in asked).encode()
    place, output = f"memory://{uuid4().hex}/rows.jsonl", f"memory://{uuid4().hex}"
    with fsspec.open(place, "wb") as file:
        file.write(content)
    called = output_names(dict.fromkeys(name for row in asked for name in row))
    found = staged_rows(place, output, part_rows)
    assert [row["prompt"] for row in found] == [row["prompt"] for row in asked]
    for row, kept in zip(asked, found, strict=True):
        for name, value in row.items():
            assert kept[called[name]] in (value, json.dumps(value, ensure_ascii=False))


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner)))
def test_whatever_a_row_is_it_is_asked_or_told_why_not(row: Any) -> None:
    try:
        request = request_of(row)
    except ValueError as error:
        assert str(error)
    else:
        assert set(request) in ({"prompt"}, {"messages"})


def test_a_bad_row_of_parquet_is_told_by_its_number(tmp_path: Path, output: str) -> None:
    prompts = ["fine"] * 600
    prompts[299] = " "
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "rows.parquet")
    problems = [row[PROBLEM] for row in staged_rows(str(tmp_path / "rows.parquet"), output)]
    assert [index for index, problem in enumerate(problems) if problem] == [299]
    assert problems[299].startswith("rows.parquet row 300: prompt is ' '")


def test_a_damaged_parquet_file_is_told_before_anything_is_asked(
    tmp_path: Path, output: str
) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["hello " * 50] * 500}), sink, compression="none")
    content = bytearray(sink.getvalue())
    content[40:400] = b"\xff" * 360
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.parquet cannot be read"):
        stage(find_files(str(tmp_path / "rows.parquet")), output, 10)


def test_own_columns_that_are_called_as_the_staged_ones_come_back(
    tmp_path: Path, output: str
) -> None:
    own = {"prompt": "hello", REQUEST: "mine", PROBLEM: "none"}
    (row,) = staged_rows(write_jsonl(tmp_path / "rows.jsonl", [own]), output)
    assert json.loads(row[REQUEST]) == {"prompt": "hello"}
    assert row[PROBLEM] is None
    assert (row[f"input_{REQUEST}"], row[f"input_{PROBLEM}"]) == ("mine", "none")


def test_lines_that_are_all_broken_are_rows_with_errors(tmp_path: Path, output: str) -> None:
    (tmp_path / "rows.jsonl").write_text("{broken\n{}\n")
    problems = [row[PROBLEM] for row in staged_rows(str(tmp_path / "rows.jsonl"), output)]
    assert problems[0].startswith("rows.jsonl line 1: is no JSON")
    assert problems[1] == "rows.jsonl line 2: has no prompt; give one of prompt, messages"
