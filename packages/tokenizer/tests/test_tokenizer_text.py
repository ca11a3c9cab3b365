"""Text to ids and back: equal to plain SentencePiece, and lossless."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from codellama_tokenizer import CodeLlamaTokenizer, TokenizerError, train_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

# Everything but lone surrogates, which no UTF-8 text holds, and U+2581, SentencePiece's sign for a space.
LOSSLESS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"))
# Text that looks like code, so that long pieces, runs of white space and line ends are met, and not bytes only.
CODE = st.lists(
    st.sampled_from(
        [
            "def ",
            "return",
            "    ",
            "\t",
            "\n",
            "\r\n",
            "  ",
            " ",
            "self.x",
            "(",
            "):",
            "é",
            "日本",
            "😀",
            "0",
            "<s>",
            "\0",
        ]
    )
).map("".join)
TEXT = st.one_of(LOSSLESS, CODE)


def plain(tokenizer: CodeLlamaTokenizer) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(tokenizer.model_file))


@given(text=TEXT)
@example(text="")
@example(text=" ")
@example(text="  leading and trailing  \n")
@example(text="\n\n\tif x:\r\n\t\treturn ☺\n")
def test_decode_inverts_encode(trained: CodeLlamaTokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text
    assert trained.decode(trained.encode(text, bos=False, eos=True)) == text


@given(text=TEXT)
@example(text=" x")
@example(text="☺")
def test_decode_continuation_inverts_encode_continuation(trained: CodeLlamaTokenizer, text: str) -> None:
    assert trained.decode_continuation(trained.encode_continuation(text)) == text


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text="▁a ▁▁ b")
def test_ids_are_those_of_sentencepiece(trained: CodeLlamaTokenizer, text: str) -> None:
    assert trained.encode(text, bos=False) == plain(trained).encode(text)


@given(text=TEXT)
@settings(max_examples=300)
def test_round_trip_on_a_model_of_full_size(real: CodeLlamaTokenizer, text: str) -> None:
    ids = real.encode(text, bos=False)
    assert ids == plain(real).encode(text)
    assert real.decode(ids) == text
    assert real.encode_continuation(text) == plain(real).encode("☺" + text)[2:]
    assert real.decode_continuation(real.encode_continuation(text)) == text


def test_the_sign_for_a_space_comes_back_as_a_space(trained: CodeLlamaTokenizer) -> None:
    assert trained.decode(trained.encode("a▁b")) == "a b"


def test_a_continuation_has_no_implicit_space(trained: CodeLlamaTokenizer) -> None:
    assert trained.encode_continuation("return") != trained.encode("return", bos=False)
    assert trained.encode_continuation(" return") == trained.encode("return", bos=False)
    assert trained.encode_continuation("") == []
    parts = trained.encode("def f(x):\n    ", bos=False), trained.encode_continuation("return x")
    assert trained.decode(parts[0] + parts[1]) == "def f(x):\n    return x"


def test_bos_and_eos_stand_where_asked(trained: CodeLlamaTokenizer) -> None:
    ids = trained.encode("x", bos=False)
    assert trained.encode("x") == [1, *ids]
    assert trained.encode("x", eos=True) == [1, *ids, 2]
    assert trained.encode("", bos=True, eos=True) == [1, 2]


def test_a_batch_equals_its_texts(meta: CodeLlamaTokenizer) -> None:
    texts = ["", "a <PRE> b", "x = 1\n", "é"]
    assert meta.encode_batch(texts) == [meta.encode(text) for text in texts]
    assert meta.encode_batch(iter(texts), bos=False, eos=True) == [meta.encode(t, bos=False, eos=True) for t in texts]
    assert meta.encode_batch([]) == []


@pytest.mark.parametrize("token_id", [-1, 1200, 2**40])
def test_an_id_outside_the_vocabulary_is_named(trained: CodeLlamaTokenizer, token_id: int) -> None:
    with pytest.raises(TokenizerError, match=f"id {token_id} is outside the vocabulary of 1200 pieces"):
        trained.decode([5, token_id])


def test_a_lone_surrogate_is_refused(trained: CodeLlamaTokenizer) -> None:
    for encode in (trained.encode, trained.encode_continuation):
        with pytest.raises(TokenizerError, match=r"lone surrogate U\+D83D at position 2"):
            encode("ab\ud83d")


def test_bytes_are_refused(trained: CodeLlamaTokenizer) -> None:
    with pytest.raises(TypeError, match="text must be str, not bytes"):
        trained.encode(b"abc")  # type: ignore[arg-type]


def test_vocabulary_sizes_must_agree(trained: CodeLlamaTokenizer) -> None:
    trained.check_vocab_size(1200)
    with pytest.raises(TokenizerError, match=r"1200 pieces, more than the 1184 rows"):
        trained.check_vocab_size(1184)
    with pytest.raises(TokenizerError, match=r"1200 pieces, fewer than the 32016 rows"):
        trained.check_vocab_size(32016)


def test_it_survives_pickling(trained: CodeLlamaTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(trained))
    assert copy.encode("def f(): pass") == trained.encode("def f(): pass")


def test_an_anchor_is_found_where_the_reference_one_is_part_of_pieces(tmp_path: Path) -> None:
    smileys = ["☺☺☺☺ a ☺☺"] * 50
    tokenizer = train_tokenizer(smileys, tmp_path / "tokenizer.model", 268)
    pieces = plain(tokenizer)
    assert any("☺☺" in pieces.id_to_piece(i) for i in range(268)), "the corpus no longer makes such a piece"
    for text in ("☺", "☺☺ x", " hello", "y"):
        assert tokenizer.decode_continuation(tokenizer.encode_continuation(text)) == text


class TestFilesThatAreNoTokenizer:
    def check(self, file: Path, message: str) -> None:
        with pytest.raises(TokenizerError, match=message) as caught:
            CodeLlamaTokenizer(file)
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)

    def test_missing(self, tmp_path: Path) -> None:
        self.check(tmp_path / "tokenizer.model", "no such file")

    def test_directory(self, tmp_path: Path) -> None:
        self.check(tmp_path, "is a directory")

    @pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 64, b"not a model\n"])
    def test_other_content(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "tokenizer.model").write_bytes(content)
        self.check(tmp_path / "tokenizer.model", rf"not a SentencePiece model \({len(content)} bytes\)")

    def test_git_lfs_pointer(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        self.check(tmp_path / "tokenizer.model", "git lfs pull")

    def test_no_byte_fallback(self, tmp_path: Path, model_without_bytes: bytes) -> None:
        (tmp_path / "tokenizer.model").write_bytes(model_without_bytes)
        self.check(tmp_path / "tokenizer.model", "found 0 byte pieces, expected 256")
