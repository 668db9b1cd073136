"""A checkpoint's tokenizer, and token ids that its text tower has embeddings of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import ModelError, cut, first_line, shown
from finetune.models.layers.text import TextConfig, canonicalize
from finetune.untrusted import TOKENIZER_BYTES, read_json, require_file

_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_FURTHER = ("merges.txt", "vocab.txt", "sentencepiece.bpe.model", "chat_template.jinja")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a checkpoint's folder, loaded by transformers' AutoTokenizer. No code in the folder is run.

    Raises:
        ModelError: the checkpoint has no tokenizer, or one that cannot be read.
    """
    if not any((folder / name).is_file() for name in _FILES):  # transformers would make an empty one
        raise ModelError(f"{shown(folder)}: has no tokenizer; it needs one of {', '.join(_FILES)}")
    for name in (*_FILES, *_FURTHER):
        if (folder / name).exists():
            require_file(folder / name, TOKENIZER_BYTES)
    for name in _SETTINGS:
        if (folder / name).exists():
            read_json(folder / name)
    try:
        return _load(folder)
    except BaseException as error:
        raise _ours(error, f"{shown(folder)}: its tokenizer cannot be read") from None


def _load(folder: Path) -> Any:
    """
    transformers 5 makes Gemma's tokenizer anew, without the lower-casing that SigLIP 2's file asks for; transformers 4
    does not know TIPSv2's. Theirs is read from ``tokenizer.json`` as it was saved.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    name = get_tokenizer_config(str(folder), local_files_only=True).get("tokenizer_class") or ""
    as_saved = name.startswith(("Gemma", "Tipsv2")) and (folder / "tokenizer.json").is_file()
    loader = PreTrainedTokenizerFast if as_saved else AutoTokenizer
    return loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def tokenize(
    tokenizer: Any, config: TextConfig, texts: Sequence[str], where: Path
) -> tuple[np.ndarray, np.ndarray | None]:
    """Token ids int [texts, length], and the mask of those that are not padding where the tower needs one.

    Args:
        config: the text tower's; texts beyond its length are truncated.
        where: the checkpoint's folder, for messages.

    Raises:
        ModelError: the tokenizer does not belong to the tower: it has no padding, makes ids that the tower has no
            embedding of, or leaves out the end-of-text token; or a text has half of a surrogate pair.
    """
    for text in texts:
        if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
            raise ModelError(f"{cut(ascii(text))}: not a text that can be tokenized; rename the class")
    texts = [canonicalize(text) for text in texts] if config.canonical else list(texts)
    length = config.max_position_embeddings
    try:
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")
        ids = np.asarray(tokens["input_ids"])
        mask = np.asarray(tokens["attention_mask"]) if config.padding_hidden else None
        if config.drop_separator:
            ids = np.where(ids == tokenizer.sep_token_id, 0, ids)
    except BaseException as error:
        raise _ours(error, f"{shown(where)}: its tokenizer cannot tokenize") from None
    _require_known(ids, config, tokenizer, f"{shown(where)}: its tokenizer")
    return ids, mask


def _require_known(ids: np.ndarray, config: TextConfig, tokenizer: Any, its: str) -> None:
    if ids.ndim != 2 or ids.shape[1] > config.max_position_embeddings or ids.dtype.kind not in "iu":
        raise ModelError(
            f"{its} makes {ids.dtype} of shape {ids.shape}, not {config.max_position_embeddings} ids a text"
        )
    outside = ids[(ids < 0) | (ids >= config.vocab_size)]
    if outside.size:
        raise ModelError(
            f"{its} makes the token id {outside[0]}, and the text tower has embeddings of 0 to "
            f"{config.vocab_size - 1}: the two belong to different models"
        )
    if config.pooling == "end":
        end = config.eos_token_id  # None: the highest id in a row, which is the tokenizer's end of text
        if end is None:
            end = getattr(tokenizer, "eos_token_id", ids.max(axis=1, keepdims=True))
        if end is None or not (ids == end).any(axis=1).all():
            raise ModelError(
                f"{its} does not end a text with the end-of-text token {end}, at which the text tower is read: the two "
                "belong to different models"
            )


def _ours(error: BaseException, what: str) -> BaseException:
    """The error to raise instead of one of transformers or of tokenizers, whose panics are no ``Exception``."""
    is_panic = type(error).__name__ == "PanicException"
    if isinstance(error, ModelError | MemoryError) or not (isinstance(error, Exception) or is_panic):
        return error
    return ModelError(f"{what}: {first_line(error)}")
