"""Prompt processing at 135 M parameters against other programs, alternating in one run.

    hatch run bench:prefill                                                             512 tokens, float16
    hatch run bench:prefill --prompt_tokens 8192 --peers "transformers float32"
    hatch run bench:prefill --compute_dtype bfloat16 --peers "OpenVINO F16"             both round to bfloat16

Prints every round's tokens/s, the medians with the median of the paired ratios, and last one JSON object.
"""

from sides.contest import arguments, contest


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], weights="fp16")
    parser.add_argument("--prompt_tokens", type=int, default=512)
    flags = parser.parse_args()
    ours = f"weights {flags.weights}, {flags.compute_dtype} arithmetic"
    work = f"prefill, 135 M, {ours}, batch {flags.batch}, {flags.prompt_tokens} tokens: tokens/s"
    contest(flags, work, "prefill", ["--prompt_tokens", str(flags.prompt_tokens), "--new_tokens", "1"])


if __name__ == "__main__":
    main()
