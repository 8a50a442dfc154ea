"""SigLIP's tokenizer, without the library that it is part of, which takes seconds to import."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from sentencepiece import SentencePieceProcessor

SENTENCEPIECE_FILE, TOKENIZER_CONFIG = "spiece.model", "tokenizer_config.json"

SPECIAL_TOKENS = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
"""SigLIP's own, where the config does not name them."""

WORD_START = "▁"
"""Sentencepiece's sign for the space before a word."""


class Tokenizer(Protocol):
    """What this project needs of a tokenizer; the library's `PreTrainedTokenizerBase` has it too."""

    pad_token_id: Any
    eos_token_id: Any
    unk_token_id: Any

    def __len__(self) -> int:
        """Number of tokens that it knows."""

    def __call__(self, text: Any, /, **options: Any) -> Any:
        """`input_ids` of a text or of several."""

    def decode(self, token_ids: Any, /, **options: Any) -> Any:
        """Tokens back to text."""

    def save_pretrained(self, save_directory: Any, /) -> Any:
        """Write its files."""


class SiglipTokenizer:
    """Normalised texts (`normalise_text`) to the token ids of the library's `SiglipTokenizer`.

    Args:
        folder: with the sentencepiece file and, where it exists, the tokenizer's config.

    Raises:
        OSError, ValueError, RuntimeError: one of the files is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        names = [name for name in (SENTENCEPIECE_FILE, TOKENIZER_CONFIG) if (folder / name).is_file()]
        self._files = {name: (folder / name).read_bytes() for name in names}
        self._pieces = SentencePieceProcessor(model_proto=self._files[SENTENCEPIECE_FILE])
        config = json.loads(self._files.get(TOKENIZER_CONFIG, b"{}"))
        if not isinstance(config, dict):
            raise ValueError(f"{TOKENIZER_CONFIG} holds no object")
        ids = {role: self._special(config.get(role) or default) for role, default in SPECIAL_TOKENS.items()}
        self.eos_token_id, self.pad_token_id = ids["eos_token"], ids["pad_token"]
        self.unk_token_id = ids["unk_token"]
        # sentencepiece swallows a word's first space at the start of a text: not after a token, which is cut off again
        self._unknown = self._pieces.id_to_piece(self.unk_token_id)
        self._cut = len(self._pieces.encode(self._unknown))

    def _special(self, token: Any) -> int:
        """Id of a special token, which a config gives as text or as an object."""
        content = token["content"] if isinstance(token, dict) else token
        found: int = self._pieces.piece_to_id(content)
        if self._pieces.id_to_piece(found) != content:
            raise ValueError(f"its special token {content!r} is not in its vocabulary")
        return found

    def __len__(self) -> int:
        size: int = self._pieces.get_piece_size()
        return size

    def __call__(
        self,
        text: str | Sequence[str],
        /,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int = 0,
        **_: Any,
    ) -> dict[str, Any]:
        """`input_ids` of a text or of several, with the end token unless `add_special_tokens` is false.

        truncation: to `max_length` tokens, of which the end token is the last.
        """
        texts = [text] if isinstance(text, str) else list(text)
        found = [ids[self._cut :] for ids in self._pieces.encode([self._unknown + WORD_START + t for t in texts])]
        if add_special_tokens:
            limit = max_length - 1 if truncation else None
            found = [[*ids[:limit], self.eos_token_id] for ids in found]
        return {"input_ids": found[0] if isinstance(text, str) else found}

    def decode(self, token_ids: Sequence[int], /, **_: Any) -> str:
        """Tokens back to text; special ones as they are written."""
        special = {self.eos_token_id, self.pad_token_id, self.unk_token_id}
        parts: list[str] = []
        for is_special, ids in groupby(token_ids, key=special.__contains__):
            group = list(ids)
            parts += map(self._pieces.id_to_piece, group) if is_special else [self._pieces.decode(group)]
        return "".join(parts)

    def save_pretrained(self, save_directory: Path, /) -> None:
        """Write its files, unchanged."""
        for name, content in self._files.items():
            (Path(save_directory) / name).write_bytes(content)
