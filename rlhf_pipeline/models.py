"""Loading and saving: the base, policies made on it, reward models, and who is who.

An artifact folder holds ``adapter/`` (PEFT format) or ``model/`` (full weights). Only safetensors files are read and
no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from rlhf_pipeline import processes
from rlhf_pipeline.config import LoraSection, ModelConfig
from rlhf_pipeline.divided_base import divide_layers
from rlhf_pipeline.errors import ArtifactError, ConfigError, ModelError
from rlhf_pipeline.model_source import LOADING_ERRORS, first_line, is_encoder, load_config, model_folder
from rlhf_pipeline.model_source import base_identity as base_identity
from rlhf_pipeline.trunk import top_linear_layers

SCORE_KEY = "base_model.model.score.weight"


def dtype_of(model: ModelConfig, device: str) -> torch.dtype:
    """Precision of the base's weights on a device."""
    if model.dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    return torch.bfloat16 if model.dtype == "bfloat16" else torch.float32


def load_causal_lm(
    model: ModelConfig, *, device: str, folder: Path | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The base, in evaluation mode.

    Args:
        model: which one, and its precision.
        device: ``cpu`` or ``cuda``.
        folder: a fully fine-tuned model that replaces the base.
        dtype: overrides the configured precision (full fine-tuning keeps float32 weights).

    Raises:
        ModelError: it cannot be loaded; the message says why.
    """
    return _load(AutoModelForCausalLM, model, device, folder, dtype)


def load_classifier(
    model: ModelConfig, *, device: str, folder: Path | None = None, dtype: torch.dtype | None = None, labels: int = 1
) -> PreTrainedModel:
    """The base's backbone with a linear head (hidden → labels), in float32 and zero unless ``folder`` has one.

    An encoder has the head that transformers gives it, drawn at random, all in float32: through a head of zeros, which
    grows by a learning rate in a step, its other weights would change the scores by next to nothing for long.
    """
    if is_encoder(load_config(model, encoders=True)):
        dtype = torch.float32
    classifier = _load(AutoModelForSequenceClassification, model, device, folder, dtype, num_labels=labels)
    if not is_encoder(classifier.config):
        classifier.score = _FloatHead(classifier.score)
    return classifier


def score_layer(classifier: Any, among: Iterable[nn.Module] | None = None) -> nn.Linear:
    """The last linear layer of a classifier's head, which gives the score; ``among`` these of its modules, or all."""
    labels = classifier.config.num_labels
    modules = classifier.modules() if among is None else among
    return [m for m in modules if isinstance(m, nn.Linear) and m.out_features == labels][-1]


def head_modules(classifier: PreTrainedModel) -> list[str]:
    """What an adapter on a classifier must train and save beside itself: PEFT knows only ``score`` and ``classifier``.

    Everything outside of the backbone (DistilBERT has a ``pre_classifier``, ModernBERT a ``head``), and the pooler of
    an encoder, which checkpoints often lack.
    """
    outside = [
        name
        for name, module in classifier.named_children()
        if name != classifier.base_model_prefix and any(True for _ in module.parameters())
    ]
    backbone = getattr(classifier, classifier.base_model_prefix)
    return outside + ["pooler"] * (getattr(backbone, "pooler", None) is not None)


class _FloatHead(nn.Linear):
    """A score head that stays float32 over a bfloat16 backbone: a bfloat16 one would lose small updates."""

    def __init__(self, head: Any) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device=head.weight.device)
        self.weight.data = head.weight.data.float()

    def forward(self, hidden: Tensor) -> Tensor:
        """``(…, hidden)`` of any precision to ``(…, labels)`` in float32."""
        return super().forward(hidden.to(self.weight.dtype))


def _load(
    auto_class: Any, model: ModelConfig, device: str, folder: Path | None, dtype: torch.dtype | None, **options: Any
) -> PreTrainedModel:
    load_config(model, encoders="num_labels" in options)
    path = folder or model_folder(model)
    where = f"model.name: {model.name}" if folder is None else str(folder)
    if model.quantization == "4bit":
        options |= _four_bit(device)
    try:
        with quiet():
            loaded, report = auto_class.from_pretrained(
                path,
                dtype=dtype or dtype_of(model, device),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
            if processes.divides_base():
                divide_layers(loaded, device)
            if "quantization_config" not in options:
                loaded = loaded.to(device)
    except torch.OutOfMemoryError:
        raise ModelError(
            "the model does not fit into the GPU's memory",
            where=where,
            advice="a smaller model, model.dtype: bfloat16, or model.quantization: 4bit",
        ) from None
    except LOADING_ERRORS as error:
        raise ModelError(
            f"the model cannot be loaded: {first_line(error)}",
            where=where,
            advice="its files may be cut off or belong to different models: fetch them again",
        ) from None
    head = tuple(f"{name}." for name in head_modules(loaded)) if "num_labels" in options else ()
    _require_all_weights(report, where, head)
    if head and report["missing_keys"] and not is_encoder(loaded.config):
        for parameter in score_layer(loaded).parameters():
            nn.init.zeros_(parameter)
    loaded.eval()
    return loaded


def _require_all_weights(report: Any, where: str, head: tuple[str, ...]) -> None:
    """Transformers only warns when it fills missing weights with random numbers, which only a new head may have."""
    absent = sorted(key for key in report["missing_keys"] if not any(f".{part}" in f".{key}" for part in head))
    wrong = sorted(str(key) for key in report["mismatched_keys"])
    if absent or wrong:
        raise ModelError(
            f"the weights do not fit the configuration: {len(absent)} missing, {len(wrong)} of another shape",
            where=where,
            details=[*absent[:5], *wrong[:5]],
            advice="the folder is incomplete or its config.json belongs to another model: fetch it again",
        )


def _four_bit(device: str) -> dict[str, Any]:
    import importlib.util

    if not device.startswith("cuda"):
        raise ModelError("4-bit weights need CUDA", where="model.quantization", advice="set it to none on this machine")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "4-bit weights need the package bitsandbytes",
            where="model.quantization",
            advice="pip install 'rlhf-pipeline[quantization]'",
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def full_model(folder: Path) -> Path | None:
    """The fully fine-tuned model of an artifact, the base of everything after it; null where there is an adapter."""
    return folder / "model" if (folder / "model").is_dir() else None


def load_policy(
    model: ModelConfig, folder: Path | None, *, device: str, base: Path | None = None, trainable: bool = False
) -> PreTrainedModel | PeftModel:
    """A policy from its artifact folder; the bare base when there is none.

    Args:
        model: the run's base.
        folder: a policy artifact with ``adapter/`` or ``model/``.
        device: ``cpu`` or ``cuda``.
        base: a fully fine-tuned model that the adapter was trained on, where that is not the run's base.
        trainable: leave the adapter (named ``default``) trainable.
    """
    if folder is None:
        return load_causal_lm(model, device=device, folder=base)
    if (full := full_model(folder)) is not None:
        return load_causal_lm(model, device=device, folder=full)
    return with_adapter(load_causal_lm(model, device=device, folder=base), folder / "adapter", trainable)


def load_merged(model: ModelConfig, folder: Path, *, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A policy as one set of weights: the adapter, if it is one, is merged (in float32 without loss of precision)."""
    if (full := full_model(folder)) is not None:
        return load_causal_lm(model, device=device, folder=full, dtype=dtype)
    adapted = with_adapter(load_causal_lm(model, device=device, dtype=dtype), folder / "adapter", trainable=False)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged.requires_grad_(True)


def with_adapter(loaded: PreTrainedModel, folder: Path, trainable: bool) -> PeftModel:
    """A model with the adapter of a folder, in evaluation mode.

    Raises:
        ArtifactError: there is none, or it cannot be loaded.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise ArtifactError("neither adapter/ nor model/ is in the folder", where=str(folder.parent))
    try:
        with quiet():
            peft_model = PeftModel.from_pretrained(loaded, folder, is_trainable=trainable, use_safetensors=True)
    except LOADING_ERRORS as error:
        raise ArtifactError(f"the adapter cannot be loaded: {first_line(error)}", where=str(folder)) from None
    peft_model.eval()
    return peft_model


def read_score_head(adapter_folder: Path) -> Tensor:
    """The score head of a reward adapter, ``(labels, hidden)`` in float32; a reward model has one label.

    Raises:
        ArtifactError: the adapter has none, so it is no reward model.
    """
    path = adapter_folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            if SCORE_KEY in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                return file.get_tensor(SCORE_KEY).float()
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"the reward adapter cannot be read: {first_line(error)}", where=str(path)) from None
    raise ArtifactError(
        f"the adapter has no score head ({SCORE_KEY}), so it is no reward model",
        where=str(path),
        advice="train it again with this program: rlhf run CONFIG reward --again",
    )


def lora_config(lora: LoraSection, loaded: PreTrainedModel, *, task: str) -> LoraConfig:
    """PEFT's configuration of a new adapter on this model; ``task`` is ``CAUSAL_LM`` or ``SEQ_CLS``.

    Without the task type PEFT would leave a score head random, untrained and unsaved, and say nothing. A decoder's head
    it knows by the type, of an encoder's only a part.
    """
    head = head_modules(loaded) if task == "SEQ_CLS" and is_encoder(loaded.config) else None
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    if lora.top_layers is not None:
        targets = top_linear_layers(loaded, lora.top_layers, targets)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type=task,
        modules_to_save=head,
    )


def add_adapter(loaded: PreTrainedModel, lora: LoraSection, *, task: str) -> PeftModel:
    """A new trainable adapter named ``default``, which changes nothing yet; with its head for ``SEQ_CLS``."""
    require_targets(loaded, lora)
    with quiet(), adapter_refusals():
        return _peft(loaded, lora_config(lora, loaded, task=task))


@contextlib.contextmanager
def adapter_refusals() -> Iterator[None]:
    """Around making an adapter: say what PEFT refuses in our words.

    Raises:
        ConfigError: the adapter is to have dropout on the experts of a mixture, which are one tensor.
    """
    try:
        yield
    except ValueError as error:
        if "lora_dropout" not in str(error):
            raise
        raise ConfigError(
            "this model's experts are one tensor, on which an adapter can have no dropout",
            where="lora.dropout",
            advice="lora.dropout: 0, or name the layers in lora.targets, e.g. [q_proj, k_proj, v_proj, o_proj]",
        ) from None


def require_targets(loaded: PreTrainedModel, lora: LoraSection) -> None:
    """See that the model has every layer that is to carry an adapter: PEFT is content with one of them.

    Raises:
        ConfigError: naming those it has not, and those that it has.
    """
    if isinstance(lora.targets, str):
        return
    linear = [name for name, module in loaded.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    absent = [t for t in lora.targets if not any(name == t or name.endswith(f".{t}") for name in linear)]
    if absent or not lora.targets:
        there = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))
        raise ConfigError(
            f"the model has no linear layer {', '.join(absent) or 'to carry an adapter, as none is named'}",
            where="lora.targets",
            advice=f"there are: {there}; or targets: all-linear",
        )


def _peft(loaded: PreTrainedModel, config: LoraConfig) -> PeftModel:
    made = get_peft_model(loaded, config)  # by its task type: only SEQ_CLS trains and saves the score head
    assert isinstance(made, PeftModel)
    return made


def classifier_from_policy(classifier: PreTrainedModel, adapter_folder: Path) -> PeftModel:
    """A classifier with a trainable copy of a policy's adapter: same shape, same weights, and its own score head.

    Raises:
        ArtifactError: the adapter does not fit the classifier.
    """
    where = str(adapter_folder)
    try:
        config = LoraConfig.from_pretrained(str(adapter_folder))
        config.task_type, config.inference_mode, config.modules_to_save = "SEQ_CLS", False, None
        weights = load_peft_weights(str(adapter_folder), device="cpu")
        weights[SCORE_KEY] = cast(Any, classifier.score).weight.detach().clone()  # PEFT wants every module it saves
        with quiet():
            peft_model = _peft(classifier, config)
            report: Any = set_peft_model_state_dict(peft_model, weights)
    except LOADING_ERRORS as error:
        raise ArtifactError(f"the adapter cannot be loaded: {first_line(error)}", where=where) from None
    absent = [key for key in report.missing_keys if "lora_" in key]
    if absent or report.unexpected_keys:
        names = [*absent, *report.unexpected_keys]
        raise ArtifactError("the adapter does not fit the model", where=where, details=names[:5])
    return peft_model


def save_adapter(peft_model: PeftModel, folder: Path, *, base_name: str, adapter: str = "default") -> None:
    """Write one adapter (with its score head, if it has one) as ``folder``; others stay out.

    ``base_name`` is what the configuration calls the base: PEFT would write the local path, which breaks elsewhere.
    """
    peft_model.peft_config[adapter].base_model_name_or_path = base_name
    # Without save_embedding_layers=False PEFT may ask the hub for the base's vocabulary size.
    peft_model.save_pretrained(str(folder), selected_adapters=[adapter], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def save_full(loaded: PreTrainedModel, folder: Path) -> None:
    """Write all weights as a model folder of its own."""
    with quiet():
        loaded.save_pretrained(folder)


def adapter_rank(peft_model: Any) -> int:
    """Rank of the adapter named ``default``."""
    return int(peft_model.peft_config["default"].r)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars, tables and warnings: what matters in them is checked and raised."""
    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
