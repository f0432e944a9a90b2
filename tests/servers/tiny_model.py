"""The bundled checkpoint as a server holds it: the library's tokenizer, template and module."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import regex
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import guardrails_qwen
from tests.servers.quirks import Template

CHECKPOINT = Path(guardrails_qwen.__file__).parent / "checkpoints" / "tiny-gen"

MASKED = -9999.0
"""The log-probability of a token that a constraint forbids, as vLLM reports it."""

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token, and the log-probabilities of all tokens in its place: [vocabulary]."""

    token: int
    logprobs: torch.Tensor = field(repr=False)
    likeliest: tuple[int, ...] = field(repr=False)
    """The likeliest tokens in their order, more than a request may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What generation is held to."""

    pattern: str | None = None
    """A regular expression for the answer."""
    script: tuple[int, ...] | None = None
    """The tokens to be written, whatever the model thinks."""


class TinyModel:
    """Runs the checkpoint in float32, greedily. Not safe for threads: use `worker`."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.generate = lru_cache(maxsize=128)(self._generate)
        self.token = lru_cache(maxsize=None)(self._token)
        """The text of one token; empty where it is a part of a character only."""
        self._allowed = lru_cache(maxsize=1024)(self._allowed_after)

    @classmethod
    def load(cls, folder: Path = CHECKPOINT) -> TinyModel:
        auto_tokenizer: Any = AutoTokenizer
        auto_model: Any = AutoModelForCausalLM
        model = auto_model.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(auto_tokenizer.from_pretrained(folder), model)

    @cached_property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.eos_token_id

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.model.config.vocab_size

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        template: Template = Template.OWN,
        continued: bool = False,
    ) -> list[int]:
        """Messages as token ids. Special tokens in content are special, as on real servers."""
        text = self.tokenizer.apply_chat_template(
            messages,
            chat_template=self._template(template),
            tokenize=False,
            continue_final_message=continued,
        )
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=not special)

    def _token(self, token: int) -> str:
        text = self.decode([token], special=True)
        return "" if text.endswith("\ufffd") else text

    def _generate(self, prompt: tuple[int, ...], most: int, wish: Wish) -> tuple[Step, ...]:
        """Up to `most` tokens behind a prompt. The token that ends the answer is the last one."""
        steps: list[Step] = []
        ids, cache = prompt, None
        while len(steps) < most and (not steps or steps[-1].token != self.end):
            with torch.inference_mode():
                output = self.model(
                    torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1
                )
            cache = output.past_key_values
            steps.append(self._step(output.logits[0, -1].float(), steps, wish))
            ids = (steps[-1].token,)
        return tuple(steps)

    def _step(self, logits: torch.Tensor, before: list[Step], wish: Wish) -> Step:
        if wish.script is not None:
            token = (*wish.script, self.end)[len(before)]
            logits = logits.clone()
            logits[token] = logits.max() + 3
        if wish.pattern is not None:
            written = self.decode([step.token for step in before])
            logits = logits.masked_fill(~self._allowed(wish.pattern, written), -torch.inf)
        logprobs = logits.log_softmax(-1).clamp(min=MASKED)
        ranked = torch.sort(logprobs, descending=True, stable=True).indices[:32]
        likeliest = tuple(int(token) for token in ranked)
        return Step(likeliest[0], logprobs, likeliest)

    def _allowed_after(self, pattern: str, written: str) -> torch.Tensor:
        """Which tokens may follow, so that a text that matches can still come of it: [vocabulary].

        The end may follow a whole match only. Log-probabilities are taken after this mask.
        """
        compiled: Any = regex.compile(pattern)  # pyright: ignore[reportUnknownMemberType]
        allowed = torch.tensor(
            [
                bool(text) and compiled.fullmatch(written + text, partial=True) is not None
                for text in self._texts
            ]
        )
        allowed[self.end] = compiled.fullmatch(written) is not None
        return allowed

    @cached_property
    def _texts(self) -> list[str]:
        """The text of every token; empty for special tokens and parts of characters."""
        texts = [self.decode([token]) for token in range(self.vocabulary)]
        return ["" if "\ufffd" in text else text for text in texts]

    def _template(self, template: Template) -> str | None:
        own: str = self.tokenizer.chat_template
        if template is Template.QUERY_ONLY:
            own = own.replace("messages[-1].role == 'user'", "true")
            return own.replace("messages[-1].role != 'user'", "false")
        return _CHATML if template is Template.CHATML else None


@lru_cache(maxsize=1)
def worker() -> ThreadPoolExecutor:
    """The one thread that runs the model, with one core; other threads keep theirs."""
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, thread_name_prefix="tiny-model")
    pool.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(cores)
    return pool


@lru_cache(maxsize=1)
def tiny_model() -> TinyModel:
    """The bundled checkpoint, loaded once."""
    return TinyModel.load()
