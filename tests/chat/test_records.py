"""Examples are read from every format that people have, and a broken one is named."""

import json

import pyarrow
import pytest
from datasets import Dataset
from pyarrow import parquet

from trak_lightning.chat import Records
from trak_lightning.errors import DataError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def test_json_lines_json_and_lists_hold_the_same_examples(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    for source in (tmp_path / "rows.jsonl", str(tmp_path / "rows.json"), ROWS, iter(ROWS)):
        assert Records.read(source).rows == tuple(ROWS)


def test_parquet_holds_the_same_examples(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert Records.read(tmp_path / "rows.parquet").rows == tuple(ROWS)
    (tmp_path / "rows.parquet").write_text("no")
    with pytest.raises(DataError, match="rows.parquet cannot be read as Parquet"):
        Records.read(tmp_path / "rows.parquet")


def test_a_dataset_and_the_folder_that_it_was_saved_to_hold_the_same_examples(tmp_path):
    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "rows"))
    for source in (dataset, tmp_path / "rows"):
        assert Records.read(source).rows == tuple(ROWS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", "", r"rows.jsonl is empty"),
        ("rows.jsonl", '{"text": "a"}\n{"text": \n', r"rows.jsonl:2 is not valid JSON"),
        ("rows.jsonl", '{"text": "a"}\n[1]\n', r"example 1 of .*rows.jsonl is a list; expected a mapping"),
        ("rows.json", '{"text": "a"}', r"rows.json holds a dict; expected a list"),
        ("rows.json", '{"text": "a"}\n{}', r"rows.json is not valid JSON.*name it .jsonl"),
        ("rows.csv", "a,b", r"rows.csv has the ending '.csv'; expected JSON lines"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        Records.read(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none.jsonl"):
        Records.read(tmp_path / "none.jsonl")
