"""What would fail, and the memory it will need, said before any weights are loaded.

rlhf doctor CONFIG
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_pipeline.errors import PipelineError
from stages import BY_NAME
from stages.job import say
from stages.ppo import SCALE_RESPONSES

if TYPE_CHECKING:
    from rlhf_pipeline.config import LoraSection
    from rlhf_pipeline.memory import PpoLoad, Shape
    from stages.settings import Settings

_REMARKS = {
    "activations": "  of learning",
    "logits": "  of learning",
    "KV cache": "  of sampling",
    "sampling": "  beside the cache",
    "sum": "  with the larger of learning and sampling",
}
Finding = tuple[str, str]  # "ok", "note" or "fails", and the sentence


def check(settings: Settings) -> int:
    """Print every finding; 0 when nothing would fail, else 1."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _folder,
        _packages,
        _data,
        _model,
        _memory,
        _launch,
        _judging,
        _rules,
    )
    failed = 0
    for one in checks:
        try:
            for kind, sentence in one(settings):
                failed += kind == "fails"
                say(f"{kind:5} {sentence}")
        except PipelineError as error:
            failed += 1
            say(f"fails {error}")
    say(f"\n{failed} of these would stop the run" if failed else "\nnothing found that would stop the run")
    return 1 if failed else 0


def _folder(settings: Settings) -> Iterator[Finding]:
    folder = Path(settings.run.folder).absolute()
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        yield "fails", f"run.folder: {parent} cannot be written"
        return
    free = shutil.disk_usage(parent).free
    yield ("ok" if free > 2**30 else "fails"), f"run.folder: {folder}, {free / 2**30:.1f} GiB free on its disk"


def _packages(settings: Settings) -> Iterator[Finding]:
    wanted = {"psycopg": "postgres"} if (settings.collect.store or "").startswith("postgresql") else {}
    if settings.run.tracking != "none":
        wanted[settings.run.tracking] = "tracking"
    if settings.model.quantization != "none":
        wanted["bitsandbytes"] = "quantization"
    for package, extra in wanted.items():
        if importlib.util.find_spec(package) is None:
            yield (
                "fails",
                f"the package {package} is missing: pip install 'rlhf-pipeline[{extra}]' (or {package} alone)",
            )


def _data(settings: Settings) -> Iterator[Finding]:
    from rlhf_pipeline.data import read_demonstrations, read_preferences, read_prompts

    data, seed = settings.data, settings.run.seed
    readers: list[Callable[[], Any]] = []
    if (demonstrations := data.demonstration_source()) is None:
        yield "fails", "data.demonstrations: sft has nothing to learn from"
    else:
        readers.append(lambda: read_demonstrations(demonstrations, system=data.system, seed=seed))
    if (prompts := data.prompt_source()) is not None:
        readers.append(lambda: read_prompts(prompts, system=data.system, seed=seed))
    if (preferences := data.preferences) is not None:
        readers.append(lambda: read_preferences(preferences, system=data.system))
    wrong: set[str] = set()
    for read in readers:
        try:
            yield "ok", read().summary()
        except PipelineError as error:
            if str(error) not in wrong:  # one file may stand for two or three of them
                yield "fails", str(error)
            wrong.add(str(error))
    yield from _unused_judgements(settings)


def _unused_judgements(settings: Settings) -> Iterator[Finding]:
    data, judges = settings.data, settings.collect.judges
    if data.preferences is None or judges == "imported" or "collect" not in settings.run.stages:
        return
    taken = {
        "demonstrations": data.demonstration_source() is data.preferences,
        "prompts": data.prompt_source() is data.preferences,
    }
    use = " and ".join(name for name, is_taken in taken.items() if is_taken)
    yield (
        "note",
        f"data.preferences: read {f'for {use} only' if use else 'by no stage'}, not as judgements: collect.judges is "
        f"{judges}; imported would learn from them",
    )


def _model(settings: Settings) -> Iterator[Finding]:
    from rlhf_pipeline.model_source import load_config
    from rlhf_pipeline.records import Message
    from rlhf_pipeline.tokenization import load_tokenizer

    config = load_config(settings.model)
    chat = load_tokenizer(settings.model)
    question = (Message("user", "How are you?"),)
    shown = chat.tokenizer.decode(chat.encode_prompt(question) + chat.encode_response(question, "Well."))
    yield "ok", f"model: {settings.model.name} ({config.model_type}); a turn is rendered as {shown!r}"
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    lengths = {name: getattr(settings, name).max_length for name in ("sft", "reward", "dpo")}
    for name, length in lengths.items():
        if name in settings.run.stages and limit and length > limit:
            yield "note", f"{name}.max_length is {length}, the model was made for {limit} tokens"


def _memory(settings: Settings) -> Iterator[Finding]:
    from rlhf_pipeline import memory
    from rlhf_pipeline.memory import GIB

    shape, width, available = _shape(settings), _width(settings), _available(settings)
    base = memory.base_bytes(shape, width=width, four_bit=settings.model.quantization == "4bit")
    weights = f"{shape.parameters / 1e6:,.1f}M weights"
    yield "note", f"memory: base {weights}, {base / GIB:.2f} GiB; {available / GIB:.1f} GiB there"
    for name in ("sft", "reward", "dpo"):
        if name not in settings.run.stages:
            continue
        section = getattr(settings, name)
        sequences = section.micro_batch_size or max(1, section.batch_size // settings.run.launch.processes)
        tokens = sequences * section.max_length * (1 if name == "sft" else 2)
        need = memory.activation_bytes(shape, tokens=tokens, width=width, checkpointing=section.gradient_checkpointing)
        if section.lora is None:
            need += memory.full_training_bytes(shape) + (base if name == "dpo" else 0)
        else:
            need += base + memory.adapters_bytes(shape, rank=section.lora.rank, trained=1, frozen=int(name == "dpo"))
        yield _fits(settings, name, need, available)
    for name, need in _sampling_needs(settings, shape, base, width):
        yield _fits(settings, name, need, available)
    if "ppo" in settings.run.stages:
        yield _ppo_finding(settings, shape, base, width, available)


def _launch(settings: Settings) -> Iterator[Finding]:
    """What ``run.launch`` will do, and what one process holds of the base."""
    from rlhf_pipeline import memory

    launch = settings.run.launch
    if launch.processes == 1:
        return
    shape, width = _shape(settings), _width(settings)
    whole = memory.base_bytes(shape, width=width, four_bit=settings.model.quantization == "4bit")
    divided = (shape.parameters - shape.embedding_parameters) * width if launch.divides_base else 0
    held = (whole - divided * (1 - 1 / launch.processes)) / memory.GIB
    part = f" ({whole / memory.GIB:.2f} in sft, reward and dpo)" if divided else ""
    names = ", ".join(s.name for s in BY_NAME.values() if s.trains and s.name in settings.run.stages)
    yield (
        "note",
        f"launch: {names} in {launch.processes} processes ({launch.strategy}), on CUDA on a device each; one holds "
        f"{held:.2f} of the base's {whole / memory.GIB:.2f} GiB{part}, beside what its stage needs; on a CPU they "
        "share the memory",
    )


def _sampling_needs(settings: Settings, shape: Shape, base: float, width: int) -> Iterator[tuple[str, float]]:
    """Of the stages that only sample, for prompts as long as PPO takes them."""
    from rlhf_pipeline import memory

    for name in ("sample", "evaluate"):
        if name not in settings.run.stages:
            continue
        section = getattr(settings, name)
        frozen, prompt = 1 if name == "sample" else 3, settings.ppo.max_prompt_length
        rows, new = section.batch_size, section.max_new_tokens
        need = base + memory.adapters_bytes(shape, rank=_lora(settings).rank, trained=0, frozen=frozen)
        yield name, need + memory.generation_bytes(shape, rows=rows, prompt=prompt, new=new, width=width)


def _ppo_parts(settings: Settings, shape: Shape, base: float, width: int) -> dict[str, float]:
    """What PPO holds, for whichever prompts need more: the longest allowed, or so short that there are many at once."""
    from rlhf_pipeline import memory

    four_bit = settings.model.quantization == "4bit"
    loads = [_ppo_load(settings, shape, prompt) for prompt in (settings.ppo.max_prompt_length, 1)]
    parts = max((memory.ppo_bytes(shape, one, width=width, four_bit=four_bit) for one in loads), key=lambda p: p["sum"])
    if not _on_gpu(settings):
        parts = {"libraries": memory.LIBRARIES, **parts, "sum": parts["sum"] + memory.LIBRARIES}
    if settings.reward.lora is None:  # the reward model is a model of its own
        parts = {**parts, "base": 2 * parts["base"], "sum": parts["sum"] + base}
    return parts


def _ppo_load(settings: Settings, shape: Shape, prompt: int) -> PpoLoad:
    """From the settings, with prompts of so many tokens."""
    from rlhf_pipeline.memory import PpoLoad

    ppo, lora = settings.ppo, _lora(settings)
    value_adapter = ppo.estimator == "gae" and ppo.critic.on == "adapter"
    minibatch = -(-ppo.rollout_batch // ppo.num_minibatches)
    return PpoLoad(
        rank=lora.rank,
        layers=min(lora.top_layers or shape.layers, shape.layers),
        trained=2 if value_adapter else 1,
        frozen=1 if settings.reward.lora is None else 2 + settings.reward.rules.learn,
        prompt=prompt,
        new=ppo.max_new_tokens,
        sampled_rows=min(ppo.generation_batch, max(ppo.rollout_batch, SCALE_RESPONSES)),
        learned_rows=min(minibatch, max(1, ppo.micro_batch_tokens // (prompt + ppo.max_new_tokens))),
        kept_rows=ppo.rollout_batch,
        checkpointing=ppo.gradient_checkpointing,
    )


def _lora(settings: Settings) -> LoraSection:
    """The shape of PPO's adapters: SFT's where it has one."""
    return settings.sft.lora or settings.ppo.lora


def _ppo_finding(settings: Settings, shape: Shape, base: float, width: int, available: float) -> Finding:
    """PPO's need, with the arithmetic a line each."""
    from rlhf_pipeline.memory import GIB

    parts = _ppo_parts(settings, shape, base, width)
    kind, sentence = _fits(settings, "ppo", parts["sum"], available)
    for name, need in parts.items():
        sentence += f"\n        {name:12}{need / GIB:8.2f} GiB{_REMARKS.get(name, '')}"
    return kind, sentence


def _fits(settings: Settings, name: str, need: float, available: float) -> Finding:
    from rlhf_pipeline.memory import GIB

    sentence = f"memory: {name} at most about {need / GIB:.2f} GiB (every prompt and row as long as is allowed)"
    if need <= available:
        return "ok", sentence
    return "note", f"{sentence}, more than is there; {settings.memory_advice(BY_NAME[name])}"


def _shape(settings: Settings) -> Shape:
    """Build the model without memory for its weights, and measure it."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlhf_pipeline.memory import Shape
    from rlhf_pipeline.model_source import load_config

    config = load_config(settings.model)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    text = config.get_text_config()
    embeddings = {id(p): p.numel() for p in (model.get_input_embeddings().weight, head.weight)}
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        embedding_parameters=sum(embeddings.values()),
        linear_shapes=tuple((m.in_features, m.out_features) for m in linear),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        key_value=(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads),
    )


def _on_gpu(settings: Settings) -> bool:
    """Where the run will be: the GPU that it names, even where there is none now, or that it finds."""
    import torch

    return settings.run.device == "cuda" or (settings.run.device == "auto" and torch.cuda.is_available())


def _width(settings: Settings) -> int:
    if settings.model.dtype == "auto":
        return 2 if _on_gpu(settings) else 4
    return 2 if settings.model.dtype == "bfloat16" else 4


def _available(settings: Settings) -> float:
    import torch

    if _on_gpu(settings) and torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


def _judging(settings: Settings) -> Iterator[Finding]:
    if "collect" not in settings.run.stages:
        return
    from rlhf_pipeline.store import JudgementStore
    from stages.collect import store_url

    url = store_url(settings.collect, Path(settings.run.folder))
    if "://" not in url:
        yield "ok", f"judgements: kept in {url}"
        return
    JudgementStore.open(url).close()
    yield "ok", "judgements: the PostgreSQL store answers"


def _rules(settings: Settings) -> Iterator[Finding]:
    """Whether what is to be learnt of rules is asked, and used."""
    asked, judges, learns = settings.collect.form.rules, settings.collect.judges, settings.reward.rules.learn
    apart = "ppo" in settings.run.stages and any(one.source == "rules" for one in settings.ppo.rewards)
    if "reward" not in settings.run.stages:
        return
    if learns and (not asked or judges == "imported"):
        yield (
            "fails",
            (
                "reward.rules.learn is true, but nobody is asked about rules: "
                + ("collect.judges is imported" if asked else "collect.form.rules is empty")
            ),
        )
    elif learns:
        weight = settings.reward.rules.weight
        yield "ok", f"rules: {len(asked)} are learnt; breaking all costs {weight:g} standard deviations of the score"
    elif asked and judges != "imported":
        yield "note", f"rules: {len(asked)} are asked, and no model learns them (reward.rules.learn: true would)"
    if apart and not learns:
        yield "fails", "ppo.rewards names the source rules, but reward.rules.learn is false"
