"""`codellama-predict`: prompts in, continuations out, streamed to the terminal or written as JSON lines."""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from codellama_model.quantization import WEIGHT_DTYPES
from codellama_model.sampling import Sampling
from codellama_parallel.launch import launched, log_only
from codellama_tokenizer import CodeLlamaTokenizer

from codellama_app.command import Parser, UserError, positive, run
from codellama_app.config import RunConfig, config_names, load_config
from codellama_app.pretrained import open_pretrained
from codellama_app.ranks import local_job, start
from codellama_app.split_plan import check_shared_compute, check_split

if TYPE_CHECKING:
    from codellama_model import Token

PROGRAM = "codellama-predict"
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}


@dataclass(frozen=True)
class Prompt:
    """One thing to complete: its ids, the text to show before and after what is generated, its row of a file."""

    ids: list[int]
    before: str
    after: str
    row: dict[str, object]


def main() -> NoReturn:
    """The console script."""
    run(PROGRAM, _main)


def _main(arguments: Sequence[str]) -> None:
    parser = _parser()
    flags, overrides = parser.parse_with_overrides(arguments)
    sources = [flags.prompt is not None, flags.prompt_file is not None, flags.infill is not None]
    if sum(sources) != 1:
        parser.error("give one of --prompt, --prompt_file and --infill")
    if flags.chat and flags.infill:
        parser.error("--chat goes with --prompt or --prompt_file")
    if "" in flags.stop:
        parser.error("--stop must not be empty")
    if flags.output_file and not Path(flags.output_file).resolve().parent.is_dir():
        raise UserError(f"--output_file {flags.output_file}: its folder does not exist; make it first")
    config = load_config(flags.config, overrides)
    checkpoint = flags.load_checkpoint or _newest_run(config)
    if not Path(checkpoint).exists():
        raise UserError(f"--load_checkpoint {checkpoint}: no such file or directory")
    try:
        sampling = Sampling(
            do_sample=flags.do_sample,
            temperature=flags.temperature,
            top_k=flags.top_k,
            top_p=flags.top_p,
            seed=flags.seed,
        )
    except ValueError as error:
        raise UserError(f"--{error}") from None
    rows = _prompt_rows(flags.prompt_file) if flags.prompt_file else None
    begin = time.perf_counter()
    # the checkpoint says its own sizes; the configuration's are for those that do not
    found = open_pretrained(checkpoint, config.llama(), flags.tokenizer)
    if found.tokenizer is None:
        raise UserError(f"{checkpoint} comes without tokenizer.model: give --tokenizer FILE")
    prompts = _prompts(flags, rows, found.tokenizer)
    _check_lengths(prompts, found.config.max_position_embedding)
    device_num = flags.device_num or (config.parallel_config.model_parallel if config.run_mode == "predict" else 1)
    if device_num > 1 and not launched():
        check_split(found.config, device_num, flags.weight_dtype)
        check_shared_compute(flags.compute_dtype)
        log_dir = Path(flags.log_dir or Path(config.output_dir) / "log")
        start(local_job(device_num, log_dir), "codellama_app.predict", arguments)

    from codellama_app.codellama import CodeLlama  # noqa: PLC0415  (MindSpore: after everything cheap was checked)

    lm = CodeLlama.from_pretrained(
        checkpoint,
        tokenizer=flags.tokenizer,
        fallback_config=config.llama(),
        weight_dtype=flags.weight_dtype,
        compute_dtype=flags.compute_dtype,
        device_num=device_num,
    )
    unescape = _unescaped if flags.escape else str
    tokens = lm.tokens(
        [prompt.ids for prompt in prompts],
        flags.max_new_tokens or config.generation.max_new_tokens,
        sampling=sampling,
        stop_ids=[*lm.stop_ids, *([] if found.tokenizer.eot_id is None else [found.tokenizer.eot_id])],
        stop=[unescape(text) for text in flags.stop],
        batch_size=flags.batch_size or config.generation.batch_size,
    )
    if lm.rank > 0:  # takes part, and rank 0 tells
        collections.deque(tokens, maxlen=0)
        return
    _tell(tokens, prompts, found.tokenizer, flags.output_file, begin)


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description="Complete, infill or answer with a Code Llama.", allow_abbrev=False)
    parser.add_argument(
        "--config", required=True, metavar="NAME|FILE", help=f"one of {', '.join(config_names())}, or a file"
    )
    parser.add_argument(
        "--load_checkpoint",
        metavar="P",
        help="Hugging Face directory, run directory, sharded or full checkpoint; default: the run of the configuration",
    )
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.model, where the checkpoint comes without one")
    parser.add_argument(
        "--weight_dtype",
        choices=WEIGHT_DTYPES,
        default="fp32",
        help="how weights are kept in memory: fp16 takes half of fp32, int8 a quarter (default fp32)",
    )
    parser.add_argument(
        "--compute_dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the products of prompts: bfloat16 is faster and less exact, where the processor has it"
        " (default float32)",
    )
    parser.add_argument(
        "--device_num",
        type=positive,
        metavar="N",
        help="processes that share the network; default: 1, or where run_mode is predict, model_parallel",
    )
    parser.add_argument("--log_dir", metavar="D", help="their logs; default: log in the configuration's output_dir")
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="texts to continue")
    parser.add_argument("--prompt_file", metavar="F.jsonl", help='rows {"prompt": ...}; with "suffix": infilling')
    parser.add_argument("--infill", nargs=2, metavar=("PREFIX", "SUFFIX"), help="fill in between the two")
    parser.add_argument("--chat", action="store_true", help="a prompt is a question to an Instruct model")
    parser.add_argument("--output_file", metavar="O.jsonl", help="write rows with their `generation` here")
    parser.add_argument("--max_new_tokens", type=positive, metavar="N")
    parser.add_argument("--batch_size", type=positive, metavar="B", help="prompts computed together")
    parser.add_argument("--do_sample", type=_boolean, nargs="?", const=True, default=False, metavar="True")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T")
    parser.add_argument("--top_p", type=float, default=1.0, metavar="P")
    parser.add_argument("--top_k", type=int, default=0, metavar="K", help="0: the whole vocabulary")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="texts that end a generation")
    parser.add_argument(
        "--escape",
        type=_boolean,
        default=True,
        metavar="True|False",
        help=r"read \n, \t, \r and \\ in --prompt, --infill and --stop as in a Python string (default True)",
    )
    return parser


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "false": False, "0": False}
    return values[text.lower()] if text.lower() in values else _no_boolean(text)


_boolean.__name__ = "True or False"


def _no_boolean(text: str) -> NoReturn:
    raise ValueError(text)


def _unescaped(text: str) -> str:
    r"""Text as a shell passes it, with \n, \t, \r and \\ read; any other backslash stays."""
    parts, index = [], 0
    while index < len(text):
        pair = text[index : index + 2]
        parts.append(_ESCAPES.get(pair, pair[0]))
        index += 2 if pair in _ESCAPES else 1
    return "".join(parts)


def _newest_run(config: RunConfig) -> str:
    if not Path(config.output_dir).is_dir():
        raise UserError(
            f"no run in {config.output_dir}: train one first (hatch run train), or give --load_checkpoint PATH"
        )
    return config.output_dir


def _prompt_rows(path: str) -> list[dict[str, object]]:
    rows = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--prompt_file {path} is no UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"--prompt_file {path}, line {number} is no JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise UserError(f'--prompt_file {path}, line {number}: expected an object with a text "prompt"')
        if not isinstance(row.get("suffix", ""), str):
            raise UserError(f'--prompt_file {path}, line {number}: "suffix" must be a text')
        rows.append(row)
    if not rows:
        raise UserError(f"--prompt_file {path} holds no row")
    return rows


def _prompts(
    flags: argparse.Namespace, rows: list[dict[str, object]] | None, tokenizer: CodeLlamaTokenizer
) -> list[Prompt]:
    unescape = _unescaped if flags.escape else str
    if flags.infill:
        prefix, suffix = map(unescape, flags.infill)
        rows = [{"prompt": prefix, "suffix": suffix}]
    rows = rows or [{"prompt": unescape(text)} for text in flags.prompt]
    return [_prompt(tokenizer, row, flags.chat) for row in rows]


def _prompt(tokenizer: CodeLlamaTokenizer, row: dict[str, object], chat: bool) -> Prompt:
    text = str(row["prompt"])
    if "suffix" in row:
        suffix = str(row["suffix"])
        ids = tokenizer.encode_infilling(text, suffix, suffix_first=bool(row.get("suffix_first", False)))
        return Prompt(ids, text, suffix, row)
    if chat:
        return Prompt(tokenizer.encode_chat([{"role": "user", "content": text}]), "", "", row)
    return Prompt(tokenizer.encode(text), text, "", row)


def _check_lengths(prompts: Sequence[Prompt], context: int) -> None:
    """Before the weights are loaded, which may take minutes."""
    for number, prompt in enumerate(prompts):
        if len(prompt.ids) >= context:
            raise UserError(
                f"prompt {number} has {len(prompt.ids)} tokens, which leaves no room in the context of {context};"
                f" shorten it to {context - 1} or fewer"
            )


def _tell(
    tokens: Iterator[Token],
    prompts: Sequence[Prompt],
    tokenizer: CodeLlamaTokenizer,
    output_file: str | None,
    begin: float,
) -> None:
    """Shows or writes what is generated; a single prompt is streamed, several are shown one after the other."""
    decoders = [tokenizer.incremental_decoder(continuation=True) for _ in prompts]
    texts = ["" for _ in prompts]
    streaming = len(prompts) == 1 and output_file is None
    count = 0
    arrivals: list[tuple[float, int]] = []  # of the first row: when, and how many tokens of all rows were there
    for token in tokens:
        count += 1
        if token.row == 0:
            arrivals.append((time.perf_counter(), count))
        text = decoders[token.row].push(token.id)
        if token.last:
            text += decoders[token.row].finish()
        texts[token.row] += text
        if streaming:
            # the prompt not before: until ranks have talked, MindSpore writes notes of its own in between
            _show(prompts[0].before + text if count == 1 else text)
        elif token.last and output_file is None:
            prompt = prompts[token.row]
            _show(f"{prompt.before}{texts[token.row]}{prompt.after}\n{'-' * 8}\n")
    if streaming:
        _show(f"{prompts[0].after}\n")
    if output_file is not None:
        _write(Path(output_file), ({**p.row, "generation": text} for p, text in zip(prompts, texts, strict=True)))
    speed = ""
    if len(arrivals) > 2:  # the first step compiles the prompt's graph, the second the decoding graph
        (since, before), (until, after) = arrivals[1], arrivals[-1]
        speed = f", {(after - before) / (until - since):.1f} tokens/s"
    # a rank has one log for both streams, which the console shows on stdout: there, too, nothing but text is to be
    said = f"{count} tokens{speed}; the first one after {arrivals[0][0] - begin:.1f} s"
    print(log_only(said) if launched() else said, file=sys.stderr)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _write(path: Path, rows: Iterator[dict[str, object]]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


if __name__ == "__main__":  # of a rank
    main()
