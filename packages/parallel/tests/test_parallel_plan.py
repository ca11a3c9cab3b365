"""Strategy, mesh and plan: refusals with their reasons, and slices that together are the network."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from codellama_model import LlamaConfig, preset
from codellama_model.config import ConfigError
from codellama_parallel import TABLE, Mesh, ParallelConfig, Plan, Sharding
from codellama_parallel.buckets import gradient_buckets
from codellama_parallel.random_weights import normal_slice
from codellama_parallel.report import parse_size, write_layout

CONFIG = LlamaConfig(vocab_size=64, hidden_size=32, num_layers=5, num_heads=8, n_kv_heads=2, intermediate_size=48)
TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)
STRATEGIES = [
    ParallelConfig(data, model, pipeline, use_seq_parallel=sequence, optimizer_shard=shard)
    for data, model, pipeline in itertools.product((1, 2, 3), (1, 2, 4), (1, 2, 3))
    for sequence, shard in ((False, False), (True, True))
]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"data_parallel": 0}, "data_parallel must be a whole number above 0"),
        ({"use_seq_parallel": 1}, "use_seq_parallel must be true or false"),
        ({"recompute": "some"}, "recompute must be one of none, selective, full"),
        ({"pipeline_stage": 2, "pipeline_offset": (1,)}, "1 numbers for pipeline_stage 2"),
        ({"pipeline_offset": 3}, "must be 0 or a list"),
    ],
)
def test_impossible_values_are_refused_by_name(values, reason):
    with pytest.raises(ConfigError, match=reason):
        ParallelConfig(**values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_parallel": 3}, "does not divide num_heads 8"),
        ({"model_parallel": 16}, "does not divide num_heads 8"),
        ({"pipeline_stage": 6}, "leave a stage empty"),
        ({"pipeline_stage": 2, "pipeline_offset": (2, 1)}, "adds up to 3; it must be 0"),
        ({"pipeline_stage": 2, "pipeline_offset": (2, -2)}, "leave a stage empty"),
    ],
)
def test_strategies_that_do_not_fit_the_network_are_refused(values, reason):
    with pytest.raises(ConfigError, match=reason):
        Plan(CONFIG, ParallelConfig(**values))


def test_a_job_of_another_size_and_batches_that_do_not_split_are_refused():
    strategy = ParallelConfig(data_parallel=2, model_parallel=2, use_seq_parallel=True, micro_batch_num=3)
    with pytest.raises(ConfigError, match="= 4 processes, but the job has 8"):
        strategy.check(CONFIG, device_num=8)
    with pytest.raises(ConfigError, match="does not divide the 4 rows"):
        strategy.check_batch(4, 16)
    with pytest.raises(ConfigError, match="can not be split evenly over model_parallel 2"):
        strategy.check_batch(3, 15)
    with pytest.raises(ConfigError, match="set vocab_emb_dp false"):
        Plan(TIED, ParallelConfig(model_parallel=2, vocab_emb_dp=True))
    with pytest.raises(ConfigError, match="n_kv_heads 6"):
        sizes = dataclasses.replace(CONFIG, num_heads=12, n_kv_heads=6, head_dim=4)
        Plan(sizes, ParallelConfig(model_parallel=4))


def test_layers_of_stages():
    assert ParallelConfig(pipeline_stage=2).layers_of_stages(5) == (3, 2)
    assert ParallelConfig(pipeline_stage=3, pipeline_offset=[1, 0, -1]).layers_of_stages(6) == (3, 2, 1)
    assert ParallelConfig(pipeline_stage=3, pipeline_offset=[1, 4, 1]).layers_of_stages(6) == (1, 4, 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("config", [CONFIG, TIED])
def test_slices_cover_every_parameter_and_copies_count_them(config, strategy):
    plan, mesh = Plan(config, strategy), Mesh(strategy)
    for name, shape in config.parameter_shapes().items():
        held, updated = np.zeros(shape, int), np.zeros(shape, int)
        for rank in range(mesh.size):
            where = mesh.coordinate_of(rank)
            if (box := plan.box(name, where)) is not None:
                held[tuple(slice(*side) for side in box)] += 1
                own = plan.optimizer_box(name, where)
                updated[tuple(slice(*side) for side in own)] += 1
        assert (held == len(plan.stages(name)) * plan.model_copies(name) * strategy.data_parallel).all()
        assert (updated == plan.copies(name)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_gradient_is_reduced_once_over_the_data_axis(strategy):
    plan, mesh = Plan(CONFIG, strategy), Mesh(strategy)
    for rank in range(mesh.size):
        where = mesh.coordinate_of(rank)
        buckets = gradient_buckets(plan, where)
        over_data = [name for bucket in buckets if bucket.axis == "data" for name in bucket.names]
        expected = plan.local_names(where) if strategy.data_parallel > 1 else ()
        assert sorted(over_data) == sorted(expected)
        summed = [name for bucket in buckets if bucket.axis in {"model", "key_value"} for name in bucket.names]
        assert sorted(summed) == sorted(name for name in plan.local_names(where) if plan.partial_over_model(name))


def test_mesh_coordinates_and_groups():
    strategy = ParallelConfig(data_parallel=2, model_parallel=4, pipeline_stage=2)
    mesh = Mesh(strategy, 13)
    assert mesh.coordinate == (1, 1, 1)
    assert [Mesh(strategy).rank_at(*Mesh(strategy).coordinate_of(rank)) for rank in range(16)] == list(range(16))
    assert mesh.model_group() == (12, 13, 14, 15)
    assert mesh.data_group() == (9, 13)
    assert mesh.key_value_group(2) == (12, 13)
    assert mesh.key_value_group(4) == (13,)
    assert mesh.stage_pair(0, 1) == (5, 13)
    with pytest.raises(ValueError, match="none of the job's 16"):
        Mesh(strategy, 16)


def test_a_plan_with_a_surplus_or_a_missing_entry_is_refused():
    surplus = dict(TABLE) | {"model.layers.*.attention.bias": Sharding.REPLICATED}
    with pytest.raises(ConfigError, match=r"entry 'model.layers.\*.attention.bias' matches no parameter"):
        Plan(CONFIG, ParallelConfig(), surplus)
    missing = {name: sharding for name, sharding in TABLE.items() if not name.endswith("w3.weight")}
    with pytest.raises(ConfigError, match=r"no entry for parameter model.layers.\d.feed_forward.w3.weight"):
        Plan(CONFIG, ParallelConfig(), missing)


def test_the_layout_file_is_that_of_the_checkpoints(tmp_path):
    plan = Plan(TIED, ParallelConfig(model_parallel=4, pipeline_stage=2))
    write_layout(plan, tmp_path / "layout.json")
    layout = json.loads((tmp_path / "layout.json").read_text())
    assert set(layout) == {"format", "version", "world_size", "parameters"}
    assert (layout["format"], layout["version"], layout["world_size"]) == ("codellama-layout", 1, 8)
    assert set(layout["parameters"]) == set(TIED.parameter_shapes())
    for name, entry in layout["parameters"].items():
        distinct = {json.dumps(box) for box in entry["slices"].values()}
        sizes = [math.prod(end - begin for begin, end in json.loads(box)) for box in distinct]
        assert sum(sizes) == math.prod(entry["shape"]), name
    embedding = layout["parameters"]["model.tok_embeddings.embedding_weight"]["slices"]
    assert embedding["0"] == embedding["4"] == [[0, 16], [0, 32]]  # tied: on the first and the last stage
    assert set(layout["parameters"]["model.norm_out.weight"]["slices"]) == {"4", "5", "6", "7"}
    with pytest.raises(ConfigError, match="No such file or directory"):
        write_layout(plan, tmp_path / "missing" / "layout.json")
    assert [path.name for path in tmp_path.iterdir()] == ["layout.json"]


def test_random_weights_do_not_depend_on_the_slices():
    shape = (12, 10)
    whole = normal_slice("w", shape, ((0, 12), (0, 10)), 2.0, seed=5)
    for box in (((3, 7), (0, 10)), ((0, 12), (4, 9)), ((5, 6), (9, 10))):
        part = normal_slice("w", shape, box, 2.0, seed=5)
        np.testing.assert_array_equal(part, whole[tuple(slice(*side) for side in box)])
    assert not np.array_equal(whole, normal_slice("v", shape, ((0, 12), (0, 10)), 2.0, seed=5))
    assert not np.array_equal(whole, normal_slice("w", shape, ((0, 12), (0, 10)), 2.0, seed=6))
    large = normal_slice("w", (400, 500), ((0, 400), (0, 500)), 2.0, seed=0)
    assert abs(large.mean()) < 0.02 and abs(large.std() - 2) < 0.02  # 200,000 numbers: deviations of 0.0045, 0.0032
    assert np.abs(np.corrcoef(large[:50])[~np.eye(50, dtype=bool)]).max() < 0.25  # of 1225 pairs: 5.6 deviations


def test_sizes():
    assert parse_size("64GB") == 64 * 2**30 and parse_size("1.5 mb") == 3 * 2**19
    for text in ("", "GB", "-1GB", "0"):
        with pytest.raises(ConfigError, match="a size is a number above 0"):
            parse_size(text)


def test_planning_needs_no_mindspore():
    code = (
        "import sys, codellama_parallel, codellama_parallel.launch;"
        "import codellama_parallel.report, codellama_parallel.search;"
        "print('mindspore' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_34b_on_its_cards_strategies_fits_its_devices():
    from codellama_parallel.devices import device
    from codellama_parallel.memory import Work
    from codellama_parallel.search import fullest, search
    from codellama_parallel.throughput import throughput

    config, on, work = preset("codellama_34b"), device("Atlas 800T A2"), Work(1, 4096, 2, 2)
    for strategy, card in (
        (ParallelConfig(1, 8, 2, True, 128), 669),
        (ParallelConfig(2, 4, 4, True, 128), 667),
    ):
        plan = Plan(config, strategy)
        assert fullest(plan, work).total < on.memory
        # no measurement of ours: the model must be of the card's order of magnitude to be of use
        assert 0.5 < throughput(plan, work, on).tokens_per_second / card < 1.5
    one = ParallelConfig(1, 8, 2, True, 128)
    found = search(config, one, work, on, 16, on.memory)
    assert all(candidate.memory.total <= on.memory for candidate in found)
    speeds = [candidate.throughput.tokens_per_second for candidate in found if candidate.throughput]
    assert speeds == sorted(speeds, reverse=True) and len(found) > 5
    assert not search(config, one, work, on, 16, on.memory // 8)


def test_sharding_the_optimizer_saves_moments_and_needs_windows_for_a_bucket():
    from codellama_parallel.memory import Work, memory

    def one(**keys):
        strategy = ParallelConfig(data_parallel=2, gradient_aggregation_group=1, **keys)
        return memory(Plan(CONFIG, strategy), Mesh(strategy).coordinate, Work(1, 16))

    plain, shard = one(), one(optimizer_shard=True)
    numbers = CONFIG.num_parameters()
    assert plain.optimizer == 2 * 4 * numbers + 4
    # half of the moments, and, everything being in one bucket, room for half of all parameters
    assert shard.optimizer == plain.optimizer // 2 + 2 + 4 * numbers // 2
    # twelve runs of parameters: the layers after the first use the windows of those before
    strategy = ParallelConfig(data_parallel=2, gradient_aggregation_group=12, optimizer_shard=True)
    many = memory(Plan(CONFIG, strategy), Mesh(strategy).coordinate, Work(1, 16))
    assert plain.optimizer // 2 < many.optimizer < shard.optimizer
    assert plain.total == plain.parameters + plain.gradients + plain.optimizer + max(plain.activations, plain.buffers)


def test_generation_needs_weights_and_a_cache_and_no_training_state():
    from codellama_parallel.devices import device
    from codellama_parallel.memory import Work, memory
    from codellama_parallel.report import estimate_lines, search_lines
    from codellama_parallel.search import search

    config, on = preset("codellama_34b"), device("Atlas 800T A2")
    strategy = ParallelConfig(model_parallel=4, vocab_emb_dp=True)
    work = Work(2, 4095, 2, 2, training=False)
    plan = Plan(config, strategy)
    where = Mesh(strategy).coordinate
    one = memory(plan, where, work)
    # two rows of 4096 positions, 48 layers, 2 of 8 key/value heads of 128 numbers, keys and values, float32
    assert one.cache == 2 * 4096 * 48 * 2 * 128 * 2 * 4
    assert one.gradients == one.optimizer == one.buffers == 0
    assert one.parameters == 2 * sum(math.prod(plan.local_shape(name, where)) for name in config.parameter_shapes())
    lines = "\n".join(estimate_lines(plan, work, on, on.memory))
    assert "cache" in lines and "optimizer" not in lines and "tokens/s" not in lines
    found = search(config, strategy, work, on, 8, on.memory)
    assert [candidate.strategy.model_parallel for candidate in found] == [2, 4, 8]  # 67 GB of weights: one is too few
    assert len(search_lines(found)) == 2 + 3
