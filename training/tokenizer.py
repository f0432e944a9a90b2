"""The byte-level BPE tokenizer: Qwen2's rules, a vocabulary of our own."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.example import CATEGORIES, SEVERITIES, Example

# Qwen2's pre-tokenizer: the boundaries of its tokens are the boundaries of ours.
PRE_TOKENS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<think>", "</think>")
"""Added, but not special: as in Qwen3, they survive decoding."""
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def build(texts: Iterable[str], folder: Path, *, vocabulary: int) -> PreTrainedTokenizerBase:
    """Train on `texts`, write the tokenizer files to `folder` and load them from there."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL) - len(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *_template_corpus()], trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in MARKERS])
    _save(tokenizer, folder)
    return AutoTokenizer.from_pretrained(folder)


def _template_corpus(repeats: int = 400) -> list[str]:
    """The template's words and every answer, often enough to become single tokens."""
    answers = [
        Example(turns=("",), severity=severity, category=category, refusal=True).answer()
        for severity in SEVERITIES
        for category in CATEGORIES
    ]
    words = TEMPLATE.read_text().replace("\\n", "\n")
    labels = "USER: ASSISTANT: <BEGIN CONVERSATION> <END CONVERSATION>\nRefusal: No"
    return [words, labels, *answers] * repeats


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text())
    config = {
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": ["<|im_start|>"],
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
