"""How one kind of server differs from another. Observed or published behaviour, versions named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Template(Enum):
    """How a server renders messages."""

    OWN = "the checkpoint's own chat template"
    CHATML = "plain ChatML: every message a turn, no policy"
    QUERY_ONLY = "the guard's query branch, whoever spoke last"


class Errors(Enum):
    """How a server words what went wrong."""

    VLLM = "an object under `error`"
    SGLANG = "an object by itself"
    DETAIL = "a string under `detail`"


class Regex(Enum):
    """Where a server looks for a regular expression that constrains the answer."""

    STRUCTURED_OUTPUTS = "structured_outputs.regex"
    REGEX = "regex"
    NOWHERE = "fields for it are ignored"


class Reply(Enum):
    """What a server makes of a last message that is the assistant's."""

    KEPT = "it stays the assistant's"
    USER = "it becomes a user's, unless continue_final_message is true"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """What a server can do, and what it does differently. As vLLM if nothing else is said."""

    owned_by: str = "vllm"
    template: Template = Template.OWN
    errors: Errors = Errors.VLLM
    regex: Regex = Regex.STRUCTURED_OUTPUTS
    reply: Reply = Reply.KEPT
    checks_model: bool = True
    """Whether an unknown model is an error; otherwise any name will do."""
    checks_length: bool = True
    """Whether a prompt beyond the context is an error; otherwise the model is run on it."""
    checks_fields: bool = False
    """Whether a field that the OpenAI interface does not have is an error; otherwise ignored."""
    lists_models: bool = True
    """Whether /v1/models names the model that is served; otherwise it names none."""
    terse: bool = False
    """Whether fields that would be null are left out."""
    tells_context: bool = True
    """Whether /v1/models says `max_model_len`."""
    logprobs: bool = True
    """Whether log-probabilities are given when they are asked for; otherwise that is ignored."""
    id_prompts: bool = True
    """Whether /v1/completions takes prompts of token ids; otherwise they are an error."""
    by_token_id: bool = True
    """Whether token ids can be asked about and told: `logprob_token_ids`, `return_token_ids`,
    `return_tokens_as_token_ids`; otherwise these are ignored."""
    tokenizes: bool = True
    """Whether there are /tokenize and /detokenize."""
    tokenizes_messages: bool = True
    """Whether /tokenize takes messages; otherwise a prompt only."""
    model_info: bool = False
    """Whether there is /get_model_info."""
    keeps: int | None = None
    """How many tokens from the end of a prompt are read; the others are dropped silently."""
    says: str | None = None
    """What the chat endpoint answers, whatever it is asked, unless it is constrained."""


VLLM = Quirks()
"""vLLM 0.32.0, as the tests in tests/serving hold it to. guided_* are ignored with status 200;
log-probabilities under a constraint are those after the mask; `continue_final_message` cuts the
guard's prompt behind the last place that reads like the message, which is not its end."""

SGLANG = Quirks(
    owned_by="sglang",
    errors=Errors.SGLANG,
    regex=Regex.REGEX,
    reply=Reply.USER,
    checks_model=False,
    by_token_id=False,
    tokenizes_messages=False,
    model_info=True,
)
"""SGLang 0.5.23. A last assistant message becomes a user's, so a reply is judged as a prompt. With
`continue_final_message` it is taken off, the rest rendered, and its text put behind the template's
own assistant turn. `structured_outputs` and guided_* are ignored. From its serving_chat.py, and
tried on a CPU with its kernels stubbed."""

TRANSFORMERS_SERVE = Quirks(
    owned_by="transformers",
    errors=Errors.DETAIL,
    regex=Regex.NOWHERE,
    checks_length=False,
    checks_fields=True,
    lists_models=False,
    terse=True,
    logprobs=False,
    id_prompts=False,
    by_token_id=False,
    tokenizes=False,
)
"""transformers serve 5.23.0. logprobs and response_format are ignored, and fields that OpenAI's
interface does not have are refused with 422, structured_outputs among them. Prompts are strings or
refused with 400; a prompt longer than the model's positions is run all the same. Pinned to a
folder, it lists no model, takes the folder's path as the model's name and refuses others with 400.
As the tests in tests/serving hold it to."""

LLAMA_CPP = Quirks(
    owned_by="me",
    regex=Regex.NOWHERE,
    checks_model=False,
    tells_context=False,
    id_prompts=False,
    by_token_id=False,
    tokenizes=False,
)
"""llama-cpp-python 0.3.36 with --logits_all: the chat template is honoured, log-probabilities are
given, prompts of token ids are rejected."""

CHATTING = replace(
    VLLM,
    template=Template.CHATML,
    says="That's a great question! I'd be happy to help you with that. First of all, it depends.",
)
"""A server that does not apply the guard's template, as wrappers of GGUF files without one: the
model chats instead of judging. A prompt of token ids still reaches the model as it is, and a
constraint is obeyed: what chats then writes what reads like a verdict."""

NO_LOGPROBS = replace(VLLM, logprobs=False)
"""Log-probabilities are left out without a word."""

WRONG_TEMPLATE = replace(VLLM, template=Template.QUERY_ONLY)
"""A template that knows the query branch only: a reply is judged as a prompt."""


def truncating(keeps: int) -> Quirks:
    """A server like Ollama, whose context is small by default: the beginning of a longer prompt is
    dropped without an error, and only usage.prompt_tokens tells. For the guard that is its policy.
    """
    return replace(LLAMA_CPP, owned_by="library", checks_length=False, keeps=keeps)
