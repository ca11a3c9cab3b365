"""Writes model.fp16.gguf and model.int8.gguf (Q8_0) of a Hugging Face directory with one safetensors file, with `gguf`.

python decode_gguf.py HUGGING_FACE_DIRECTORY OUT
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

KINDS = {"fp16": gguf.GGMLQuantizationType.F16, "int8": gguf.GGMLQuantizationType.Q8_0}


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for kind, quantization in KINDS.items():
        writer = gguf.GGUFWriter(out / f"model.{kind}.gguf", "llama")
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(theta)
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("no_vocab")
        for name, value in tensors.items():
            array = value.astype(np.float32)
            for part, count in heads.items():
                if part in name:  # llama.cpp turns neighbouring pairs where Hugging Face turns halves
                    array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            target = names.get_name(name, try_suffixes=(".weight",))
            if array.ndim == 1:
                writer.add_tensor(target, array)
            else:
                writer.add_tensor(target, gguf.quantize(array, quantization), raw_dtype=quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main()
