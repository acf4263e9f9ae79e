"""The policies of a run, ready to speak: one base in memory, with the adapters that were trained on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_pipeline.artifacts import Artifact, open_artifact
from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from rlhf_pipeline.roles import Roles

BASE, REFERENCE = "base", "sft"


class Policies:
    """Gives each policy in turn, loading no base twice in a row.

    Args:
        model: the run's base model.
        folders: finished policy artifacts by name; ``base`` needs none.
        device: ``cpu`` or ``cuda``.
        keep: keep every base that was loaded (fully fine-tuned policies are bases of their own), for quick changes
            between them; otherwise the one before is let go first.
    """

    def __init__(self, model: ModelConfig, folders: Mapping[str, Path], *, device: str, keep: bool = False) -> None:
        self._model, self._folders, self._device, self._keep = model, dict(folders), device, keep
        self._loaded: dict[Path | None, Roles] = {}
        self._added: set[str] = set()

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """The model as this policy, in evaluation mode, within the context."""
        folder = self._folders.get(name)
        roles = self._roles(self._root(name))
        adapter = folder / "adapter" if folder is not None and (folder / "adapter").is_dir() else None
        if adapter is not None and name not in self._added:
            roles.add(name, folder=adapter)
            self._added.add(name)
        with roles.use(name if adapter is not None else None) as model:
            yield model

    def close(self) -> None:
        """Let every model go."""
        self._loaded.clear()
        self._added.clear()
        _free_memory(self._device)

    def adapter_base(self) -> Path | None:
        """The model that adapters were trained on, where that is not the run's base."""
        from rlhf_pipeline.models import full_model

        return full_model(self._folders[REFERENCE]) if REFERENCE in self._folders else None

    def _root(self, name: str) -> Path | None:
        """The full model below a policy; null is the run's base. After full fine-tuning, SFT's model is the base."""
        from rlhf_pipeline.models import full_model

        if name == BASE:
            return None
        return full_model(self._folders[name]) or self.adapter_base()

    def _roles(self, root: Path | None) -> Roles:
        from rlhf_pipeline.models import load_causal_lm
        from rlhf_pipeline.roles import Roles

        if root not in self._loaded:
            if not self._keep:
                self.close()
            self._loaded[root] = Roles(load_causal_lm(self._model, device=self._device, folder=root))
        return self._loaded[root]


def base_below(policy: Artifact, own_sft: Artifact) -> Path | None:
    """The fully fine-tuned model that a finished policy's adapter was trained on; null where it is the run's base.

    Args:
        policy: of any run.
        own_sft: the SFT policy of this run, which may be the one.

    Raises:
        ArtifactError: the SFT policy that it started from is not there to tell, or damaged.
    """
    from rlhf_pipeline.models import full_model

    digest = policy.manifest.inputs.get("sft")
    if digest is None or full_model(policy.folder):  # an SFT policy itself, or one with all weights of its own
        return None
    run = policy.folder.resolve().parent
    run = run.parent if run.name == "replaced" else run
    for folder in (own_sft.folder, run / "sft", *sorted((run / "replaced").glob("sft-*"))):
        if _digest(folder) == digest:
            return full_model(open_artifact(folder).folder)
    raise ArtifactError(
        f"it started from an SFT policy that is not there (digest {digest[:12]}…), so it is not known which weights "
        "its adapter belongs on",
        where=str(policy.folder),
        advice=f"put that SFT policy back as {run / 'sft'}, or make the policy again: rlhf run {run}",
    )


def _digest(folder: Path) -> str | None:
    try:
        return open_artifact(folder, verify=False).digest
    except ArtifactError:
        return None


def _free_memory(device: str) -> None:
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
