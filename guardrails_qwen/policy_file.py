"""Policies as YAML and JSON: validated, with messages that name the line or the path."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from guardrails_qwen.errors import PolicyError
from guardrails_qwen.policy import Policy
from guardrails_qwen.rules import MARKER, REPLACEMENT, Action, OnError, Rule, Stage, StagePolicy
from guardrails_qwen.verdict import Category, Severity

Location = Sequence[str | int]
Where = Callable[[Location], str]


def read_file(path: Path) -> Policy:
    """See `Policy.from_file`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a UTF-8 file"
        raise PolicyError(f"the policy file {path} cannot be read: {reason}") from error
    if path.suffix.lower() != ".json":
        return read_yaml(text, source=str(path))
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise PolicyError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    except (RecursionError, ValueError) as error:
        raise PolicyError(f"{path}: nested too deep, or a number too long") from error
    return _validated(data, lambda location: f"{path}, at {_path(location)}")


def read_yaml(text: str, *, source: str = "policy") -> Policy:
    """See `Policy.from_yaml`."""
    try:
        compose = cast("Callable[..., yaml.Node | None]", yaml.compose)  # pyright: ignore
        tree = compose(text, Loader=yaml.SafeLoader)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PolicyError(f"{source}{line}: {error.problem or 'not YAML'}") from error
    except yaml.YAMLError as error:
        raise PolicyError(f"{source}: not YAML") from error
    except RecursionError as error:
        raise PolicyError(f"{source}: nested too deep") from error
    except ValueError as error:  # a date or number that is none
        raise PolicyError(f"{source}: {error}") from error
    return _validated(
        data, lambda location: f"{source}, line {_line(tree, location)}, at {_path(location)}"
    )


def read_data(data: Mapping[str, Any]) -> Policy:
    """See `Policy.from_dict`."""
    return _validated(data, lambda location: f"policy, at {_path(location)}")


def _named(parse: Callable[[str], object], known: list[str]) -> BeforeValidator:
    """A validator that turns a label into a value and, where it cannot, offers the nearest one."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"{_said(value)}; use one of: {', '.join(known)}")  # noqa: TRY004
        labels = {label.lower(): label for label in known}
        if value.lower() in labels:
            return parse(labels[value.lower()])
        near = difflib.get_close_matches(value.lower(), labels, n=1)
        hint = f"; did you mean {labels[near[0]]!r}?" if near else ";"
        raise ValueError(f"unknown name {value!r}{hint} use one of: {', '.join(known)}")

    return BeforeValidator(validate)


_Severity = Annotated[
    Severity, _named(Severity.from_label, [severity.label.lower() for severity in Severity])
]
_Action = Annotated[Action, _named(Action.from_label, [action.label for action in Action])]
_Category = Annotated[Category, _named(Category, [category.label for category in Category])]
_OnError = Annotated[OnError, _named(OnError, [choice.value for choice in OnError])]
_StageName = Annotated[
    Stage | Literal["default"],
    _named(
        lambda name: name if name == "default" else Stage(name),
        ["default", *(stage.value for stage in Stage)],
    ),
]


def _said(value: object) -> str:
    if value is None:
        return "nothing is given here: leave the field out"
    if isinstance(value, bool):
        return "YAML reads this word as yes or no: put it in quotes"
    return f"a name is expected here, not {type(value).__name__}"


def _once(stages: object) -> object:
    """The stages, each given once: their names are read in any case."""
    if isinstance(stages, Mapping):
        names = [str(name).lower() for name in cast("Mapping[object, object]", stages)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"given twice: {', '.join(twice)}")
    return cast("object", stages)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Rule(_Model):
    action: _Action
    severity: _Severity = Severity.CONTROVERSIAL
    category: _Category = cast("Category", None)
    probability: Annotated[float, Field(gt=0, le=1)] = cast("float", None)


class _Stage(_Model):
    rules: list[_Rule]
    on_error: _OnError = OnError.BLOCK
    replacement: str = REPLACEMENT
    marker: str = MARKER

    def value(self) -> StagePolicy:
        rules = tuple(
            Rule(**{k: getattr(rule, k) for k in _Rule.model_fields}) for rule in self.rules
        )
        return StagePolicy(
            rules=rules,
            on_error=self.on_error,
            replacement=self.replacement,
            marker=self.marker,
        )


class _Policy(_Model):
    name: str
    extends: Literal["strict", "loose"] | None = None
    stages: Annotated[dict[_StageName, _Stage], BeforeValidator(_once)]

    def value(self) -> Policy:
        base = {None: None, "strict": Policy.strict(), "loose": Policy.loose()}[self.extends]
        stages = {k: v.value() for k, v in self.stages.items()}
        default = stages.pop("default", base.default if base else None)
        if default is None:
            missing = [stage.value for stage in Stage if stage not in stages]
            if missing:
                raise PolicyError(
                    f"policy {self.name!r} says nothing about {', '.join(missing)}: add a stage "
                    "'default', or 'extends: strict'"
                )
            default = Policy.strict().default
        named = {k: v for k, v in stages.items() if isinstance(k, Stage)}
        return Policy(
            name=self.name, default=default, stages={**(base.stages if base else {}), **named}
        )


def _validated(data: object, where: Where) -> Policy:
    try:
        return _Policy.model_validate(data).value()
    except ValidationError as error:
        problems = [
            f"{where(_plain(problem['loc']))}: {_message(cast('Any', problem))}"
            for problem in error.errors()
        ]
    except PolicyError as error:
        raise PolicyError(f"{where(())}: {error}") from error
    raise PolicyError("\n".join(problems))


def _message(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown field; check its spelling"
    if problem["type"] == "missing":
        return "this field is required"
    if problem["type"] in {"model_type", "dict_type"}:
        return "fields and their values are expected here"
    return str(problem["msg"]).removeprefix("Value error, ")


def _plain(location: Location) -> list[str | int]:
    """Pydantic's location without the marks that it adds for unions and dictionary keys."""
    return [part for part in location if part != "[key]" and not str(part).endswith("]")]


def _path(location: Location) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".") or "the top"


def _line(tree: yaml.Node | None, location: Location) -> int:
    """The line, from 1, of the deepest part of a location that the document has."""
    node, line = tree, tree.start_mark.line + 1 if tree else 1
    for part in location:
        child = _child(node, part)
        if child is None:
            break
        line, node = child
    return line


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = cast("list[yaml.Node]", node.value)[part]
        return item.start_mark.line + 1, item
    if isinstance(node, yaml.MappingNode):
        for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            if str(key.value).lower() == str(part).lower():
                return key.start_mark.line + 1, value
    return None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise PolicyError(f"the field {key!r} is given twice")
    return dict(pairs)


class _Loader(yaml.SafeLoader):
    """YAML without anything silent: a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the field {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)
