"""Which documents a corpus holds: the standard library, a folder, a glob or a file, as a sorted list of files.

Covers finding, naming, hashing and reading documents one by one, those inside JSON lines and Parquet files included.
What is made of a document is `code.py`'s concern.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import platform
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from codellama_data.errors import DataError
from codellama_data.records import read_parquet, read_records

# What counts as text when a whole folder is given. A glob or a file name is taken at its word instead.
_SUFFIXES = """
    .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .java .kt .scala .js .jsx .mjs .ts .tsx .go .rs .rb .php .cs
    .fs .swift .m .mm .lua .pl .pm .r .jl .hs .ml .mli .ex .exs .erl .clj .lisp .el .scm .dart .zig .nim .d .f90 .f
    .asm .s .v .sv .vhd .sql .sh .bash .zsh .ps1 .bat .cmake .mk .html .css .scss .vue .proto .thrift .tex
    .md .rst .txt .jsonl .parquet
"""
TEXT_SUFFIXES = frozenset(_SUFFIXES.split())
_STDLIB_LEFT_OUT = (
    "test", "tests", "idle_test", "*_test", "site-packages", "dist-packages", "_bundled", "__pycache__", "config-*"
)  # fmt: skip
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True)
class Document:
    """One text with the name that its randomness and its place in training or evaluation depend on."""

    name: str
    text: str


@dataclass
class Corpus:
    """A sorted list of files.

    Args:
        name: what the user asked for, for messages.
        files: (relative name with forward slashes, path), sorted by name. A `.jsonl` or `.parquet` file holds many
            documents, named `file:number`; every other file is one document.
        text_field: the field (or column) of such a record that is the document's text.
        skipped: (name, reason) of the files that the last `documents()` left out.
    """

    name: str
    files: tuple[tuple[str, Path], ...]
    text_field: str = "text"
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.files:
            raise DataError(f"{self.name}: no document found, expected at least one text file")

    def digest(self) -> str:
        """SHA-256 (hexadecimal) over every file's name and contents: the same digest means the same corpus."""
        total = hashlib.sha256()
        for name, path in self.files:
            one = hashlib.sha256()
            try:
                with path.open("rb") as stream:
                    while chunk := stream.read(_HASH_CHUNK):
                        one.update(chunk)
            except OSError as error:
                raise DataError(f"{path}: can not be read ({error.strerror})") from error
            total.update(name.encode("utf-8", "surrogateescape") + b"\0" + one.digest())
        return total.hexdigest()

    def documents(self, on_skip: Callable[[str, str], None] | None = None) -> Iterator[Document]:
        """Stream the documents one by one, in the order of `files`.

        Args:
            on_skip: called with (name, reason) for a file that is not text; `skipped` collects the same.

        Raises:
            DataError: a file can not be read.
        """
        self.skipped = []
        for name, source, _ in self.items():
            text, reason = load(source)
            if text is None:
                self.skipped.append((name, reason))
                if on_skip is not None:
                    on_skip(name, reason)
                continue
            yield Document(name, text)

    def items(self) -> Iterator[tuple[str, str | Path, float]]:
        """Stream (name, text or the path it is to be read from, bytes of input it stands for), without reading files.

        So worker processes can do the reading. Give the middle one to `load`.
        """
        for name, path in self.files:
            suffix = path.suffix.lower()
            if suffix == ".jsonl":
                for number, record in enumerate(read_records(path), start=1):
                    text = record.value.get(self.text_field)
                    if not isinstance(text, str):
                        raise DataError(
                            f"{record.place}: has no text field {self.text_field!r}, only {', '.join(record.value)}; "
                            "give --text_field"
                        )
                    yield f"{name}:{number}", text, record.source_bytes
            elif suffix == ".parquet":
                for row, text, source_bytes in read_parquet(path, self.text_field):
                    yield f"{name}:{row}", text, source_bytes
            else:
                yield name, path, _size(path)

    def source_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file_sizes(self.files))


def load(source: str | Path) -> tuple[str | None, str]:
    """The text of a document, or None and why it is not one; see `Corpus.items`."""
    if isinstance(source, Path):
        return read_text(source)
    return (source, "") if source else (None, "empty")


def read_text(path: Path) -> tuple[str | None, str]:
    """Read one file as UTF-8, line ends as they are.

    Returns:
        (text, "") or (None, why the file is not a document).

    Raises:
        DataError: the file can not be read at all.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can not be read ({error.strerror})") from error
    if not raw:
        return None, "empty"
    if b"\0" in raw:
        return None, "holds NUL bytes, so it is not text"
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 (byte {error.start})"


def standard_library() -> Corpus:
    """The running Python's standard library: `*.py` sources, without tests, bundled packages and generated files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in _walk(root, lambda name: any(fnmatch.fnmatch(name, pattern) for pattern in _STDLIB_LEFT_OUT)):
        # _sysconfigdata holds the paths of the machine that built this Python: no code to learn from.
        if path.suffix == ".py" and not path.name.startswith(("test_", "_sysconfigdata")):
            found.append((path.relative_to(root).as_posix(), path))
    return Corpus(f"the standard library of Python {platform.python_version()}", tuple(sorted(found)))


def find_corpus(source: str, text_field: str = "text") -> Corpus:
    """Find the documents behind what a user wrote.

    Args:
        source: `stdlib`; or a folder, read recursively for files whose suffix is in `TEXT_SUFFIXES`, hidden folders and
            `__pycache__` left out; or a glob (`**` crosses folders), every match taken; or one file.
        text_field: of the records in `.jsonl` and `.parquet` files.

    Raises:
        DataError: nothing was found.
    """
    if source == "stdlib":
        return standard_library()
    path = Path(source)
    if path.is_dir():
        found = _walk(path, lambda name: name.startswith(".") or name == "__pycache__")
        files = [(one.relative_to(path).as_posix(), one) for one in found if one.suffix.lower() in TEXT_SUFFIXES]
        return Corpus(source, tuple(sorted(files)), text_field)
    return Corpus(source, find_files(source), text_field)


def find_files(pattern: str) -> tuple[tuple[str, Path], ...]:
    """Find what a file name or a glob means, as (name relative to the pattern's fixed part, path), sorted by name.

    Raises:
        DataError: nothing was found.
    """
    path = Path(pattern)
    if path.is_file():
        return ((path.name, path),)
    if path.is_dir():
        raise DataError(f"{pattern}: is a folder, expected a file or a glob such as {path / '*'}")
    if not glob.has_magic(pattern):
        raise DataError(f"{pattern}: no such file or folder")
    base = _fixed_part(path)
    matches = {Path(match) for match in glob.glob(pattern, recursive=True)}  # noqa: PTH207 (Path.glob refuses absolute ones)
    files = [(one.relative_to(base).as_posix(), one) for one in matches if one.is_file()]
    if not files:
        raise DataError(f"{pattern}: the pattern matches no file")
    return tuple(sorted(files))


def file_sizes(files: tuple[tuple[str, Path], ...]) -> list[int]:
    """Bytes of each of the files that `find_files` found."""
    return [_size(path) for _, path in files]


def describe(corpus: Corpus, width: int = 120) -> str:
    """List the files compactly, one line per folder and suffix such as `json/{decoder, encoder}.py`, and the count."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, _ in corpus.files:
        path = PurePosixPath(name)
        folder = "" if str(path.parent) == "." else f"{path.parent}/"
        groups.setdefault((folder, path.suffix), []).append(path.name[: len(path.name) - len(path.suffix)])
    lines = []
    for (folder, suffix), stems in sorted(groups.items()):
        entry = f"{folder}{stems[0]}{suffix}" if len(stems) == 1 else f"{folder}{{{', '.join(stems)}}}{suffix}"
        lines += textwrap.wrap(entry, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    count = len(corpus.files)
    lines.append(f"{corpus.name}: {count:,} file{'s' if count != 1 else ''}")
    return "\n".join(lines)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: can not be read ({error.strerror})") from error


def _walk(root: Path, left_out: Callable[[str], bool]) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not left_out(name)]
        for name in files:
            path = Path(folder, name)
            if path.is_file():  # sockets, pipes and dangling links would block or fail later
                yield path


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern before its first wildcard: names are relative to it, so they survive a move."""
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
