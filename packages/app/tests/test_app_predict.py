"""`codellama-predict` and what a checkpoint brings along: several processes, adapters, the ids that end a text."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from codellama_app import UserError, plan, predict
from codellama_app.pretrained import open_pretrained
from codellama_app.split_plan import split_plan
from codellama_model.config import ConfigError

sys.path.append(str(Path(__file__).parents[1] / "scripts"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A network whose one key/value head two processes both hold, and whose head is tied."""
    from predict_ranks import make, network

    return make(network(n_kv_heads=1, tie_word_embeddings=True), tmp_path_factory.mktemp("checkpoints"))


def arguments(made, *more: object) -> list[str]:
    fixed = ["--config", "codellama_tiny", "--load_checkpoint", made.paths["full"], "--tokenizer", made.tokenizer]
    return [str(word) for word in (*fixed, *more)]


def one_line(capsys, program, *words: str) -> str:
    """What a command that fails says."""
    from codellama_app.command import run

    with pytest.raises(SystemExit) as ended:
        run("program", program, words)
    assert ended.value.code not in (0, None)
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_two_processes_draw_the_text_of_one(made, tmp_path):
    """From a sharded checkpoint; `scripts/predict_ranks.py` has the other kinds, four processes and greedy texts."""
    import mindspore as ms
    from codellama_app import CodeLlama
    from predict_ranks import PROMPTS, SAMPLED
    from predict_ranks import predict as run_predict

    texts = run_predict(made, "sharded", tmp_path, "--device_num", "2", *SAMPLED)
    lm = CodeLlama.from_pretrained(made.paths["full"], tokenizer=made.tokenizer)
    # as several processes keep it: rounding a cache to float16 moves logits enough to turn a draw now and then
    lm.network.operations = dataclasses.replace(lm.network.operations, cache_dtype=ms.float32)
    ids = lm.generate(
        [lm.tokenizer.encode(prompt) for prompt in PROMPTS],
        24,
        do_sample=True,
        temperature=0.9,
        top_p=0.95,
        seed=7,
        stop_ids=[*lm.stop_ids, lm.tokenizer.eot_id],  # as the command ends a text
        batch_size=2,
    )
    decoders = [lm.tokenizer.incremental_decoder(continuation=True) for _ in ids]
    expected = ["".join(map(one.push, row)) + one.finish() for one, row in zip(decoders, ids, strict=True)]
    assert texts == expected
    assert len({*texts}) == len(PROMPTS)  # or an accident could make them equal
    assert sorted(path.name for path in (tmp_path / "log").glob("rank_*.log")) == ["rank_0.log", "rank_1.log"]
    assert "tokens" in (tmp_path / "log" / "rank_0.log").read_text()
    assert "tokens;" not in (tmp_path / "log" / "rank_1.log").read_text()


def test_ranks_read_their_parts_alone_which_together_are_everything(made):
    from codellama_app.split_network import parts_of
    from codellama_parallel import Mesh

    config, ranks = made.config, 2
    shared = split_plan(config, ranks)
    parts = [parts_of(config, shared, Mesh(shared.strategy, rank)) for rank in range(ranks)]
    whole = config.parameter_shapes()
    for first, second in zip(*parts, strict=True):
        size = math.prod(side.stop - side.start for side in first.slices)
        matrix = len(first.slices) == 2 and not first.name.endswith(("embedding_weight", "wk.weight", "wv.weight"))
        assert size * (2 if matrix else 1) == math.prod(whole[first.stored])
        assert (first.slices == second.slices) is not matrix
    head = next(part for part in parts[0] if part.name == "lm_head.weight")
    assert head.stored == "model.tok_embeddings.embedding_weight"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--device_num", 3), "device_num 3: parallel_config.model_parallel 3 does not divide num_heads 8"),
        (("--device_num", 2, "--weight_dtype", "int8"), "int8 runs in one process"),
        (
            ("--device_num", 2, "--compute_dtype", "bfloat16"),
            "compute_dtype bfloat16 runs in one process",
        ),
        (("--compute_dtype", "float16"), "argument --compute_dtype: invalid choice: 'float16'"),
        (("--load_checkpoint", "nowhere"), "no such file or directory"),
        (("--temperature", 0), "--temperature must be a number above 0"),
    ],
)
def test_what_can_not_run_is_said_in_one_line(made, tmp_path, capsys, words, reason):
    line = one_line(capsys, predict._main, *arguments(made, "--prompt", "x", "--log_dir", tmp_path / "log", *words))
    assert reason in line
    assert not (tmp_path / "log").exists()


def test_a_prompt_that_fills_the_context_is_refused_before_weights_are_read(made, capsys):
    line = one_line(capsys, predict._main, *arguments(made, "--prompt", "import os\n" * 100))
    assert "which leaves no room in the context of 256" in line


def test_a_process_outside_of_a_job_can_not_share_a_network(made):
    from codellama_app import CodeLlama

    with pytest.raises(ConfigError, match="needs so many processes, started with msrun"):
        CodeLlama.from_pretrained(made.paths["full"], device_num=2)


def test_a_processor_without_bfloat16_prompts_refuses_them_in_one_line(made):
    words = [sys.executable, "-m", "codellama_app.predict", *arguments(made, "--prompt", "x")]
    environment = {**os.environ, "CODELLAMA_KERNELS_ISA": "generic"}
    done = subprocess.run(
        [*words, "--compute_dtype", "bfloat16"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "compute_dtype bfloat16" in line and line.endswith("choose float32")


def test_a_text_after_a_prompt_in_bfloat16_is_that_of_float32(made):
    """Of this network and prompt: a nearer tie could turn out otherwise. A prompt of 24 tokens and more is rounded."""
    from codellama_app import CodeLlama
    from codellama_app.codellama import prediction_operations

    try:
        rounded = prediction_operations("bfloat16")
    except UserError as error:
        pytest.skip(str(error))
    exact = CodeLlama.from_pretrained(made.paths["full"], tokenizer=made.tokenizer)
    ours = CodeLlama.from_pretrained(made.paths["full"], tokenizer=made.tokenizer, compute_dtype="bfloat16")
    assert ours.network.operations.cached_layers is rounded.cached_layers
    assert ours.network.operations.cached_layers is not exact.network.operations.cached_layers
    prompt = exact.tokenizer.encode("def main():\n    return " * 8)
    assert len(prompt) >= 24
    assert ours.generate([prompt], 12, stop_ids=()) == exact.generate([prompt], 12, stop_ids=())


@pytest.mark.parametrize(("ids", "stop_ids"), [(7, {7}), ([5, 7], {5, 7}), (None, {2})])
def test_the_generation_config_says_what_ends_a_text(made, ids, stop_ids):
    path = made.paths["hugging_face"] / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": ids, "temperature": 0.6}))
    try:
        assert open_pretrained(made.paths["hugging_face"]).stop_ids == stop_ids
    finally:
        path.unlink()


@pytest.mark.parametrize("ids", [True, "2", [2, 999999], 1.5])
def test_ends_that_are_no_ids_are_refused(made, ids):
    path = made.paths["hugging_face"] / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": ids}))
    try:
        with pytest.raises(ConfigError, match="eos_token_id must be ids below vocab_size"):
            open_pretrained(made.paths["hugging_face"])
    finally:
        path.unlink()


def test_adapters_are_to_be_merged_first(tmp_path):
    from codellama_app.adapters import LORA_KEY
    from codellama_ckpt import save_sharded

    (tmp_path / "a run" / "checkpoints").mkdir(parents=True)
    save_sharded({}, tmp_path / "a run" / "checkpoints" / "step_000001", metadata={LORA_KEY: "{}"})
    with pytest.raises(UserError, match=r"merge them first, with codellama-lora merge --adapter_path '.*a run'"):
        open_pretrained(tmp_path / "a run")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="merge them first"):
        open_pretrained(tmp_path)


def test_the_plan_of_a_prediction_has_a_cache_and_no_gradients(capsys):
    plan._main(["--config", "predict_codellama_34b"])
    told = capsys.readouterr().out
    assert "generation: 1 x 4096 positions" in told and "cache" in told and "gradients" not in told
    plan._main(["--config", "finetune_codellama_34b_16p"])
    assert "gradients" in capsys.readouterr().out


def test_a_configuration_for_prediction_does_not_train():
    from codellama_app.config import load_config

    with pytest.raises(ConfigError, match="run_mode predict is for codellama-predict"):
        load_config("predict_codellama_7b").check_job(1)


@pytest.mark.parametrize("number", ["0", "-4", "four"])
def test_plan_searches_for_devices_only(number, capsys):
    with pytest.raises(SystemExit):
        plan.main(["--config", "finetune_codellama_34b_16p", "--search", "--device_num", number])
    printed = capsys.readouterr()
    assert "argument --device_num: invalid whole number above 0" in printed.err
    assert not printed.out
