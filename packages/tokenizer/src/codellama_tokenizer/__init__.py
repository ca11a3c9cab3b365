"""Text to ids and back for Code Llama: plain text, infilling and chat prompts, streaming, and training a tokenizer."""

from codellama_tokenizer.chat import ChatTemplate
from codellama_tokenizer.decoding import IncrementalDecoder
from codellama_tokenizer.errors import TokenizerError
from codellama_tokenizer.tokenizer import CodeLlamaTokenizer
from codellama_tokenizer.training import train_tokenizer

__all__ = [
    "ChatTemplate",
    "CodeLlamaTokenizer",
    "IncrementalDecoder",
    "TokenizerError",
    "train_tokenizer",
]
__version__ = "0.1.0"
