"""`alpaca`: Stanford's instruction records to conversations, as the converter of MindFormers' card does."""

from __future__ import annotations

import json
import os
from pathlib import Path

from codellama_data.errors import DataError
from codellama_data.output import check_output
from codellama_data.records import Record, read_records

_TASK = "Below is an instruction that describes a task"
_INPUT = ", paired with an input that provides further context"
_REQUEST = ". Write a response that appropriately completes the request.\n\n"


def alpaca_prompt(instruction: str, text_input: str) -> str:
    """Stanford's prompt, of which there are two: with and without an input."""
    if text_input:
        return f"{_TASK}{_INPUT}{_REQUEST}### Instruction:\n{instruction}\n\n### Input:\n{text_input}\n\n### Response:"
    return f"{_TASK}{_REQUEST}### Instruction:\n{instruction}\n\n### Response:"


def convert_alpaca(data_path: str | Path, output_path: str | Path, overwrite: bool = True) -> int:
    """Write `[{"id": "1", "conversations": [{"from": "human", ...}, {"from": "gpt", ...}]}, ...]`.

    Args:
        data_path: a JSON array (or JSON lines) of `{"instruction", "input", "output"}`; `input` may be missing.
        output_path: the JSON file to write: indented by 2, not escaped to ASCII.
        overwrite: replace an existing output, as the card's converter does.

    Returns:
        The number of records.

    Raises:
        DataError: bad input (the message names the place), or the output can not be written.
    """
    source, target = Path(data_path), Path(output_path)
    check_output([target], overwrite)
    beside = target.with_name(f".{target.name}.partial-{os.getpid()}")
    count = 0
    try:
        with beside.open("w", encoding="utf-8") as stream:
            for record in read_records(source):
                count += 1
                text = json.dumps(_conversation(record, count), indent=2, ensure_ascii=False)
                stream.write(("[\n" if count == 1 else ",\n") + "\n".join(f"  {line}" for line in text.split("\n")))
            stream.write("\n]")
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(target)
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        raise DataError(f"{source}: record {count}: lone surrogate {surrogate!a}, which is no text") from None
    except OSError as error:
        raise DataError(f"{target}: can not be written ({error.strerror})") from error
    finally:
        beside.unlink(missing_ok=True)
    return count


def _conversation(record: Record, number: int) -> dict[str, object]:
    fields = []
    for key in ("instruction", "input", "output"):
        value = record.value.get(key, "" if key == "input" else None)
        if not isinstance(value, str):
            found = f"only {', '.join(record.value)}" if key not in record.value else f"a {type(value).__name__}"
            raise DataError(f"{record.place}: expected text under {key!r}, found {found}")
        fields.append(value)
    instruction, text_input, output = fields
    messages = [
        {"from": "human", "value": alpaca_prompt(instruction, text_input)},
        {"from": "gpt", "value": output},
    ]
    return {"id": str(number), "conversations": messages}
