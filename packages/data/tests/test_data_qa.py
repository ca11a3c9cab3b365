"""`qa` and `alpaca`: rows equal to an oracle of MindFormers' where that loses nothing; the rest is counted."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from codellama_data import DataError, QaOptions, Summary, convert_alpaca, preprocess_qa
from codellama_data.conversations import Parsed, Turn, render
from codellama_data.qa import encode_rounds, encodes_apart, split_sample
from codellama_tokenizer import CodeLlamaTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

Read = Callable[[object], dict[str, npt.NDArray[np.int32]]]
Conversation = list[dict[str, str]]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PROMPT = {
    True: "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}"
    "\n\n### Response:",
    False: "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:",
}


def oracle_row(messages: Conversation, model_file: Path, length: int) -> tuple[list[int], list[int]] | None:
    """Ids and labels as MindFormers 1.2 makes them, all labels -100 where it masks a sample; None where it cuts one."""
    processor = SentencePieceProcessor(model_file=str(model_file))

    def tokens(text: str) -> list[int]:
        return [1, *processor.encode(text), 2]

    prompt = SYSTEM + " "
    for message in messages:
        if message["from"] == "human":
            prompt += "USER: " + message["value"] + " "
        else:
            prompt += "ASSISTANT: " + message["value"] + "</s>" if message["value"] else "ASSISTANT:"
    rounds = [one for one in prompt.split("</s>") if one]
    ids = [1] + [token for one in rounds for token in tokens(one)[1:]]
    used = len(ids)
    if used > length:
        return None
    ids += [0] * (length - used)
    labels = np.array(ids)
    labels[0], at = -100, 1
    for one in rounds:
        parts = one.split(" ASSISTANT: ")
        if len(parts) != 2:
            break
        labels[at : at + len(tokens(parts[0] + " ASSISTANT: ")) - 3] = -100
        at += len(tokens(one)) - 1
    labels[at:] = -100
    return (ids, labels.tolist() if at == used else [-100] * length)


def conversation(*texts: str) -> Conversation:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def write(path: Path, conversations: list[Conversation]) -> str:
    records = [{"id": str(number), "conversations": one} for number, one in enumerate(conversations)]
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


def run(source: str, tokenizer: CodeLlamaTokenizer, output: Path, workers: int = 1, **options: object) -> Summary:
    qa = QaOptions(**{"seq_length": 256, **options})  # type: ignore[arg-type]
    return preprocess_qa(source, tokenizer, output, qa, num_workers=workers, progress=False)


@pytest.fixture
def alpaca_data(test_data: Path) -> Path:
    return test_data / "codealpaca" / "code_alpaca_2k.json"


def test_alpaca_is_the_cards_converter(alpaca_data: Path, tmp_path: Path) -> None:
    records = json.loads(alpaca_data.read_text(encoding="utf-8"))
    assert convert_alpaca(alpaca_data, tmp_path / "o.json") == len(records) == 2017
    expected = [
        {
            "id": str(number),
            "conversations": conversation(PROMPT[bool(one["input"])].format(**one), one["output"]),
        }
        for number, one in enumerate(records, start=1)
    ]
    assert (tmp_path / "o.json").read_text(encoding="utf-8") == json.dumps(expected, indent=2, ensure_ascii=False)


@pytest.mark.parametrize("seq_length", [1024, 300])
def test_rows_equal_mindformers_on_code_alpaca(
    alpaca_data: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read, seq_length: int
) -> None:
    convert_alpaca(alpaca_data, tmp_path / "c.json")
    source = str(tmp_path / "c.json")
    summary = run(source, tokenizer, tmp_path / "o", workers=2, seq_length=seq_length, on_overlong="drop")
    conversations = [one["conversations"] for one in json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))]
    expected = [oracle_row(one, tokenizer.model_file, seq_length + 1) for one in conversations]
    kept = [row for row in expected if row is not None]
    rows = read_all(tmp_path / "o")
    assert list(rows) == ["input_ids", "labels"]
    assert rows["input_ids"].dtype == rows["labels"].dtype == np.int32
    assert rows["input_ids"].tolist() == [ids for ids, _ in kept]
    assert rows["labels"].tolist() == [labels for _, labels in kept]
    counts = dict(summary.left_out)
    masked = sum(set(labels) == {-100} for _, labels in kept)
    assert counts["samples with an empty answer"] == 2
    assert counts["rows without loss"] == masked == (2 if seq_length == 1024 else 1)  # one is overlong
    assert counts["overlong samples"] + len(kept) == 2017
    assert (counts["overlong samples"] > 100) == (seq_length == 300)
    assert summary.loss_tokens == sum(label != -100 for _, labels in kept for label in labels)
    assert summary.loss_share == summary.loss_tokens / (len(kept) * (seq_length + 1))


def test_several_rounds_and_an_opening_message_of_the_assistant(
    tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read
) -> None:
    turns = conversation("hello", "hi there", "and\nagain", "\n  yes", "x" * 30, "1")
    opened = [{"from": "gpt", "value": "welcome"}, *turns]
    unanswered = [*turns, {"from": "human", "value": "lost"}]
    summary = run(write(tmp_path / "c.json", [turns, opened, unanswered]), tokenizer, tmp_path / "o")
    expected = oracle_row(turns, tokenizer.model_file, 257)
    assert expected is not None
    rows = read_all(tmp_path / "o")
    assert rows["input_ids"].tolist() == [expected[0]] * 3  # MindFormers masks the third one whole
    assert rows["labels"].tolist() == [expected[1]] * 3
    assert dict(summary.left_out)["messages without partner"] == 2


def test_what_mindformers_would_mask_keeps_its_labels(
    tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read
) -> None:
    tricky = conversation("say ASSISTANT: and </s> now", "</s> USER: x ASSISTANT: done <s> <unk> ASSISTANT: y")
    expected = oracle_row(tricky, tokenizer.model_file, 257)
    assert expected is not None
    assert set(expected[1]) == {-100}
    run(write(tmp_path / "c.json", [tricky]), tokenizer, tmp_path / "o")
    rows = read_all(tmp_path / "o")
    ids, labels = rows["input_ids"][0], rows["labels"][0]
    learned = ids[labels != -100]
    assert (labels[labels != -100] == learned).all()
    assert tokenizer.decode(learned[:-1].tolist()) == tricky[1]["value"]
    assert learned[-1] == tokenizer.eos_id
    assert (ids == tokenizer.eos_id).sum() == (ids == tokenizer.bos_id).sum() == 1  # text never becomes a control id


def test_empty_answers_are_kept_dropped_or_refused_and_counted(
    tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read
) -> None:
    alone, between = conversation("q", ""), conversation("q", "", "again", "now")
    behind = conversation("first", "yes", "second", "")
    source = write(tmp_path / "c.json", [alone, between, behind, conversation("q", "a")])
    kept = run(source, tokenizer, tmp_path / "k")
    counts = dict(kept.left_out)
    assert (kept.rows, counts["samples with an empty answer"], counts["rows without loss"]) == (4, 3, 1)
    rows = read_all(tmp_path / "k")
    for number, talk in enumerate([alone, between, behind]):
        expected = oracle_row(talk, tokenizer.model_file, 257)
        assert expected is not None
        assert rows["input_ids"][number].tolist() == expected[0]
        if talk is not behind:
            assert rows["labels"][number].tolist() == expected[1]
    learned = [row[row != -100].tolist() for row in rows["labels"]]  # of the third one MindFormers learns nothing
    assert [tokenizer.decode(one) for one in learned] == ["", "now", "yes", "a"]
    assert [one.count(tokenizer.eos_id) for one in learned] == [0, 1, 1, 1]
    dropped = run(source, tokenizer, tmp_path / "d", on_empty_answer="drop")
    assert (dropped.rows, dict(dropped.left_out)["samples with an empty answer"]) == (1, 3)
    assert (read_all(tmp_path / "d")["input_ids"] == rows["input_ids"][3:]).all()
    with pytest.raises(DataError, match="sample 0: empty answer"):
        run(source, tokenizer, tmp_path / "e", on_empty_answer="error")
    with pytest.raises(DataError, match="every answer is empty"):
        run(write(tmp_path / "n.json", [alone, alone]), tokenizer, tmp_path / "n")
    llama = run(source, tokenizer, tmp_path / "l", template="llama-2")
    assert (llama.rows, dict(llama.left_out)["rows without loss"]) == (4, 1)


def test_llama2_rows_begin_with_the_prompt_of_the_reference(tokenizer: CodeLlamaTokenizer) -> None:
    turns = [Turn("  what?\n", " that "), Turn("more", "no\n")]
    for system in (None, "be kind\n"):
        ids, labels = encode_rounds(render("llama-2", Parsed(system, turns, 0)), "llama-2", tokenizer)
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": "user", "content": "  what?\n"}, {"role": "assistant", "content": " that "}]
        messages += [{"role": "user", "content": "more"}]
        prompt = tokenizer.encode_chat(messages)
        assert ids[: len(prompt)] == prompt
        learned = [label for label in labels if label != -100]
        stops = [at for at, one in enumerate(learned) if one == tokenizer.eos_id]
        assert tokenizer.decode(learned[: stops[0]]).strip() == "that"
        assert tokenizer.decode(learned[stops[0] + 1 : stops[1]]).strip() == "no"
        assert len(stops) == 2


@given(size=st.integers(2, 60), length=st.integers(2, 20))
def test_splitting_loses_no_label(size: int, length: int) -> None:
    ids = list(range(size))
    labels = [-100] + [one if one % 3 else -100 for one in ids[1:]]
    pieces = split_sample((ids, labels), length)
    assert all(len(one) == len(other) <= length for one, other in pieces)
    targets = [label for _, piece in pieces for label in piece[1:]]  # the model shifts: the first one is no target
    assert targets == labels[1:]
    contexts = [one for piece, _ in pieces for one in piece[:-1]]
    assert contexts == ids[:-1]


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(conversations=st.lists(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), min_size=1, max_size=12))
def test_packing_keeps_every_sample_whole(
    tokenizer: CodeLlamaTokenizer, conversations: list[list[tuple[str, str]]]
) -> None:
    from codellama_data.qa import _pack, _pad

    samples = [
        encode_rounds(render("vicuna_v1.1", Parsed(None, [Turn(*turn) for turn in one], 0)), "vicuna_v1.1", tokenizer)
        for one in conversations
    ]
    length = max(400, *(len(ids) for ids, _ in samples))
    packed, padded = _pack(samples, length), _pad(samples, length)
    found = []
    for ids, labels, numbers in packed:
        assert (np.diff(numbers[numbers > 0]) >= 0).all()
        assert (ids[numbers == 0] == 0).all()
        assert (labels[numbers == 0] == -100).all()
        for number in range(1, numbers.max() + 1):
            inside = numbers == number
            assert labels[inside][0] == -100  # nothing is predicted across a boundary
            found.append((ids[inside].tolist(), labels[inside].tolist()))
    assert sorted(found) == sorted(samples)
    assert len(packed) <= len(padded)
    # Equal sums over equal targets: the loss of packed rows is that of the unpacked ones.
    assert (packed[:, 1, 1:] != -100).sum() == (padded[:, 1, 1:] != -100).sum()


def test_packed_file_has_document_ids(tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read) -> None:
    source = write(tmp_path / "c.json", [conversation(f"q{n}", "answer " * n) for n in range(1, 30)])
    packed = run(source, tokenizer, tmp_path / "o", seq_length=600, packing=True)
    plain = run(source, tokenizer, tmp_path / "p", seq_length=600)
    assert packed.loss_tokens == plain.loss_tokens
    assert packed.rows < plain.rows == 29
    assert set(read_all(tmp_path / "o")) == {"input_ids", "labels", "document_ids"}


def test_overlong_samples_are_handled_as_asked_and_counted(
    tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read
) -> None:
    source = write(tmp_path / "c.json", [conversation("q", "short"), conversation("q", "long " * 300)])
    whole = run(source, tokenizer, tmp_path / "w", seq_length=2000)
    cut = run(source, tokenizer, tmp_path / "t")
    assert (cut.rows, dict(cut.left_out)["truncated samples"]) == (2, 1)
    assert cut.dropped_tokens > 300
    assert (read_all(tmp_path / "t")["input_ids"] == read_all(tmp_path / "w")["input_ids"][:, :257]).all()
    dropped = run(source, tokenizer, tmp_path / "d", on_overlong="drop")
    assert (dropped.rows, dict(dropped.left_out)["overlong samples"]) == (1, 1)
    split = run(source, tokenizer, tmp_path / "s", on_overlong="split")
    assert split.rows > 2
    assert split.loss_tokens == whole.loss_tokens
    with pytest.raises(DataError, match=r"sample 1: \d+ ids, more than seq_length \+ 1 = 257"):
        run(source, tokenizer, tmp_path / "e", on_overlong="error")
    with pytest.raises(DataError, match="no row holds a token of an answer"):
        run(source, tokenizer, tmp_path / "e", seq_length=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    turns=st.lists(st.tuples(st.text(": \na1é▁", max_size=8), st.text(": \na1é", max_size=8)), min_size=1, max_size=3)
)
def test_encoding_prompt_and_answer_apart_changes_nothing(
    tokenizer: CodeLlamaTokenizer, turns: list[tuple[str, str]]
) -> None:
    assert encodes_apart(tokenizer)
    for template in ("vicuna_v1.1", "llama-2"):
        rounds = render(template, Parsed(None, [Turn(*turn) for turn in turns], 0))
        assert encode_rounds(rounds, template, tokenizer, apart=True) == encode_rounds(rounds, template, tokenizer)


def test_a_piece_across_the_end_of_the_prompt_is_noticed(tmp_path: Path) -> None:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a: a: a: a"] * 50),
        model_writer=model,
        model_type="bpe",
        vocab_size=264,
        treat_whitespace_as_suffix=True,
        byte_fallback=True,
        split_by_whitespace=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    assert not encodes_apart(CodeLlamaTokenizer(tmp_path / "tokenizer.model"))


def test_shards_and_workers_keep_the_samples(tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read) -> None:
    source = write(tmp_path / "c.json", [conversation(f"question {n}", f"answer {n}") for n in range(600)])
    one = run(source, tokenizer, tmp_path / "one")
    run(source, tokenizer, tmp_path / "two", workers=2)
    rows = read_all(tmp_path / "one")["input_ids"]
    assert one.rows == 600
    assert (rows == read_all(tmp_path / "two")["input_ids"]).all()
    for shard in range(2):
        preprocess_qa(
            source, tokenizer, tmp_path / f"s{shard}", QaOptions(256), progress=False, shard_id=shard, num_shards=2
        )
        assert (read_all(tmp_path / f"s{shard}")["input_ids"] == rows[shard::2]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ('[{"conversations": [}]', "line 1, column 21"),
        ('[{"id": "1"}]', 'sample 0: has no list "conversations", only id'),
        ('[{"conversations": [{"value": "x"}]}]', 'message 0 has no text "from"'),
        ('[{"conversations": [{"from": "human"}]}]', 'message 0 has no text "value"'),
        ('[{"conversations": [{"from": "bot", "value": "x"}]}]', "message 0 is from 'bot'"),
        (
            json.dumps([{"conversations": [*conversation("a"), *conversation("b")]}]),
            "roles do not alternate, message 1",
        ),
        (json.dumps([{"conversations": conversation("a", "")}]), "sample 0: empty answer"),
        (json.dumps([{"conversations": conversation("a")}]), "no question with an answer"),
        (json.dumps([{"conversations": conversation("\ud800", "b")}]), "sample 0: .*surrogate"),
    ],
)
def test_bad_samples_are_one_line_that_names_the_place(
    tmp_path: Path, tokenizer: CodeLlamaTokenizer, text: str, message: str
) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        run(str(path), tokenizer, tmp_path / "out" / "o", on_empty_answer="error")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_unknown_options_are_refused() -> None:
    with pytest.raises(DataError, match=r"template 'alpaca' is unknown, choose from vicuna_v1\.1, llama-2"):
        QaOptions(10, "alpaca")
    with pytest.raises(DataError, match="on_overlong 'x' is unknown"):
        QaOptions(10, on_overlong="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "a"}]', "sample 0: expected text under 'output', found only instruction"),
        ('[{"instruction": "a", "output": 3}]', "found a int"),
        ('[{"instruction": "\\ud800", "output": "x"}]', "record 1: lone surrogate"),
    ],
)
def test_bad_alpaca_records(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        convert_alpaca(tmp_path / "a.json", tmp_path / "o.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
