"""JSON records are streamed, and what is wrong with them is told with line and column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from codellama_data import DataError, records
from codellama_data.records import read_records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OBJECTS = st.lists(
    st.dictionaries(
        st.text(max_size=5), st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), st.lists)
    ),
    min_size=1,
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(objects=OBJECTS, indent=st.sampled_from([None, 2]), block=st.integers(1, 40))
def test_any_array_comes_back_whatever_the_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objects: list[dict[str, object]], indent: int | None, block: int
) -> None:
    monkeypatch.setattr(records, "_BLOCK_CHARACTERS", block)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(objects, indent=indent), encoding="utf-8")
    assert [record.value for record in read_records(path)] == objects


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, expected a JSON array"),
        ("[]", "holds no records"),
        ("{}", "line 1, column 1: expected a JSON array"),
        ('[\n {"a": 1},\n {"a" 2}\n]', "line 3, column 7: Expecting ':' delimiter"),
        ('[{"a": 1} {"b": 2}]', "line 1, column 11: expected ',' or ']'"),
        ('[{"a": 1},', "line 1, column 11: Expecting value"),
        ('[{"a": "x', "line 1, column 8: Unterminated string"),
        ('[{"a": 1}] x', "line 1, column 12: extra data"),
        ('[{"a": 1}, 3]', "sample 1: expected a JSON object, found int"),
    ],
)
def test_malformed_arrays(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_malformed_json_lines_and_binary_files(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": }\n')
    with pytest.raises(DataError, match="line 2, column 7: Expecting value"):
        list(read_records(path))
    path.write_bytes(b"\x80\x81\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_records(path))
    deep = tmp_path / "deep.json"
    deep.write_text("[" + '{"a":' * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        list(read_records(deep))


def test_a_mistake_is_told_before_the_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1}, {"b" 2}' + ', {"c": 3}' * 1_000_000 + "]")

    class Counting:
        read_characters = 0

    original = Path.open

    def counted(self: Path, *arguments: object, **named: object) -> object:
        stream = original(self, *arguments, **named)  # type: ignore[call-overload]
        read = stream.read

        def counting_read(size: int) -> object:
            Counting.read_characters += size
            return read(size)

        stream.read = counting_read
        return stream

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", counted)
        with pytest.raises(DataError, match="Expecting ':'"):
            list(read_records(path))
    assert Counting.read_characters <= 2 * records._BLOCK_CHARACTERS
