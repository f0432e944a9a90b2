"""Nothing depends on how one tokenizer splits the answer: the same engine on quite another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from guardrails_qwen import Conversation, Message, Role, Severity, UnreadableVerdict, Verdict
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.answer import AnswerFormat
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.transformers import TransformersEngine
from tests.engines.recipe import Recipe

TEMPLATE = (
    "{% set reply = messages[-1].role != 'user' %}<|im_start|>user\n"
    "Judge the {{ 'reply' if reply else 'prompt' }}.\n<BEGIN CONVERSATION>\n\n"
    "{% for m in messages %}{{ '' if loop.first else '\n\n' }}"
    "{{ 'USER' if m.role == 'user' else 'ASSISTANT' }}: {{ m.content }}{% endfor %}"
    "\n\n<END CONVERSATION><|im_end|>\n<|im_start|>assistant\n"
)

LESSONS = {
    "a red hen": ("Safe", "None", "No"),
    "a blue cow": ("Unsafe", "Violent", "No"),
    "a green dog": ("Unsafe", "Unethical Acts", "No"),
    "one black cat": ("Controversial", "Suicide & Self-Harm", "No"),
    "two white owls": ("Unsafe", "Sexual Content or Sexual Acts", "Yes"),
    "five grey mice": ("Safe", "None", "Yes"),
    "a pink fish": ("Unsafe", "Non-violent Illegal Acts", "No"),
    "ten brown ants": ("Controversial", "Politically Sensitive Topics", "Yes"),
}


def _format(asked: Conversation) -> AnswerFormat:
    return qwen3guard.answer_format(response=judges_response(asked))


def _asked(text: str) -> list[Conversation]:
    return [Conversation.of(text), Conversation.exchange("Say something.", text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer of single letters, taught the lessons in a few seconds."""
    path = tmp_path_factory.mktemp("letters")
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    specials = ["<|im_start|>", "<|im_end|>"]
    letters = Tokenizer(BPE())
    letters.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore
    letters.decoder = ByteLevelDecoder()  # pyright: ignore
    trainer: Any = BpeTrainer
    alphabet = ByteLevel.alphabet()
    size = len(alphabet) + len(specials)
    letters.train_from_iterator(
        [], trainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=letters, eos_token="<|im_end|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(path)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=24,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model: Any = Qwen3ForCausalLM(config)
    _teach(model, tokenizer)
    model.save_pretrained(path)
    return path


def _teach(model: Any, tokenizer: Any) -> None:
    rows = list[tuple[list[int], int]]()
    for text, values in LESSONS.items():
        for asked in _asked(text):
            form = _format(asked)
            messages = [message.to_dict() for message in asked.messages]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False)
            answer = form.write(values[: len(form.fields)]) + "<|im_end|>"
            ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, answer)]
            rows.append(([*ids[0], *ids[1]], len(ids[0])))
    width = max(len(ids) for ids, _ in rows)
    batch = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    place = torch.arange(width)
    learned = torch.stack([(place >= start) & (place < len(ids)) for ids, start in rows])
    labels = batch.masked_fill(~learned, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(400):
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=labels).loss
        loss.backward()
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        if step > 50 and loss.item() < 0.003:
            return


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    with TransformersEngine.from_pretrained(folder, device="cpu", dtype="float32") as engine:
        yield engine


def test_its_answers_fork_inside_words(folder: Path) -> None:
    tokenizer = Recipe(folder).tokenizer
    severities = [tokenizer(f" {s.label}", add_special_tokens=False)["input_ids"] for s in Severity]
    categories = [
        tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
        for name in ("Violent", "Unethical Acts", "None", "Non-violent Illegal Acts")
    ]
    assert min(map(len, severities)) > 1
    assert len({ids[0] for ids in [*severities, *categories]}) < 3


def test_it_has_learned_its_lessons(engine: TransformersEngine) -> None:
    for text, values in LESSONS.items():
        for asked in _asked(text):
            [verdict] = engine.judge([asked])
            expected = qwen3guard.verdict(values[: len(_format(asked).fields)])
            assert isinstance(verdict, Verdict)
            assert (verdict.severity, verdict.categories) == (
                expected.severity,
                expected.categories,
            )
            assert verdict.refusal is expected.refusal


def test_its_verdicts_are_those_of_the_recipe(engine: TransformersEngine, folder: Path) -> None:
    texts = [f"{a} {b}" for a in LESSONS for b in ("", "and a pig", *list(LESSONS)[:3])]
    asked = [conversation for text in texts for conversation in _asked(text.strip())]
    asked.append(Conversation((Message(role=Role.ASSISTANT, text="a blue cow"),)))
    answers = Recipe(folder).answers([engine.prompt(one) for one in asked], new_tokens=80)
    readable = 0
    for one, outcome, answer in zip(asked, engine.judge(asked), answers, strict=True):
        try:
            expected = qwen3guard.read(answer, response=judges_response(one))
        except UnreadableVerdict:
            continue
        readable += 1
        assert isinstance(outcome, Verdict)
        assert (outcome.severity, outcome.categories) == (expected.severity, expected.categories)
        assert outcome.refusal is expected.refusal
    assert readable >= len(LESSONS) * 2


def test_its_scores_are_the_probabilities_of_whole_answers(
    engine: TransformersEngine, folder: Path
) -> None:
    recipe = Recipe(folder)
    asked = Conversation.of("a green dog")
    [verdict] = engine.judge([asked])
    assert isinstance(verdict, Verdict)
    assert verdict.scores is not None
    prompt, form = engine.prompt(asked), qwen3guard.PROMPT_ANSWER
    by_severity = dict.fromkeys(Severity, 0.0)
    for values in form.answers:
        ids = recipe.tokenizer(form.write(values), add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = recipe.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1)[range(len(ids)), ids]
        by_severity[Severity.from_label(values[0])] += float(chosen.sum().exp())
    documented = sum(by_severity.values())
    assert documented > 0.8
    for severity, p in by_severity.items():
        assert verdict.scores.severity[severity] == pytest.approx(p / documented, abs=0.02)
