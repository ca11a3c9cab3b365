"""OpenVINO's side of the decode and prefill benchmarks: weights in float16, the stateful model that GenAI runs, on the
runtime itself (GenAI wants a tokenizer).

    python decode_openvino.py --make HUGGING_FACE_DIRECTORY FOLDER      converts the checkpoint (optimum-intel)

On processors with a matrix unit OpenVINO computes in bfloat16 unless it is told otherwise; `--weights fp32` tells it.
"""

import argparse
import json
import sys
from collections.abc import Callable

import decode_protocol
import numpy as np
import openvino as ov


def make(source: str, folder: str) -> None:
    from optimum.exporters.openvino import main_export  # noqa: PLC0415  (only where the checkpoint is converted)

    main_export(source, folder, task="text-generation-with-past", fp16=True, convert_tokenizer=False, stateful=True)


def load(flags: argparse.Namespace) -> decode_protocol.Generate:
    properties = {"INFERENCE_NUM_THREADS": flags.threads, "SCHEDULING_CORE_TYPE": "ANY_CORE"}
    if flags.weights == "fp32":
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    core = ov.Core()
    model = core.compile_model(f"{flags.model}/openvino_model.xml", "CPU", properties)
    request = model.create_infer_request()
    batch = flags.batch

    def step(ids: np.ndarray, start: int) -> np.ndarray:
        positions = np.tile(np.arange(start, start + ids.shape[1]), (batch, 1))
        logits = request.infer(
            {
                "input_ids": ids,
                "attention_mask": np.ones((batch, start + ids.shape[1]), np.int64),
                "position_ids": positions,
                "beam_idx": np.arange(batch, dtype=np.int32),
            },
            share_inputs=True,
            share_outputs=True,
        )[0]
        return logits[:, -1].argmax(-1)

    def generate(prompts: list[list[int]], count: int, first: Callable[[], None]) -> list[int]:
        request.reset_state()
        current = step(np.array(prompts, np.int64), 0)
        ids = [int(current[0])]
        first()
        for number in range(count - 1):
            current = step(current[:, None].astype(np.int64), len(prompts[0]) + number)
            ids.append(int(current[0]))
        return ids

    return generate


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        make(sys.argv[2], sys.argv[3])
        print(json.dumps({"made": sys.argv[3]}))
    else:
        decode_protocol.run(load, f"openvino {ov.__version__}")
