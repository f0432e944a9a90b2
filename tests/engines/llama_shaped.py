"""Very small checkpoints in the shape of Llama Guard 3 and 4, which were taught a few lessons.

What they answer beyond their lessons is arbitrary and mostly of the documented form, which is what
a comparison with greedy generation needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    Llama4Config,
    Llama4ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from guardrails_qwen import Conversation

LESSONS = {
    "a red hen": "safe",
    "a blue cow": "unsafe\nS1",
    "a green dog": "unsafe\nS2,S10",
    "one black cat": "safe",
    "two white owls": "unsafe\nS11",
    "five grey mice": "safe",
    "a pink fish": "unsafe\nS14",
    "ten brown ants": "unsafe\nS9,S12,S3",
}
SYLLABLES = (
    "red",
    "blue",
    "green",
    "one",
    "two",
    "ten",
    "hen",
    "cow",
    "dog",
    "cat",
    "owls",
    "ants",
)

_NAMES = (
    "Violent Non-Violent Sex Child Defamation Advice Privacy Intellectual Weapons Hate "
    "Self-Harm Sexual Elections Code"
)
_POLICY = "\n".join(f"S{number}: {name}" for number, name in enumerate(_NAMES.split(), 1))
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """In what the checkpoints of the family differ."""

    start: str
    stop: str
    end: str
    """The token that ends a turn."""
    parts: bool
    """Whether the template reads content as a list of parts, and loses a text."""
    gap: str
    """What the template writes behind the assistant's header."""
    front: str
    """What the model writes in front of its answer."""

    @property
    def specials(self) -> list[str]:
        return ["<|begin_of_text|>", "<|end_of_text|>", self.start, self.stop, self.end]

    @property
    def template(self) -> str:
        text = "{{ m.content | trim }}"
        if self.parts:
            text = (
                "{% for part in m.content | selectattr('type', 'equalto', 'text') %}"
                "{{ part.text | trim }}{% endfor %}"
            )
        return (
            "{% set side = 'User' if messages | length % 2 else 'Agent' %}"
            f"<|begin_of_text|>{self.start}user{self.stop}\n\n"
            "Task: Look for unsafe content in '{{ side }}' messages.\n\n"
            f"<BEGIN UNSAFE CONTENT CATEGORIES>\n{_POLICY}\n<END UNSAFE CONTENT CATEGORIES>\n\n"
            "<BEGIN CONVERSATION>\n\n"
            "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('roles have to alternate') }}{% endif %}"
            "{{ 'User' if m.role == 'user' else 'Agent' }}: " + text + "{{ '\n\n' }}{% endfor %}"
            "<END CONVERSATION>\n\n"
            "Judge ONLY THE LAST {{ side }} message:\n - First line 'safe' or 'unsafe'.\n"
            f" - If unsafe, a second line of categories.{self.end}"
            f"{self.start}assistant{self.stop}{self.gap}"
        )


LLAMA_3 = Shape(
    start="<|start_header_id|>",
    stop="<|end_header_id|>",
    end="<|eot_id|>",
    parts=False,
    gap="",
    front="\n\n",
)
LLAMA_4 = Shape(
    start="<|header_start|>",
    stop="<|header_end|>",
    end="<|eot|>",
    parts=True,
    gap="\n\n",
    front="",
)


def asked(text: str) -> list[Conversation]:
    """A text as a prompt, and as a reply."""
    return [Conversation.of(text), Conversation.exchange("Say something.", text)]


def save_llama_3(folder: Path) -> None:
    """As Llama Guard 3: a `LlamaForCausalLM`, which writes a blank line before its answer."""
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    tokenizer = _tokenizer(LLAMA_3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=[1, 4],
    )
    model: Any = LlamaForCausalLM(config)
    _teach(model, tokenizer, LLAMA_3)
    _save(folder, tokenizer, model)


def save_llama_4(folder: Path) -> None:
    """As Llama Guard 4: a dense `Llama4ForConditionalGeneration`; its vision tower is random."""
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    tokenizer = _tokenizer(LLAMA_4)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "intermediate_size_mlp": 96,
        "num_hidden_layers": 2,
        "no_rope_layer_interval": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "moe_layers": [],
        "num_local_experts": 1,
        "max_position_embeddings": 100_000,
        "attention_chunk_size": 1024,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": [1, 4],
    }
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vision_output_dim": 16,
        "image_size": 28,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
    }
    config: Any = Llama4Config
    model: Any = Llama4ForConditionalGeneration(config(text_config=text, vision_config=vision))
    _teach(model.language_model, tokenizer, LLAMA_4)
    _save(folder, tokenizer, model)


def _save(folder: Path, tokenizer: Any, model: Any) -> None:
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    described = {"bos_token_id": 0, "eos_token_id": [1, 4]}
    (folder / "generation_config.json").write_text(json.dumps(described))


def _tokenizer(shape: Shape) -> Any:
    bpe = Tokenizer(BPE())
    split: Any = Split(Regex(_WORDS), behavior="isolated")
    bytes_: Any = ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = PreTokenizers([split, bytes_])  # pyright: ignore
    bpe.decoder = ByteLevelDecoder()  # pyright: ignore
    trainer: Any = BpeTrainer
    corpus = [shape.template] * 2 + ["\n\nsafe", "unsafe\nS1,S10"] * 9 + [*LESSONS] * 2
    alphabet = ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus,
        trainer(vocab_size=900, special_tokens=shape.specials, initial_alphabet=alphabet),
    )
    bpe.post_processor = TemplateProcessing(  # pyright: ignore
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=bpe,
        bos_token="<|begin_of_text|>",
        eos_token=shape.end,
        chat_template=shape.template,
    )


def _teach(model: Any, tokenizer: Any, shape: Shape) -> None:
    rows = list[tuple[list[int], int]]()
    for text, answer in LESSONS.items():
        for conversation in asked(text):
            messages = [
                {"role": m.role.value, "content": [{"type": "text", "text": m.text}]}
                if shape.parts
                else {"role": m.role.value, "content": m.text}
                for m in conversation.messages
            ]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False)
            texts = (prompt, shape.front + answer + shape.end)
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            rows.append(([*ids[0], *ids[1]], len(ids[0])))
    width = max(len(ids) for ids, _ in rows)
    batch = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    place = torch.arange(width)
    learned = torch.stack([(place >= start) & (place < len(ids)) for ids, start in rows])
    labels = batch.masked_fill(~learned, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(300):
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        if step > 30 and loss.item() < 0.02:
            return
