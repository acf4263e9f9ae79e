"""One frozen base, several LoRA adapters: the roles of policy, reference, reward and value in one model.

Switching writes two private fields of PEFT's LoRA layers and nothing else. PEFT's own ``set_adapter`` and
``disable_adapter`` also flip ``requires_grad`` (freezing what should train, unfreezing what must not) and silently
unmerge; peft is therefore pinned to a minor version and the fields are tested. ``requires_grad`` is set when a role
is added and never touched again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear, LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.divided_base import in_step, own_part
from rlhf_pipeline.errors import ArtifactError, ModelError
from rlhf_pipeline.models import lora_config
from rlhf_pipeline.trunk import Trunk, decoder_layers

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_HEADS = ("score", "classifier")
"""What PEFT saves beside a SEQ_CLS adapter; the reward's head is read on its own."""


@dataclass
class _Role:
    adapter: str  # the role whose adapter is at work: its own name, except for a head on another's
    parameters: dict[str, Parameter]  # PEFT's names without the adapter's
    trainable: bool
    head: nn.Linear | None = None


def _adapter(name: str) -> str:
    """What PEFT calls a role's adapter.

    PEFT finds an adapter's tensors by its name anywhere in theirs, and BERT has layers called ``value``.
    """
    return f"role_{name}"


class Roles:
    """Adapters by name on one base. At rest no adapter is active; inside :meth:`use` exactly one is.

    Dropout is off everywhere: with it the first ratio of PPO would not be 1. Over a bfloat16 base every pass is in
    mixed precision: the float32 adapters are multiplied in bfloat16, and heads in float32.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        """Freeze the base. It must not carry adapters yet."""
        assert not any(isinstance(m, LoraLayer) for m in base.modules()), "the base has LoRA layers already"
        self.base = base
        self.base.requires_grad_(False)
        self.base.train(False)
        if base.dtype == torch.bfloat16:
            for module in (base, base.base_model):  # forwards alone: a backward pass under autocast rounds the heads
                module.forward = self.precision()(module.forward)
        self._base_tensors = {**dict(base.named_parameters()), **dict(base.named_buffers())}
        self._model: PeftModel | None = None
        self._layers: list[LoraLayer] = []
        self._recomputed: list[GradientCheckpointingLayer] = []
        self._roles: dict[str, _Role] = {}
        self._active: str | None = None
        self._in_use = False

    def add(
        self,
        name: str,
        *,
        folder: Path | None = None,
        copy_of: str | None = None,
        lora: LoraSection | None = None,
        trainable: bool = False,
    ) -> None:
        """Add a role: from an adapter's folder, as a copy of another role (head included), or fresh (B = 0: the base).

        Args:
            folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``; score weights in it are left out
                (see :meth:`set_head`).
            lora: shape of a fresh adapter; its A is drawn from torch's global generator.
            trainable: whether its parameters (and head) have ``requires_grad``, from now on.

        Raises:
            ArtifactError: the folder is no LoRA adapter, or its tensors are not those that this base would have.
            ModelError: a fresh adapter finds none of its layers in the base.
        """
        if self._in_use or name in self._roles or sum(x is not None for x in (folder, copy_of, lora)) != 1:
            raise ValueError(f"role {name!r}: add it once, outside of use(), from one of folder, copy_of, lora")
        if folder is not None:
            config, state = _read_adapter(folder)
        elif copy_of is not None:
            config, state = self._config(copy_of), self._file_state(copy_of)
        else:
            assert lora is not None
            config, state = lora_config(lora, self.base, task="CAUSAL_LM"), None
        self._inject(name, config, folder)
        if state is not None:
            self._load(name, state, str(folder or copy_of))
        self._roles[name] = _Role(name, self._named(name), trainable)
        if copy_of is not None and (head := self._roles[copy_of].head) is not None:
            self.set_head(name, head.weight, cast(Tensor, head.bias))
        self._restore()

    def add_head(self, name: str, weight: Tensor, *, on: str, trainable: bool = False) -> None:
        """Add a role that is a head alone, ``(1, hidden)``; :meth:`use` puts the adapter of role ``on`` to work."""
        if self._in_use or name in self._roles:
            raise ValueError(f"role {name!r}: add it once, outside of use()")
        self._roles[name] = _Role(self._roles[on].adapter, {}, trainable)
        self.set_head(name, weight)

    def set_head(self, name: str, weight: Tensor, bias: Tensor | float = 0.0) -> None:
        """Give a role a head on the backbone's last hidden state, in float32: weight ``(1, hidden)``, or a row for each
        of several outputs."""
        role = self._roles[name]
        role.head = nn.Linear(weight.shape[1], len(weight), device=self.base.device, dtype=torch.float32)
        role.head.requires_grad_(role.trainable)
        with torch.no_grad():
            role.head.weight.copy_(weight)
            role.head.bias.copy_(torch.as_tensor(bias))

    def head(self, name: str, hidden: Tensor) -> Tensor:
        """The role's scalar for each hidden state: ``(…, hidden)`` of any dtype → ``(…,)`` in float32; ``(…, outputs)``
        of a head with several."""
        head = self._roles[name].head
        assert head is not None, f"role {name!r} has no head"
        return cast(Tensor, head(hidden.to(torch.float32))).squeeze(-1)

    def precision(self) -> torch.autocast:
        """What a pass runs in: bfloat16 autocast over a bfloat16 base, else nothing.

        Every pass enters it by itself; entered around several, the adapters are cast once for all of them.
        """
        mixed = self.base.dtype == torch.bfloat16
        return torch.autocast(self.base.device.type, torch.bfloat16, enabled=mixed)

    def trunk(self) -> Trunk | None:
        """The lower layers on which no role has an adapter; null where there are none.

        Raises:
            ModelError: the architecture does not allow to start from their states.
        """
        layers = decoder_layers(self.base)
        adapted = [sum(isinstance(m, LoraLayer) for m in layer.modules()) for layer in layers]
        depth = next(i for i, number in enumerate([*adapted, 1]) if number)
        if depth == 0 or sum(adapted) < len(self._layers):  # one that is elsewhere may be below all of them
            return None
        return Trunk(self.base, depth)

    def recompute_layers(self) -> None:
        """Keep only each layer's input for the backward pass and compute the rest again there: less memory, more time.

        Raises:
            ModelError: the architecture has no layers that can do this.
        """
        self._recomputed = [m for m in self.base.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not self._recomputed:
            raise ModelError(
                "this architecture cannot recompute its layers", advice="set gradient_checkpointing: false"
            )
        for layer in self._recomputed:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = self._recompute  # type: ignore[assignment]

    @contextmanager
    def use(self, name: str | None) -> Iterator[PreTrainedModel]:
        """The base with this role's adapter at work (None: the bare base); do not nest.

        After :meth:`recompute_layers`, finish the backward pass inside: layers are computed again there.
        """
        if self._in_use:
            raise RuntimeError(f"role {self._active!r} is in use; switching now would mix two roles in one pass")
        if name is not None and name not in self._roles:
            raise KeyError(f"no role {name!r}; there are {', '.join(self._roles)}")
        if any(layer.merged for layer in self._layers):
            raise RuntimeError("an adapter is merged into the base; every other role would run on changed weights")
        self._in_use = True
        self._switch(name)
        for (
            layer
        ) in self._recomputed:  # the layer itself only: what is inside stays in evaluation mode, without dropout
            layer.training = torch.is_grad_enabled()
        try:
            with in_step(self.base):
                yield self.base
        finally:
            for layer in self._recomputed:
                layer.training = False
            self._switch(None)
            self._in_use = False

    def __contains__(self, name: str) -> bool:
        return name in self._roles

    def adapter_of(self, name: str) -> str:
        """The role whose adapter is at work in this one: itself, or the one that its head sits on."""
        return self._roles[name].adapter

    def names(self, *, trainable: bool) -> list[str]:
        """The roles that were added to be trained, or those that were not."""
        return [name for name, role in self._roles.items() if role.trainable == trainable]

    def parameters(self, name: str) -> list[Parameter]:
        """The role's tensors, head last, always in one order."""
        return list(self.named_parameters(name).values())

    def named_parameters(self, name: str) -> dict[str, Parameter]:
        """The same by name; the head's are ``head.weight`` and ``head.bias``."""
        role = self._roles[name]
        head = {} if role.head is None else {f"head.{key}": value for key, value in role.head.named_parameters()}
        return {**role.parameters, **head}

    def state(self, name: str) -> dict[str, Tensor]:
        """The role's tensors with its head, for a checkpoint."""
        return {key: parameter.detach() for key, parameter in self.named_parameters(name).items()}

    @torch.no_grad()
    def load_state(self, name: str, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        for key, parameter in self.named_parameters(name).items():
            parameter.copy_(state[key])

    def save(self, name: str, folder: Path, *, model_name: str | None = None) -> None:
        """Write the adapter (not its head) so that ``PeftModel.from_pretrained`` can read it.

        Args:
            model_name: what ``base_model_name_or_path`` shall say: a name that means something on another machine.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in self._file_state(name).items()}
        # By way of bytes: safetensors' own files are readable by their owner alone, whatever the umask.
        (folder / WEIGHTS).write_bytes(serialise(tensors, metadata={"format": "pt"}))
        values = {**self._config(name).to_dict(), "inference_mode": True, "base_model_name_or_path": model_name}
        text = json.dumps(values, indent=2, sort_keys=True, default=sorted)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    def fingerprint(self, name: str | None) -> str:
        """sha256 over a role's tensors with its head, or over the base's for None: equal bits, equal fingerprint.

        Of a divided base it is this process's part.
        """
        tensors: dict[str, Tensor] = dict(self._base_tensors) if name is None else dict(self.named_parameters(name))
        digest = hashlib.sha256()
        for key in sorted(tensors):
            value = own_part(tensors[key].detach()).cpu().contiguous()
            digest.update(f"{key}:{value.dtype}:{tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _recompute(self, layer: Callable[..., Any], *inputs: Any) -> Any:
        """A layer that is computed again in the backward pass, with the role of the forward pass or not at all."""
        role = self._active

        def compute(*given: Any) -> Any:
            if self._active != role:
                raise RuntimeError(
                    f"the backward pass of role {role!r} came after use(): its layers would be another's"
                )
            return layer(*given)

        return checkpoint(compute, *inputs, use_reentrant=False)

    def _inject(self, name: str, config: LoraConfig, folder: Path | None) -> None:
        values = {"task_type": "CAUSAL_LM", "modules_to_save": None, "lora_dropout": 0.0, "inference_mode": False}
        config = LoraConfig(**{**config.to_dict(), **values})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT tells what it has corrected by itself
                if self._model is None:
                    self._model = PeftModel(self.base, config, adapter_name=_adapter(name))
                else:
                    self._model.add_adapter(_adapter(name), config)
        except ValueError as error:  # no such layers, or not of a kind that can have an adapter
            if folder is not None:
                raise ArtifactError(f"the adapter does not fit this base model: {error}", where=str(folder)) from None
            raise ModelError(f"the base model cannot have this adapter: {error}", where="lora.targets") from None
        self._layers = [m for m in self.base.modules() if isinstance(m, LoraLayer)]
        for layer in self._layers:
            if type(layer) is Linear:  # a quantised layer's forward stays PEFT's
                layer.forward = functools.partial(_forward, layer)  # type: ignore[method-assign]

    def _config(self, name: str) -> LoraConfig:
        """As PEFT resolved it on this base: ``all-linear`` has become the layers' names."""
        assert self._model is not None
        return cast(LoraConfig, self._model.peft_config[_adapter(name)])

    def _load(self, name: str, state: dict[str, Tensor], source: str) -> None:
        assert self._model is not None
        wanted = set(self._file_state(name))
        if wanted != set(state):
            missing, unknown = sorted(wanted - set(state)), sorted(set(state) - wanted)
            raise ArtifactError(
                "the adapter does not fit this base model",
                where=source,
                details=[f"missing: {key}" for key in missing[:3]] + [f"unknown: {key}" for key in unknown[:3]],
                advice="use the base model that it was trained on",
            )
        try:
            set_peft_model_state_dict(self._model, state, adapter_name=_adapter(name))
        except RuntimeError as error:  # shapes differ
            raise ArtifactError(f"the adapter does not fit this base model: {error}", where=source) from None

    def _restore(self) -> None:
        """Undo what PEFT does to ``requires_grad``, modes and the active adapter when one is added."""
        for parameter in self.base.parameters():
            parameter.requires_grad_(False)
        for role in self._roles.values():
            for parameter in role.parameters.values():
                parameter.requires_grad_(role.trainable)
        self.base.train(False)
        self._switch(None)

    def _switch(self, name: str | None) -> None:
        adapters = [] if name is None else [_adapter(self._roles[name].adapter)]
        for layer in self._layers:
            layer._disable_adapters = name is None
            layer._active_adapter = adapters.copy()
        self._active = name

    def _file_state(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors under PEFT's file names (without the adapter's own name)."""
        state = get_peft_model_state_dict(self._model, adapter_name=_adapter(name), save_embedding_layers=False)
        return cast(dict[str, Tensor], state)

    def _named(self, name: str) -> dict[str, Parameter]:
        mark = f".{_adapter(name)}."
        found = {k: p for k, p in self.base.named_parameters() if "lora_" in k and mark in f"{k}."}
        return {key.replace(mark, ".").removesuffix(f".{_adapter(name)}"): found[key] for key in sorted(found)}


def _forward(layer: Linear, x: Tensor) -> Tensor:
    """What a layer with at most one adapter at work makes of ``(…, in)``: ``W x + s B A x`` (arXiv:2106.09685, eq. 3).

    PEFT's own forward to the bit (where s is a power of two, else to rounding): the scaling is on the r numbers between
    A and B instead of on all outputs, and B's product is added where the base's is, not beside it.
    """
    active = [one for one in layer._active_adapter if one in layer.lora_A and not layer._disable_adapters]
    if any(one in layer.lora_variant or layer.lora_bias[one] for one in active):
        return Linear.forward(layer, x)
    result = cast(Tensor, layer.base_layer(x))
    if not active:
        return result
    down, up = (cast(nn.Linear, matrices[active[0]]) for matrices in (layer.lora_A, layer.lora_B))
    inner, weight = down(x) * layer.scaling[active[0]], up.weight.t()
    rows = result.view(-1, result.shape[-1]), inner.view(-1, inner.shape[-1])
    if torch.is_grad_enabled() or not result.dtype == inner.dtype == weight.dtype:  # autocast knows no product in place
        return torch.addmm(*rows, weight).view_as(result)
    rows[0].addmm_(rows[1], weight)
    return result


def _read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Configuration and tensors of a PEFT folder, without a score head."""
    try:
        config = LoraConfig.from_pretrained(str(folder))
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ArtifactError(f"not a LoRA adapter: {error}", where=str(folder)) from None
    if not isinstance(config, LoraConfig):
        raise ArtifactError(f"a LoRA adapter is wanted, found {config.peft_type}", where=str(folder))
    heads = tuple(f"base_model.model.{head}." for head in _HEADS)
    return config, {key: value for key, value in state.items() if not key.startswith(heads)}
