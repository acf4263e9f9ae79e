"""Configuration: one YAML file to frozen Pydantic models, with every mistake named by file, line and key.

A section is a frozen model; the docstring under each field is its help text. Unknown keys are errors with a
suggestion. ``--set section.key=value`` overrides one key and is reported by its own text. A field that is marked
``NO_EFFECT`` cannot change what a stage makes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf_pipeline.errors import ConfigError


class Section(BaseModel):
    """One section of the configuration: frozen, no unknown keys, a docstring under every field."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class _NoEffect:
    """The type of :data:`NO_EFFECT`."""


NO_EFFECT: Final = _NoEffect()
"""Marks a field as no reason to make a finished stage anew: ``save_every: Annotated[int, NO_EFFECT] = Field(200)``.

Only for what leaves every bit of the weights and records as it is: less memory with other rounding is not that.
"""


class LoraSection(Section):
    """A low-rank adapter on the frozen base (Hu et al., 2106.09685)."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank r of the update; raising it adds capacity and memory in proportion."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input during SFT; reward, DPO and PPO switch it off."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Which linear layers carry an adapter: ``all-linear`` (not the head) or a list of module names."""
    top_layers: int | None = Field(None, ge=1)
    """Only so many of the uppermost decoder layers carry it; null is all. Fewer learn less, and PPO runs the layers
    below once per iteration for all roles and epochs. What starts as a copy of the SFT adapter has its layers."""


class ModelConfig(Section):
    """The base model that every stage starts from."""

    name: str = Field(min_length=1)
    """``pocket``, a folder, or a hub id such as ``Qwen/Qwen3-0.6B``."""
    revision: str | None = None
    """Hub revision (branch, tag or commit); null is the default branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the base's weights; ``auto`` is bfloat16 on CUDA and float32 on CPU. Adapters stay float32."""
    quantization: Literal["none", "4bit"] = "none"
    """``4bit`` loads the base as NF4 (CUDA only, needs the ``quantization`` extra)."""
    chat_template: str | None = None
    """null: the tokenizer's own; ``plain``: a transcript for base models; else the path of a Jinja file."""
    template_arguments: dict[str, bool | int | str] = Field(default_factory=dict)
    """Arguments that the chat template reads, e.g. ``{enable_thinking: false}`` for Qwen3."""


class TrainingSection(Section):
    """What supervised fine-tuning, reward modelling and DPO have in common."""

    lora: LoraSection | None = Field(default_factory=LoraSection)
    """The adapter; null trains all weights."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimiser steps, whatever ``epochs`` says."""
    batch_size: int = Field(16, ge=1)
    """Rows (pairs, where rows are pairs) in one optimiser step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows in one forward pass; smaller uses less memory and more time. null: the whole batch."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW; adapters bear about ten times that of full fine-tuning."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient's global norm is clipped to this."""
    max_length: int = Field(1024, ge=16)
    """Longest prompt plus response, in tokens; longer rows are counted and left out or cut, as the stage says."""
    gradient_checkpointing: Annotated[bool, NO_EFFECT] = False
    """Recompute activations in the backward pass: less memory, about a third more time, the same weights."""
    save_every: Annotated[int, NO_EFFECT] = Field(200, ge=1)
    """Optimiser steps between checkpoints, from which an interrupted stage resumes; changes no result."""
    log_every: Annotated[int, NO_EFFECT] = Field(10, ge=1)
    """Optimiser steps between lines of ``metrics.jsonl``, which says no more; the weights are the same."""

    @model_validator(mode="after")
    def _batches_can_be_divided(self) -> Self:
        if self.batch_size % (self.micro_batch_size or 1):
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


S = TypeVar("S", bound=Section)
_EXAMPLE = "start from configs/demo.yaml"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-5`` as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, list | dict):
                raise yaml.MarkedYAMLError(problem="a key must be a plain name", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands twice (first on line {seen[key]})",
                    problem_mark=key_node.start_mark,
                )
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load(schema: type[S], path: Path, overrides: Sequence[str] = (), *, unknown: list[str] | None = None) -> S:
    """Read a configuration file, apply ``key=value`` overrides, validate.

    Args:
        schema: what is expected.
        path: the file.
        overrides: changes of single keys.
        unknown: gets the unknown keys, which are then left out instead of refused.

    Raises:
        ConfigError: naming every mistake at once, each with its line and what would be right.
    """
    values, lines = _read_yaml(path)
    origin = {key: f"{path}:{line}" for key, line in lines.items()}
    for override in overrides:
        _apply_override(values, origin, override)
    return _validate(schema, values, origin, path, unknown)


def _validate(
    schema: type[S], values: dict[str, Any], origin: Mapping[str, str], path: Path, unknown: list[str] | None
) -> S:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        strange = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
        if strange and unknown is not None:
            unknown += [_leave_out(values, place) for place in strange]
            return _validate(schema, values, origin, path, unknown)
        problems = [_explain(schema, item, origin, str(path)) for item in error.errors()]
        raise ConfigError(
            f"{len(problems)} mistake{'s' if len(problems) > 1 else ''} in the configuration",
            where=str(path),
            details=problems,
            advice="every key with its meaning: rlhf help-config",
        ) from None


def _leave_out(values: dict[str, Any], place: Sequence[int | str]) -> str:
    """Remove the key at a place of nested mappings; returns its dotted name."""
    target: Any = values
    for name in place[:-1]:
        target = target[name]
    target.pop(place[-1], None)
    return ".".join(map(str, place))


def dump(settings: Section) -> str:
    """The resolved configuration as YAML; :func:`load` reads it back to the same value."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def describe(schema: type[Section], prefix: str = "") -> list[tuple[str, str, str]]:
    """Every key below a section as ``(dotted key, default, help)``, in order of declaration."""
    rows = []
    for name, field in schema.model_fields.items():
        key = f"{prefix}{name}"
        inner = _section_of(field.annotation)
        default = "required" if field.is_required() else _show(field.get_default(call_default_factory=True))
        rows.append((key, default, field.description or ""))
        if inner is not None:
            rows += describe(inner, f"{key}.")
    return rows


def without_effect(schema: type[Section], prefix: str = "") -> frozenset[str]:
    """The dotted keys below a section that cannot change what a stage makes: those marked :data:`NO_EFFECT`."""
    keys: set[str] = set()
    for name, field in schema.model_fields.items():
        if NO_EFFECT in field.metadata:
            keys.add(f"{prefix}{name}")
        elif (inner := _section_of(field.annotation)) is not None:
            keys |= without_effect(inner, f"{prefix}{name}.")
    return frozenset(keys)


def is_known(schema: type[Section], key: str) -> bool:
    """Whether a dotted key is one below a section; what stands in a mapping of a user's own names counts as known."""
    name, _, rest = key.partition(".")
    if name not in schema.model_fields:
        return False
    inner = _section_of(schema.model_fields[name].annotation)
    return not rest or inner is None or is_known(inner, rest)


def _show(value: Any) -> str:
    if isinstance(value, Section):
        return "…"
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _section_of(annotation: Any) -> type[Section] | None:
    """The section class inside an annotation such as ``LoraSection | None``."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in _siblings(path)], n=1)
        advice = (
            f"did you mean {path.with_name(near[0])}?"
            if near
            else "give the path of a YAML file, e.g. configs/demo.yaml"
        )
        raise ConfigError("there is no such configuration file", where=str(path), advice=advice) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"not a text file (byte {error.start} is not UTF-8)", where=str(path), advice=_EXAMPLE
        ) from None
    except IsADirectoryError:
        raise ConfigError(
            "a folder without config.yaml, so it is no run folder", where=str(path), advice="give a YAML file"
        ) from None
    except OSError as error:
        advice = "check its path and permissions"
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), advice=advice) from None
    try:
        root = yaml.compose(text, Loader=_StrictLoader)
        values = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader subclass)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        advice = "mend this line, or one just before it"
        raise ConfigError(f"not valid YAML: {error.problem}", where=where, advice=advice) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not valid YAML: {error}", where=str(path), advice=_EXAMPLE) from None
    if not isinstance(values, dict) or root is None:
        raise ConfigError(
            f"a configuration is a mapping of sections (model, data, …), found {type(values).__name__}",
            where=str(path),
            advice=_EXAMPLE,
        )
    lines: dict[str, int] = {}
    try:
        _collect_lines(root, "", lines)
    except RecursionError:
        advice = "write each section out, without & and *"
        raise ConfigError("not a configuration: a section contains itself", where=str(path), advice=advice) from None
    return values, lines


def _siblings(path: Path) -> list[Path]:
    folder = path.parent
    return [p for p in folder.iterdir() if p.suffix in (".yaml", ".yml")] if folder.is_dir() else []


def _collect_lines(node: yaml.Node, prefix: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            _collect_lines(value, f"{name}.", lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[f"{prefix}{index}"] = value.start_mark.line + 1
            _collect_lines(value, f"{prefix}{index}.", lines)


def _apply_override(values: dict[str, Any], origin: dict[str, str], override: str) -> None:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not all(key.split(".")):
        raise ConfigError(f"an override is KEY=VALUE, found {override!r}", where="--set", advice="--set sft.epochs=2")
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader subclass)
    except yaml.YAMLError:
        raise ConfigError(f"the value {text!r} is not valid YAML", where=f"--set {key}") from None
    *parents, last = key.split(".")
    target = values
    for depth, name in enumerate(parents):
        inner = target.get(name)
        if inner is not None and not isinstance(inner, dict):
            at = ".".join(parents[: depth + 1])
            raise ConfigError(f"{at} is a single value, so it has no key below it", where=f"--set {key}")
        target[name] = dict(inner or {})  # a copy: another section may be the same one (YAML's & and *)
        target = target[name]
    target[last] = value
    for known in [k for k in origin if k == key or k.startswith(f"{key}.")]:
        del origin[known]
    origin[key] = f"--set {key}"


def _explain(schema: type[Section], error: Any, origin: Mapping[str, str], fallback: str) -> str:
    """One Pydantic error as ``place: key: what is wrong``."""
    parts = [str(p) for p in error["loc"]]
    # Pydantic names the member of a union it tried; that is no key of the user's.
    parts = [
        p
        for p in parts
        if not re.fullmatch(r"(literal|list|str|int|float|bool|dict|function-\w+|constrained-\w+)\[?.*\]?", p)
        or p in origin
    ]
    key = ".".join(parts)
    place = next(
        (origin[".".join(parts[:n])] for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in origin), fallback
    )
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _keys_beside(schema, parts[:-1])
        near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{place}: unknown key {key}; {hint}"
    if kind == "missing":
        return f"{place}: {key} is required and missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(error["input"], dict) and kind == "value_error":  # a rule about several keys names them itself
        words = set(re.findall(r"\w+", message))
        below = f"{key}." if key else ""
        set_here = [at for k, at in origin.items() if at == f"--set {k}" and k.startswith(below)]
        named = [at for at in set_here if at.rpartition(".")[2] in words]
        return f"{' '.join(named) or place}: {f'{key}: ' if key else ''}{message}"
    return f"{place}: {key}: {message}, found {_show(error['input'])[:80]}"


def _keys_beside(schema: type[Section], parents: Sequence[str]) -> list[str]:
    for name in parents:
        field = schema.model_fields.get(name)
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            break
        schema = inner
    return list(schema.model_fields)
