"""Training: what the model holds, that it loses nothing, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError, train_tokenizer
from sentencepiece import SentencePieceProcessor


def test_ids_and_pieces_are_llamas(trained: CodeLlamaTokenizer) -> None:
    library = SentencePieceProcessor(model_file=str(trained.model_file))
    assert [library.id_to_piece(i) for i in range(7)] == [
        "<unk>",
        "<s>",
        "</s>",
        "▁<PRE>",
        "▁<SUF>",
        "▁<MID>",
        "▁<EOT>",
    ]
    assert [library.id_to_piece(i) for i in (7, 262)] == ["<0x00>", "<0xFF>"]
    assert trained.vocab_size == 1200
    assert (trained.unk_id, trained.bos_id, trained.eos_id, trained.pad_id) == (0, 1, 2, None)
    assert (trained.prefix_id, trained.suffix_id, trained.middle_id, trained.eot_id) == (3, 4, 5, 6)
    assert all(library.is_control(i) for i in range(1, 7))
    assert trained.supports_infilling


def test_code_comes_back_unchanged(trained: CodeLlamaTokenizer, corpus: list[str]) -> None:
    for text in corpus:
        for changed in (text, text.replace("\n", "\r\n"), text.replace("    ", "\t")):
            assert trained.decode(trained.encode(changed)) == changed


def test_indentation_and_line_ends_are_cheap(trained: CodeLlamaTokenizer) -> None:
    assert len(trained.encode_continuation(" " * 8)) == 1
    assert len(trained.encode_continuation("):\n")) == 1
    assert len(trained.encode_continuation("\n        return")) <= 3


def test_digits_stand_apart(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["year 2026, year 2025, year 2024"] * 50, tmp_path / "tokenizer.model", 280)
    assert len(tokenizer.encode_continuation("2026")) == 4


def test_the_same_texts_give_the_same_file(tmp_path: Path, corpus: list[str]) -> None:
    first = train_tokenizer(corpus[:3], tmp_path / "first.model", 500)
    second = train_tokenizer(iter(corpus[:3]), tmp_path / "second.model", 500)
    assert first.model_file.read_bytes() == second.model_file.read_bytes()
    single = train_tokenizer(corpus[:3], tmp_path / "single.model", 500, num_threads=1)
    assert single.encode_batch(corpus) == first.encode_batch(corpus)


def test_markers_in_the_corpus_do_not_become_pieces(tmp_path: Path) -> None:
    texts = ["x <PRE> y <SUF> z <MID> <EOT> <s> </s> <unk> <0x0A> abc\n"] * 200
    tokenizer = train_tokenizer(texts, tmp_path / "tokenizer.model", 275)
    ids = tokenizer.encode(texts[0], bos=False)
    assert set(range(7)).isdisjoint(ids)
    assert tokenizer.decode(ids) == texts[0]


def test_tabs_and_the_trainers_own_signs_do_not_hide_the_text_around_them(tmp_path: Path) -> None:
    # The trainer skips whole texts that hold a tab or U+2585.
    texts = ["hello\thello ▅ hello\0hello\n"] * 20
    tokenizer = train_tokenizer(texts, tmp_path / "tokenizer.model", 275)
    assert len(tokenizer.encode("hello", bos=False)) == 1
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


def test_a_corpus_without_spaces_keeps_the_implicit_space(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["abcabcabd" * 9], tmp_path / "tokenizer.model", 270)
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


def test_a_run_without_spaces_longer_than_the_trainer_takes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["ab" * 50_000 + "c d"], tmp_path / "tokenizer.model", 270)
    assert tokenizer.decode(tokenizer.encode("abab c d")) == "abab c d"


def test_the_corpus_is_read_as_a_stream(tmp_path: Path) -> None:
    alive: list[int] = []

    class Text(str):
        def __init__(self, _: str) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    most = 0

    def texts() -> Iterator[str]:
        nonlocal most
        for number in range(200):
            yield Text(f"def function_{number}(argument):\n    return argument + {number}\n")
            most = max(most, len(alive))

    train_tokenizer(texts(), tmp_path / "tokenizer.model", 300)
    assert 1 <= most <= 2


def test_nothing_is_written_to_stderr_or_left_beside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(["hello world, hello\n"] * 9, tmp_path / "tokenizer.model", 275)
    with pytest.raises(TokenizerError):
        train_tokenizer(["hello"], tmp_path / "other.model", 9999)
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.model"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    train_tokenizer(["hello world, hello\n"] * 9, file, 275)
    before = file.read_bytes()
    with pytest.raises(TokenizerError):
        train_tokenizer(["hello"], file, 9999)
    assert file.read_bytes() == before


class TestRefusals:
    def test_too_little_text(self, tmp_path: Path) -> None:
        with pytest.raises(
            TokenizerError, match=r"5 characters\) is too small for vocab_size 4096.* at most (\d+)"
        ) as e:
            train_tokenizer(["hello"], tmp_path / "tokenizer.model", 4096)
        largest = int(str(e.value).rsplit(" ", 1)[1])
        assert train_tokenizer(["hello"], tmp_path / "tokenizer.model", largest).vocab_size == largest

    @pytest.mark.parametrize("texts", [[], [""], ["", "\t\t"], ["\n"]])
    def test_empty_corpus(self, tmp_path: Path, texts: list[str]) -> None:
        with pytest.raises(TokenizerError, match="corpus is empty"):
            train_tokenizer(texts, tmp_path / "tokenizer.model", 300)

    @pytest.mark.parametrize("vocab_size", [-1, 0, 263])
    def test_a_vocabulary_without_room_for_the_bytes(self, tmp_path: Path, vocab_size: int) -> None:
        with pytest.raises(TokenizerError, match=f"vocab_size is {vocab_size}, expected at least 264"):
            train_tokenizer(["hello"], tmp_path / "tokenizer.model", vocab_size)

    def test_a_vocabulary_without_room_for_the_characters(self, tmp_path: Path) -> None:
        letters = "".join(map(chr, range(0x4E00, 0x4E40)))
        with pytest.raises(
            TokenizerError, match=r"does not hold the characters of the corpus; raise it to at least 328"
        ):
            train_tokenizer([letters], tmp_path / "tokenizer.model", 300)

    def test_a_lone_surrogate(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match=r"text 1 holds the lone surrogate U\+DC80 at position 0"):
            train_tokenizer(["hello", "\udc80"], tmp_path / "tokenizer.model", 300)

    def test_a_text_that_is_no_str(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="text 0 must be str, not bytes"):
            train_tokenizer([b"hello"], tmp_path / "tokenizer.model", 300)  # type: ignore[list-item]

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match=r"folder .* does not exist"):
            train_tokenizer(["hello"], tmp_path / "none" / "tokenizer.model", 300)

    def test_a_directory_as_file(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match="is a directory"):
            train_tokenizer(["hello"], tmp_path, 300)

    def test_an_error_of_the_texts_comes_through(self, tmp_path: Path) -> None:
        def texts() -> Iterator[str]:
            yield "hello"
            raise RuntimeError("the disk is gone")

        with pytest.raises(RuntimeError, match=r"^the disk is gone$"):
            train_tokenizer(texts(), tmp_path / "tokenizer.model", 300)
