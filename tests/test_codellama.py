"""`CodeLlama` on other people's checkpoints: a real trained model, every storage type, and what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from codellama_app import CodeLlama, UserError
from codellama_app.weights import tree_of
from codellama_ckpt import CheckpointError, save_sharded
from codellama_ckpt.names import to_hugging_face
from codellama_model import GenerationError, LlamaConfig
from codellama_model.config import ConfigError
from safetensors.numpy import save_file

LOGITS_TOLERANCE = 1e-4  # absolute; float32 on either side

# Hugging Face's spelling of a small network like other people's: 9 heads over 3, tied, theta 1e4 (as SmolLM-135M)
SMALL = LlamaConfig(
    vocab_size=96,
    hidden_size=36,
    num_layers=2,
    num_heads=9,
    n_kv_heads=3,
    intermediate_size=48,
    max_position_embedding=64,
    theta=1e4,
    tie_word_embeddings=True,
)


def random_tree(config: LlamaConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = config.parameter_shapes()
    return {
        to_hugging_face(name): rng.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()
    }


def hugging_face_directory(folder: Path, config: LlamaConfig, tree: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_hugging_face()))
    save_file(tree, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def stories(data: Path) -> CodeLlama:
    return CodeLlama.from_pretrained(data / "stories260k")


@pytest.fixture(scope="module")
def golden(data: Path) -> dict[str, list]:
    """Made by transformers, with the versions in `made_with`: greedy ids, and some logits along them."""
    return json.loads((data / "stories260k" / "greedy.json").read_text())


def test_a_real_trained_model_gives_the_logits_of_transformers(stories, golden):
    expected = np.array(golden["logits_first_64_positions_first_8"])
    ids = np.array([golden["greedy_ids"]], np.int32)
    ours = stories.logits(ids)[0, : expected.shape[0], : expected.shape[1]]
    np.testing.assert_allclose(ours, expected, atol=LOGITS_TOLERANCE, rtol=0)


def test_greedy_text_of_a_real_model_equals_that_of_transformers_for_240_tokens(stories, golden):
    prompt, expected = golden["prompt_ids"], golden["greedy_ids"][len(golden["prompt_ids"]) :]
    assert len(expected) == 240
    assert stories.generate([prompt], 240) == [expected]
    assert list(stories.stream(prompt, 240)) == expected
    longer = golden["greedy_ids"][:100]  # the same text from the middle, in a batch with other lengths
    outputs = stories.generate([prompt, longer, golden["greedy_ids"][:33]], 141)
    assert outputs == [expected[:141], expected[99:240], expected[32 : 32 + 141]]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_generic_llama_directory_loads_in_every_float_type_whole_and_sharded(tmp_path, dtype, shards):
    tree = random_tree(SMALL)
    reference = CodeLlama.from_pretrained(hugging_face_directory(tmp_path / "float32", SMALL, rounded(tree, dtype)))
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL.to_hugging_face()))
    names = list(tree)
    index = {}
    for shard in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tree[name] for name in names[shard::shards]}
        index |= dict.fromkeys(part, file)
        write_as(part, dtype, folder / file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    lm = CodeLlama.from_pretrained(folder)
    ids = np.arange(3, 23)[None]
    np.testing.assert_array_equal(lm.logits(ids), reference.logits(ids))
    assert lm.generate([[1, 5, 9], [1]], 5, stop_ids=()) == reference.generate([[1, 5, 9], [1]], 5, stop_ids=())


def rounded(tree: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The values that survive a round trip through `dtype`, in float32."""
    if dtype == "float16":
        return {name: value.astype(np.float16).astype(np.float32) for name, value in tree.items()}
    if dtype == "bfloat16":
        return {name: (bfloat16_bits(value).astype(np.uint32) << 16).view(np.float32) for name, value in tree.items()}
    return tree


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Truncated, which is a bfloat16 as good as any for a test of reading."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def write_as(tree: dict[str, np.ndarray], dtype: str, path: Path) -> None:
    """A safetensors file of that type; bfloat16, which NumPy lacks, by hand."""
    if dtype != "bfloat16":
        save_file({name: value.astype(dtype) for name, value in tree.items()}, path)
        return
    header, blobs, start = {}, [], 0
    for name, value in tree.items():
        blobs.append(bfloat16_bits(value).tobytes())
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [start, start + len(blobs[-1])]}
        start += len(blobs[-1])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def test_a_saved_network_comes_back_bit_for_bit(tmp_path):
    from codellama_app.codellama import config_metadata

    lm = CodeLlama.from_pretrained(hugging_face_directory(tmp_path / "hf", SMALL, random_tree(SMALL)))
    save_sharded(tree_of(lm.network), tmp_path / "step_000001", metadata=config_metadata(SMALL))
    again = CodeLlama.from_pretrained(tmp_path / "step_000001")
    assert again.config.parameter_shapes() == SMALL.parameter_shapes()
    for first, second in zip(lm.network.get_parameters(), again.network.get_parameters(), strict=True):
        assert first.name == second.name and (first.asnumpy() == second.asnumpy()).all()


def test_faults_of_a_checkpoint_are_all_listed(tmp_path):
    tree = random_tree(SMALL)
    del tree["model.norm.weight"], tree["model.layers.1.mlp.up_proj.weight"]
    tree["model.layers.0.self_attn.q_proj.weight"] = np.zeros((36, 35), np.float32)
    tree["model.layers.2.mlp.up_proj.weight"] = np.zeros((48, 36), np.float32)
    tree["model.layers.0.self_attn.q_proj.bias"] = np.zeros(36, np.float32)  # a name that no Llama has
    with pytest.raises(CheckpointError) as caught:
        CodeLlama.from_pretrained(hugging_face_directory(tmp_path / "hf", SMALL, tree))
    for part in (
        "2 missing: ",
        "norm_out.weight",
        "layers.1.feed_forward.w3.weight",
        "2 surplus: ",
        "model.layers.0.self_attn.q_proj.bias",
        "layers.2.feed_forward.w3.weight",
        "attention.wq.weight (found [36, 35], expected [36, 36])",
    ):
        assert part in str(caught.value)


def test_a_truncated_file_is_named(tmp_path):
    folder = hugging_face_directory(tmp_path / "hf", SMALL, random_tree(SMALL))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        CodeLlama.from_pretrained(folder)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        CodeLlama.from_pretrained(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="safetensors"):
        CodeLlama.from_pretrained(tmp_path / "empty")
    folder = hugging_face_directory(tmp_path / "hf", SMALL, random_tree(SMALL))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="model_type must be 'llama'"):
        CodeLlama.from_pretrained(folder)


def test_several_end_ids_of_a_generation_config_all_stop(tmp_path):
    folder = hugging_face_directory(tmp_path / "hf", SMALL, random_tree(SMALL))
    free = CodeLlama.from_pretrained(folder).generate([[1, 4]], 8, stop_ids=())[0]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [95, free[2]]}))
    assert CodeLlama.from_pretrained(folder).generate([[1, 4]], 8) == [free[: free.index(free[2]) + 1]]


def test_stop_strings_end_a_row_and_need_a_tokenizer(tiny_run, tmp_path):
    lm = CodeLlama.from_pretrained(tiny_run.directory)
    prompt = lm.tokenizer.encode("def f(a):\n")
    free = lm.generate([prompt], 30, stop_ids=())[0]
    text = lm.tokenizer.decode_continuation(free)
    stop = text[6:9]
    stopped = lm.tokenizer.decode_continuation(lm.generate([prompt], 30, stop_ids=(), stop=[stop])[0])
    assert text.startswith(stopped) and stop in stopped
    assert stop not in lm.tokenizer.decode_continuation(lm.generate([prompt], 30, stop_ids=(), stop=[stop])[0][:-1])
    bare = CodeLlama.from_pretrained(hugging_face_directory(tmp_path / "hf", SMALL, random_tree(SMALL)))
    with pytest.raises(UserError, match="need a tokenizer"):
        bare.generate([[1]], 2, stop=["x"])


def test_bad_prompts_are_refused(stories):
    with pytest.raises(GenerationError, match="outside the vocabulary of 512"):
        stories.generate([[1, 512]], 3)
    with pytest.raises(GenerationError, match="leaves no room in the context of 512"):
        stories.generate([[1] * 512], 3)
    with pytest.raises(GenerationError, match="do not fit the context of 512"):
        stories.logits(np.ones((1, 513), np.int32))
