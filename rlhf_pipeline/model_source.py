"""Where a base model comes from (the package, a folder, the hub), what it is, and the digest that identifies it."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.errors import ModelError

_DOWNLOADED = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)
"""What the libraries raise for a file that is broken or belongs to something else."""


def model_folder(model: ModelConfig) -> Path:
    """The local folder of the base: the pocket model's, the user's, or the hub's snapshot (downloaded when missing).

    Raises:
        ModelError: no such folder or hub id, or no safetensors weights in it.
    """
    return _find(model.name, model.revision)


@functools.lru_cache(maxsize=8)
def _find(name: str, revision: str | None) -> Path:
    if name == "pocket":
        from rlhf_pipeline import pocket

        folder = Path(pocket.FOLDER)
    elif (local := Path(name).expanduser()).is_dir():
        folder = local
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            "there is no such folder",
            where=f"model.name: {name}",
            advice="give the folder of a model, a hub id such as Qwen/Qwen3-0.6B, or pocket",
        )
    else:
        folder = _download(name, revision)
    _require_weights(folder, name)
    return folder


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"model.name: {name}"
    try:
        path = snapshot_download(name, revision=revision, allow_patterns=_DOWNLOADED, ignore_patterns=["*/*"])
    except GatedRepoError:
        raise ModelError(
            "the hub shows this model only to those who accepted its terms",
            where=where,
            advice=f"accept them at https://huggingface.co/{name}, then: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"the hub has no revision {revision!r} of it", where=where, advice="check model.revision, or leave it out"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            "neither a folder here nor a model on the hub",
            where=where,
            advice="check the spelling; a private model needs: hf auth login",
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"neither a folder here nor in the hub's cache, and the hub cannot be reached ({first_line(error)})",
            where=where,
            advice="download it where there is a network (hf download NAME) and give the folder, or use pocket",
        ) from None
    return Path(path)


def _require_weights(folder: Path, name: str) -> None:
    where = f"model.name: {name}"
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                "the folder holds an adapter, not a model", where=where, advice="give the model that it was trained on"
            )
        raise ModelError(
            "the folder has no config.json, so it is no model",
            where=where,
            advice="give the folder that holds config.json and model.safetensors",
        )
    if not weight_files(folder):
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickles:
            raise ModelError(
                f"its weights are pickle files ({', '.join(pickles[:3])}), which can run any code when read",
                where=where,
                advice="take a revision with safetensors, or convert them: huggingface.co/spaces/safetensors/convert",
            )
        raise ModelError("the folder has no weights (model.safetensors)", where=where, advice="fetch it again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, by name."""
    return sorted(folder.glob("model*.safetensors"))


def load_config(model: ModelConfig, folder: Path | None = None, *, encoders: bool = False) -> PretrainedConfig:
    """The architecture's configuration, known to be that of a causal language model (or of an encoder, if allowed).

    Raises:
        ModelError: unreadable, of an architecture that is not known here, or not a causal language model.
    """
    where = f"model.name: {model.name}"
    folder = folder or model_folder(model)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"its config.json cannot be used: {first_line(error)}",
            where=where,
            advice="take a model that the installed transformers knows, or fetch the folder again",
        ) from None
    if encoders and is_encoder(config):
        return config
    if not _is_causal(config):
        named = list(config.architectures or [])
        raise ModelError(
            f"not a causal language model: {', '.join(named) or config.model_type}",
            where=where,
            advice="take a decoder-only model, e.g. of the Llama, Qwen3, Mistral, Gemma or GPT-2 family",
        )
    return config


def _is_causal(config: PretrainedConfig) -> bool:
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    named = set(config.architectures or [])
    causal = {known} if isinstance(known, str) else set(known or ())
    # A decoder that classifies is named for that, as BERT is; but nobody fills BERT's gaps with a decoder.
    one_way = config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(causal) and not config.is_encoder_decoder and (not named or one_way or bool(causal & named))


def is_encoder(config: PretrainedConfig) -> bool:
    """Whether it is a model such as BERT: it reads a text from both sides and can have a head that classifies it."""
    can_classify = config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    return can_classify and not config.is_encoder_decoder and not _is_causal(config)


def base_identity(model: ModelConfig) -> dict[str, Any]:
    """``{"name", "revision", "digest"}``; the digest covers the configuration and every weight file."""
    folder = model_folder(model)
    listing = [f"{p.name} {_digest_of(p)}" for p in [folder / "config.json", *weight_files(folder)]]
    return {
        "name": model.name,
        "revision": model.revision,
        "digest": hashlib.sha256("\n".join(listing).encode()).hexdigest(),
    }


def _digest_of(path: Path) -> str:
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name  # the hub's cache names a large file by its sha256
    state = blob.stat()
    return _hash_file(blob, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _hash_file(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of a library's message, for a message of ours."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
