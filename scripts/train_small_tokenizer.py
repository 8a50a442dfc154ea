"""python scripts/train_small_tokenizer.py

Trains the tokenizer of the small text encoder and writes it, with the encoder's config, to
src/knee_siglip/encoders/small/text/. Same inputs, same bytes; seconds on one core. Run it again after a change of the
sample's grammar (knee_siglip.sample.impression), of scripts/radiology_phrases.txt or of normalise_text; checkpoints and
embeddings made with the earlier tokenizer keep their own copy of it.

The format is SigLIP's: a sentencepiece model with <pad> 0, </s> 1 (end and padding) and <unk> 2. BPE, since Unigram
falls to near characters on a corpus this small; byte fallback, so that no character of any text is lost.
"""

import io
import json
from pathlib import Path

import numpy as np
import sentencepiece

import knee_siglip.encoders
from knee_siglip.sample.findings import SIDES, draw_labels
from knee_siglip.sample.impression import text_alternatives
from knee_siglip.tables.text import SENTENCEPIECE_FILE, normalise_text

PHRASES = Path(__file__).with_name("radiology_phrases.txt")
TARGET = Path(knee_siglip.encoders.__file__).parent / "small" / "text"

DRAWS = 20_000
"""Knees drawn to list the grammar's texts: at the lowest rates (a rare finding times a grade) some tens of each."""

VOCABULARY = 1536
LONGEST_NUMBER = 100
END, UNKNOWN, PADDING = "</s>", "<unk>", "<pad>"

CONFIG = {
    "architectures": ["SiglipTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 128,
    "intermediate_size": 256,
    "layer_norm_eps": 1e-06,
    "max_position_embeddings": 64,
    "model_type": "siglip_text_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "projection_size": 128,
    "vocab_size": VOCABULARY,
}
TOKENIZER_CONFIG = {
    "additional_special_tokens": [],
    "do_lower_case": True,
    "eos_token": END,
    "model_input_names": ["input_ids"],
    "model_max_length": 64,
    "pad_token": END,
    "tokenizer_class": "SiglipTokenizer",
    "unk_token": UNKNOWN,
}
SPECIAL_TOKENS = {"eos_token": END, "pad_token": END, "unk_token": UNKNOWN}


def grammar_texts() -> list[str]:
    """Every text that `DRAWS` knees of the sample's grammar can be given, sorted."""
    rng = np.random.default_rng(0)
    knees = (draw_labels(rng, side) for side in SIDES for _ in range(DRAWS))
    return sorted({normalise_text(text) for labels in knees for text in text_alternatives(labels)})


def phrase_texts() -> list[str]:
    """The hand-written phrases, without their headings."""
    lines = PHRASES.read_text(encoding="utf-8").splitlines()
    return [normalise_text(line) for line in lines if line and not line.startswith("# ")]


def train(texts: list[str]) -> bytes:
    """A BPE sentencepiece model; the texts are given in memory, so that no path gets into its bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        num_threads=1,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece=PADDING,
        eos_piece=END,
        unk_piece=UNKNOWN,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    """Write the preset's four files."""
    numbers = [str(number) for number in range(LONGEST_NUMBER)]
    model = train([*grammar_texts(), *phrase_texts(), *numbers])
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / SENTENCEPIECE_FILE).write_bytes(model)
    files = {"config": CONFIG, "tokenizer_config": TOKENIZER_CONFIG, "special_tokens_map": SPECIAL_TOKENS}
    for name, content in files.items():
        (TARGET / f"{name}.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
