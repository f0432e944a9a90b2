"""A policy: from a stage and a verdict to a decision. Pure; no model runs here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from guardrails_qwen.decision import Decision, rule_to_dict
from guardrails_qwen.errors import GuardError, unavailable
from guardrails_qwen.rules import Action, OnError, Rule, Stage, StagePolicy
from guardrails_qwen.verdict import Severity, Verdict


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is done about verdicts, stage by stage.

    >>> from guardrails_qwen import Policy, Severity, Stage, Verdict
    >>> verdict = Verdict(severity=Severity.CONTROVERSIAL)
    >>> Policy.strict().decide(Stage.INPUT, verdict).action.label
    'block'
    >>> Policy.loose().decide(Stage.INPUT, verdict).action.label
    'flag'
    """

    name: str
    default: StagePolicy
    """Of every stage that `stages` does not name."""
    stages: Mapping[Stage, StagePolicy] = field(default_factory=dict[Stage, StagePolicy])

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", {Stage(k): v for k, v in self.stages.items()})

    @classmethod
    def strict(cls, *, action: Action = Action.BLOCK, on_error: OnError = OnError.BLOCK) -> Policy:
        """Controversial counts as unsafe: `action` for both. Retrieved chunks are dropped."""
        return _preset("strict", [Rule(action=action)], on_error)

    @classmethod
    def loose(cls, *, action: Action = Action.BLOCK, on_error: OnError = OnError.BLOCK) -> Policy:
        """Controversial counts as safe and is flagged: `action` for Unsafe only."""
        flag = Rule(action=Action.FLAG)
        return _preset("loose", [flag, Rule(action=action, severity=Severity.UNSAFE)], on_error)

    @classmethod
    def from_file(cls, path: str | Path) -> Policy:
        """A policy from a YAML or JSON file.

        Raises:
            PolicyError: The file is missing or wrong; the message names the line or the path.
        """
        from guardrails_qwen.policy_file import read_file

        return read_file(Path(path))

    @classmethod
    def from_yaml(cls, text: str) -> Policy:
        """A policy from YAML text, of the form that `to_yaml` writes.

        Raises:
            PolicyError: The text is wrong; the message names the line.
        """
        from guardrails_qwen.policy_file import read_yaml

        return read_yaml(text)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """The inverse of `to_dict`.

        Raises:
            PolicyError: The data is wrong; the message names the path.
        """
        from guardrails_qwen.policy_file import read_data

        return read_data(data)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` reads it back, and so do policy files."""
        named = sorted(self.stages.items(), key=lambda item: item[0].value)
        stages = {"default": self.default, **{stage.value: policy for stage, policy in named}}
        return {"name": self.name, "stages": {k: _stage_to_dict(v) for k, v in stages.items()}}

    def to_yaml(self) -> str:
        """The policy as a YAML file; `from_yaml` reads it back."""
        import yaml

        data = self.to_dict()
        # YAML folds these line breaks into spaces unless they are escaped
        odd = set("\x85\u2028\u2029") & set(json.dumps(data, ensure_ascii=False))
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=not odd)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for everything in this policy, in every process."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def at(self, stage: Stage) -> StagePolicy:
        """The rules of a stage."""
        return self.stages.get(stage, self.default)

    def decide(self, stage: Stage, verdict: Verdict, text: str | None = None) -> Decision:
        """What is done with a text of this verdict.

        The decision passes on `text` where it is allowed, and the replacement where it is replaced.
        To redact takes a model: a guard does it, and here the text of the decision is None.
        """
        rule = self.at(stage).rule_for(verdict)
        action = rule.action if rule else Action.ALLOW
        passed_on = {
            Action.ALLOW: text,
            Action.FLAG: text,
            Action.REPLACE: self.at(stage).replacement,
        }
        return Decision(
            action=action,
            stage=stage,
            text=passed_on.get(action),
            verdict=verdict,
            rule=rule,
            policy=self.name,
            fingerprint=f"{self.fingerprint}.{verdict.fingerprint}",
        )

    def decide_unjudged(self, stage: Stage, error: GuardError, text: str | None = None) -> Decision:
        """What is done with a text that could not be judged, by the stage's `on_error`.

        Raises:
            GuardError: `error` itself, where the policy says raise.
        """
        on_error = self.at(stage).on_error
        if on_error is OnError.RAISE:
            raise error
        allow = on_error is OnError.ALLOW and unavailable(error)
        return Decision(
            action=Action.ALLOW if allow else Action.BLOCK,
            stage=stage,
            text=text if allow else None,
            error=f"{type(error).__name__}: {error}",
            policy=self.name,
            fingerprint=f"{self.fingerprint}.",
        )


def _preset(name: str, rules: list[Rule], on_error: OnError) -> Policy:
    default = StagePolicy(rules=tuple(rules), on_error=on_error)
    dropping = tuple(
        Rule(action=Action.DROP, severity=rule.severity) if rule.action is Action.BLOCK else rule
        for rule in rules
    )
    context = StagePolicy(rules=dropping, on_error=on_error)
    return Policy(name=name, default=default, stages={Stage.CONTEXT: context})


def _stage_to_dict(policy: StagePolicy) -> dict[str, Any]:
    return {
        "rules": [rule_to_dict(rule) for rule in policy.rules],
        "on_error": policy.on_error.value,
        "replacement": policy.replacement,
        "marker": policy.marker,
    }
