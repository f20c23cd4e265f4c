"""The tokenizer that the metadata of a GGUF file describe."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from onestep_jax.errors import UserError
from onestep_jax.model.gguf.files import Header, read_header
from onestep_jax.model.gguf.layouts import layout_of

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# Ways of splitting text (`tokenizer.ggml.pre`) for which llama.cpp puts a BOS before a text unless the file says
# otherwise (src/llama-vocab.cpp).
_BEGUN = frozenset(
    """chameleon falcon-h1 falcon3 jina-v5-nano lfm2 llama-bpe llama-v3 llama3 midm-2.0 pixtral tekken""".split()
)


def gguf_tokenizer(path: Path) -> Any:
    """The transformers tokenizer of a file, or None if it has none; made without torch.

    `AutoTokenizer.from_pretrained(folder, gguf_file=name)` gives the same and needs torch to read the metadata.

    Raises:
      UserError: if transformers cannot make one of the metadata.
    """
    header = read_header(path)
    if header.metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
        return None
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_object=_backend(header), **_options(header))
    except Exception as error:  # whatever transformers makes of wrong metadata
        raise UserError(f"{path}: the tokenizer cannot be made of the metadata ({error!r})") from error


def _backend(header: Header) -> Any:
    made: Any
    try:
        made = import_module("transformers.integrations.gguf.gguf_tokenizer_mapping")
        architecture = header.architecture
    except ImportError:  # transformers 5.0 has it elsewhere, and goes by its own name of the architecture
        made = import_module("transformers.integrations.ggml")
        architecture = layout_of(header).model_type
    keys = made.GGUF_TOKENIZER_MAPPING["tokenizer"].items()
    given = {name: header.metadata[f"tokenizer.{key}"] for key, name in keys if f"tokenizer.{key}" in header.metadata}
    absent = {f"{name}_id" for name, key in _SPECIAL.items() if header.special_token(key) is None}
    given = {name: value for name, value in given.items() if name not in absent}
    backend, _ = made.convert_gguf_tokenizer(architecture, given)
    return _only_of_the_file(backend, len(given["tokens"]))


def _only_of_the_file(backend: Any, count: int) -> Any:
    """A tokenizer without the special tokens that transformers' class of it has and the file has not.

    Their ids would be beyond the rows of the embedding table.
    """
    if backend.get_vocab_size() <= count:
        return backend
    described = json.loads(backend.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < count]
    return type(backend).from_str(json.dumps(described))


def _options(header: Header) -> dict[str, Any]:
    """Special tokens, which of them every text gets, and the template of a chat."""
    metadata = header.metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    options: dict[str, Any] = {}
    for name, key in _SPECIAL.items():
        token = header.special_token(key)
        options[name] = None if token is None else tokens[token]
    sentencepiece = metadata["tokenizer.ggml.model"] == "llama"  # llama.cpp puts a BOS before its texts, too
    begun = metadata.get("tokenizer.ggml.add_bos_token", sentencepiece or metadata.get("tokenizer.ggml.pre") in _BEGUN)
    options["add_bos_token"] = begun and options["bos_token"] is not None
    options["add_eos_token"] = metadata.get("tokenizer.ggml.add_eos_token", False)
    if (template := metadata.get("tokenizer.chat_template")) is not None:
        options["chat_template"] = template
    return options
