"""Which documents a corpus holds, under which names, and what happens to files that are no text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from codellama_data import DataError, describe, find_corpus, standard_library


def test_standard_library_holds_sources_but_no_tests_or_bundled_packages() -> None:
    names = [name for name, _ in standard_library().files]
    assert {"json/decoder.py", "asyncio/events.py", "heapq.py"} <= set(names)
    assert names == sorted(names)
    assert all(name.endswith(".py") for name in names)
    left_out = re.compile(
        r"(^|/)(tests?|idle_test|\w+_test|site-packages|dist-packages|_bundled|__pycache__)/|(^|/)test_"
    )
    assert not [name for name in names if left_out.search(name)]


def test_folder_is_read_recursively_and_hidden_folders_are_not(tmp_path: Path) -> None:
    for name in ("a.py", "sub/b.c", "sub/c.md", ".git/d.py", "__pycache__/e.py", "sub/f.bin", "g"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [name for name, _ in find_corpus(str(tmp_path)).files] == ["a.py", "sub/b.c", "sub/c.md"]


def test_glob_takes_every_match_and_names_it_relative_to_its_fixed_part(tmp_path: Path) -> None:
    for name in ("x/one.weird", "x/y/two.weird", "x/three.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    corpus = find_corpus(f"{tmp_path}/x/**/*.weird")
    assert [name for name, _ in corpus.files] == ["one.weird", "y/two.weird"]
    assert [name for name, _ in find_corpus(str(tmp_path / "x" / "one.weird")).files] == ["one.weird"]


def test_files_that_are_no_text_are_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"x = 1\r\n")
    (tmp_path / "b.py").write_bytes(b"\xff\xfe")
    (tmp_path / "c.py").write_bytes(b"a\0b")
    (tmp_path / "d.py").write_bytes(b"")
    corpus = find_corpus(str(tmp_path))
    told: list[tuple[str, str]] = []
    documents = list(corpus.documents(lambda *skip: told.append(skip)))
    assert [(one.name, one.text) for one in documents] == [("a.py", "x = 1\r\n")]  # line ends stay
    assert told == corpus.skipped
    assert [(name, reason.split()[0]) for name, reason in told] == [
        ("b.py", "not"),
        ("c.py", "holds"),
        ("d.py", "empty"),
    ]


def test_json_lines_and_parquet_hold_many_documents(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet is an extra")
    import pyarrow.parquet as pq

    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"code": text}) for text in ("one", "two")) + "\n\n")
    pq.write_table(pa.table({"code": ["three", "four"], "n": [1, 2]}), tmp_path / "b.parquet")
    found = [(one.name, one.text) for one in find_corpus(str(tmp_path), "code").documents()]
    assert found == [("a.jsonl:1", "one"), ("a.jsonl:2", "two"), ("b.parquet:0", "three"), ("b.parquet:1", "four")]
    for name in ("a.jsonl", "b.parquet"):
        with pytest.raises(DataError, match=rf"{name}.*'text'.*--text_field"):
            list(find_corpus(str(tmp_path / name)).documents())


def test_digest_changes_with_names_and_contents_only(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    first = find_corpus(str(tmp_path)).digest()
    assert first == find_corpus(f"{tmp_path}/*.py").digest()
    (tmp_path / "a.py").write_text("2")
    second = find_corpus(str(tmp_path)).digest()
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, find_corpus(str(tmp_path)).digest()}) == 3


@pytest.mark.parametrize(("source", "message"), [("nowhere", "no such file"), ("*.nothing", "matches no file")])
def test_nothing_found_is_an_error(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_corpus(str(tmp_path / source))
    with pytest.raises(DataError, match="no document found"):
        find_corpus(str(tmp_path))


def test_describe_lists_every_file_once(tmp_path: Path) -> None:
    for name in ("p/__init__.py", "p/a.py", "p/b.py", "top.py", "p/n.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    lines = describe(find_corpus(str(tmp_path))).splitlines()
    assert lines == ["top.py", "p/n.md", "p/{__init__, a, b}.py", f"{tmp_path}: 5 files"]
    assert max(map(len, describe(standard_library(), width=100).splitlines())) <= 100
