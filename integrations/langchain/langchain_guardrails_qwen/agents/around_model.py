"""What a guard does around the model: what goes to it, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse
from langchain.agents.structured_output import StructuredOutputError
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage
from langgraph.types import Command

from guardrails_qwen import GuardViolation, Stage
from langchain_guardrails_qwen.agents.model import agent_model
from langchain_guardrails_qwen.agents.model_call import ModelCall
from langchain_guardrails_qwen.judging import decided, decision_about, unblocked
from langchain_guardrails_qwen.ledgers import as_sent, gone, record_of
from langchain_guardrails_qwen.steps import Ask, Forward, Steps
from langchain_guardrails_qwen.thread_settings import ThreadSettings, thread_of
from langchain_guardrails_qwen.threads import REMOVE_ALL, Admission, Change, written
from langchain_guardrails_qwen.values import STATE_KEY


def model_call(
    settings: ThreadSettings, request: ModelRequest[Any]
) -> Steps[ExtendedModelResponse[Any]]:
    """Call the model, guarded; whatever another middleware put in its place is judged afterwards.

    Raises:
        GuardViolation: Something is blocked, and that is an error.
        GuardError: Something could not be judged, and the policy says to raise.
    """
    call = ModelCall(
        guard=settings.guard,
        ledger=settings.ledger(request.state),
        scope=settings.scope,
        judged=settings.checks,
        system=request.system_message,
        closing=settings.closing(Stage.INPUT),
        goes_on=settings.exit_behavior == "replace",
    )
    try:
        response = yield from _asked(settings, request, call)
    except GuardViolation as violation:
        response = ModelResponse[Any](result=[call.answered(violation)])
    except StructuredOutputError:
        # a reply that was replaced is not structured
        if not call.closed:
            raise
        response = ModelResponse[Any](result=[call.closed])
    if settings.check_output and not call.violation:
        response = yield from _released(settings, call, response)
    return _extended(settings, request, call, response)


def _asked(
    settings: ThreadSettings, request: ModelRequest[Any], call: ModelCall
) -> Steps[ModelResponse[Any]]:
    if not settings.check_output:
        messages = yield from _admitted(call, request)
        return (yield Forward(request.override(messages=messages)))
    streaming = replace(settings.streaming, closing=settings.closing(Stage.OUTPUT))
    model = agent_model(request.model, call=call, streaming=streaming, beside=settings.beside)
    response: ModelResponse[Any] = yield Forward(request.override(model=model))
    if not call.admission:  # another model was asked, or none
        yield from _admitted(call, request)
    if call.violation and not all(map(call.released_as, replies_of(response))):
        raise GuardViolation(call.violation)
    return response


def _admitted(call: ModelCall, request: ModelRequest[Any]) -> Steps[list[AnyMessage]]:
    inspection = call.inspect(request.messages)
    results = yield Ask(inspection.asked)
    return call.admitted(inspection, results)


def _released(
    settings: ThreadSettings, call: ModelCall, response: ModelResponse[Any]
) -> Steps[ModelResponse[Any]]:
    """The response, after judging the replies in it that did not come from the guarded model."""
    strange = [reply for reply in replies_of(response) if not call.released_as(reply)]
    if not strange:
        return response
    results = yield Ask([call.reply(reply) for reply in strange])
    decisions = [
        settings.tolerated(decision_about(reply, result, settings.guard))
        for reply, result in zip(strange, results, strict=True)
    ]
    passed = list[AIMessage]()
    for reply, decision in zip(strange, decisions, strict=True):
        passed.append(decided(reply, unblocked(settings.guard, decision, call.closing)))
        call.results.append(decision)
        call.release(passed[-1:])
    if all(decision.allowed for decision in decisions):
        return response
    replaced = {id(old): new for old, new in zip(strange, passed, strict=True)}
    # what answers the calls of a reply that lost them goes with it
    result = list[BaseMessage](replaced.get(id(reply), reply) for reply in replies_of(response))
    return ModelResponse(result=result)


def _extended(
    settings: ThreadSettings,
    request: ModelRequest[Any],
    call: ModelCall,
    response: ModelResponse[Any],
) -> ExtendedModelResponse[Any]:
    """The response, and what the thread gets to know."""
    admission = call.admission or Admission(messages=request.messages)
    thread = thread_of(request.state)
    records = {**gone(call.ledger, thread), **as_sent(admission.records, call.sent, thread)}
    for message in replies_of(response):
        message.id = str(uuid4()) if message.id is None else message.id
        released = call.released_as(message)
        decision = released.decision if released else None
        records[message.id] = record_of(message, settings.guard, decision)
    changes = written(thread, _found(thread, admission.changes))
    if changes and changes[0].id == REMOVE_ALL:
        # the thread has the response by then
        changes.extend(response.result)  # pyright: ignore[reportArgumentType]
    update = {**({STATE_KEY: changes} if changes else {}), **settings.update(records)}
    return ExtendedModelResponse(
        model_response=response, command=Command(update=update) if update else None
    )


def _found(thread: list[AnyMessage], changes: Sequence[Change]) -> list[Change]:
    """Those of messages that the thread has. Models are sent more, and copies."""
    here = {message.id: message for message in thread if message.id is not None}
    return [
        Change(old=here[change.old.id], new=change.new)
        for change in changes
        if change.old.id is not None and here.get(change.old.id) == change.old
    ]


def replies_of(response: ModelResponse[Any]) -> list[AIMessage]:
    """What the model said, without what LangChain answered to it."""
    return [message for message in response.result if isinstance(message, AIMessage)]
