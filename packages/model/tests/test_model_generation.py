"""Generation: the cache agrees with whole-sequence passes, batches with single rows, and rows end where they must."""

from __future__ import annotations

import golden_cases as cases
import numpy as np
import pytest
from codellama_model import GenerationError, Generator, LlamaConfig, Sampling, sequence_logits
from model_helpers import network_of

CONTEXT = 300  # no power of two, and longer than one block of prompt
NEW = 12


@pytest.fixture(scope="module")
def generator() -> Generator:
    keys = {**cases.COMMON, **cases.CASES["grouped"], "max_position_embedding": CONTEXT}
    config = LlamaConfig(**keys)
    return Generator(network_of(config, cases.weights(config.parameter_shapes())))


def prompts_of(lengths: tuple[int, ...]) -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(3, cases.COMMON["vocab_size"], length).tolist() for length in lengths]


def greedy_without_cache(generator: Generator, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(sequence_logits(generator.network, np.array([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_equals_whole_sequence_passes_alone_and_in_a_ragged_batch(generator):
    prompts = prompts_of((1, 5, 16, 17, 270))  # within a block, at its edge, across blocks
    expected = [greedy_without_cache(generator, prompt, NEW) for prompt in prompts]
    assert generator.generate(prompts, NEW, stop_ids=()) == expected
    assert [generator.generate([prompt], NEW, stop_ids=())[0] for prompt in prompts] == expected
    assert generator.generate(prompts, NEW, stop_ids=(), batch_size=2) == expected


def test_a_row_ends_at_a_stop_id_which_is_kept_and_others_go_on(generator):
    prompts = prompts_of((4, 9))
    full = generator.generate(prompts, NEW, stop_ids=())
    stop = full[0][3]
    ended = generator.generate(prompts, NEW, stop_ids=(stop,))
    for row, ids in enumerate(full):
        expected = ids[: ids.index(stop) + 1] if stop in ids else ids
        assert ended[row] == expected


def test_the_configured_end_of_sequence_stops_by_default(generator):
    prompt = prompts_of((6,))
    first = generator.generate(prompt, 1, stop_ids=())[0][0]
    keys = {**cases.COMMON, **cases.CASES["grouped"], "max_position_embedding": CONTEXT, "eos_token_id": first}
    config = LlamaConfig(**keys)
    other = Generator(network_of(config, cases.weights(config.parameter_shapes())))
    assert other.generate(prompt, NEW) == [[first]]


def test_should_stop_ends_its_row_only(generator):
    prompts = prompts_of((4, 9))
    counts = [0, 0]

    def should_stop(row: int, token_id: int) -> bool:
        counts[row] += 1
        return row == 1 and counts[row] == 2

    outputs = generator.generate(prompts, NEW, stop_ids=(), should_stop=should_stop)
    assert [len(ids) for ids in outputs] == [NEW, 2] == counts


def test_generation_stops_where_the_context_ends(generator):
    (prompt,) = prompts_of((CONTEXT - 3,))
    assert generator.generate([prompt], NEW, stop_ids=())[0] == greedy_without_cache(generator, prompt, 3)


def test_streaming_marks_the_last_token_of_each_row(generator):
    tokens = list(generator.stream(prompts_of((3, 4)), 3, stop_ids=()))
    assert [token.row for token in tokens] == [0, 1, 0, 1, 0, 1]
    assert [token.last for token in tokens] == [False, False, False, False, True, True]


def test_sampling_depends_on_seed_and_row_and_not_on_the_batch(generator):
    prompts = prompts_of((4, 9, 2))
    sampling = Sampling(do_sample=True, temperature=1.5, seed=4)
    outputs = generator.generate(prompts, NEW, sampling=sampling, stop_ids=())
    assert generator.generate(prompts, NEW, sampling=sampling, stop_ids=(), batch_size=1) == outputs
    assert generator.generate(prompts, NEW, sampling=Sampling(do_sample=True, temperature=1.5, seed=5)) != outputs
    twice = generator.generate([prompts[0], prompts[0]], NEW, sampling=sampling, stop_ids=())
    assert twice[0] == outputs[0] != twice[1]


def test_top_k_of_one_is_greedy(generator):
    prompts = prompts_of((4, 9))
    sampled = generator.generate(prompts, NEW, sampling=Sampling(do_sample=True, top_k=1), stop_ids=())
    assert sampled == generator.generate(prompts, NEW, stop_ids=())


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[]], "prompt 0 is empty"),
        ([[1], [2, 67]], "prompt 1 holds id 67, outside the vocabulary of 67"),
        ([[-1]], "id -1"),
        ([[1] * CONTEXT], f"{CONTEXT} tokens, which leaves no room in the context of {CONTEXT}"),
    ],
)
def test_bad_prompts_are_refused_before_anything_runs(generator, prompts, message):
    with pytest.raises(GenerationError, match=message):
        generator.generate(prompts, NEW)


def test_sequence_logits_refuses_what_it_can_not_compute(generator):
    with pytest.raises(GenerationError, match="id 67 lies outside"):
        sequence_logits(generator.network, np.array([[1, 67]]))
    with pytest.raises(GenerationError, match="do not fit the context"):
        sequence_logits(generator.network, np.ones((1, CONTEXT + 1), int))
    with pytest.raises(GenerationError, match="shape"):
        sequence_logits(generator.network, np.ones(3, int))


def test_no_graph_is_compiled_while_text_grows(generator):
    """One decoding graph and one a block size: the same cell serves all lengths of a cache."""
    from codellama_model.generation import BLOCKS

    (prompt,) = prompts_of((3,))
    generator.generate([prompt], 40, stop_ids=())
    cell = generator._caches[(1, 256)]
    assert 2 <= len(cell.compile_cache) <= 1 + len(BLOCKS)
    before = set(cell.compile_cache)
    generator.generate([prompt], 200, stop_ids=())
    assert set(cell.compile_cache) == before
