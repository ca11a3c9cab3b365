"""Decoding at 135 M parameters against other programs, alternating in one run.

    hatch run bench:decode                                     float16 after a prompt of 512
    hatch run bench:decode --weights int8                      against llama.cpp's Q8_0
    hatch run bench:decode --batch 8                           eight rows at once
    hatch run bench:decode --cold                              seconds to the first token of a new process

Prints every round's tokens/s, the medians with the median of the paired ratios, and last one JSON object. All sides
load the same random network; whether their greedy texts are equal, and their memory, is said on stderr.
"""

from sides.contest import arguments, cold, contest


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], weights="fp16")
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--cold", action="store_true", help="measure the start of a process instead")
    flags = parser.parse_args()
    work = f"135 M, weights {flags.weights}, batch {flags.batch}, prompt {flags.prompt_tokens}"
    sizes = ["--prompt_tokens", str(flags.prompt_tokens), "--new_tokens", str(flags.new_tokens)]
    if flags.cold:
        cold(flags, f"cold start, {work}: seconds to the first token", sizes)
    else:
        contest(flags, f"decode, {work}, {flags.new_tokens} new tokens: tokens/s", "decode", sizes)


if __name__ == "__main__":
    main()
