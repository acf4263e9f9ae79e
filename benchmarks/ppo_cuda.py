"""PPO on one CUDA GPU with models of 1 and 8 billion random weights: time by phase, tokens a second, peak memory.

    python benchmarks/ppo_cuda.py --out benchmarks/ppo_cuda.md

The loop is the stage's own (``stages.ppo.run``); only the base is made on the GPU instead of being read. Runs of 8
billion weights may take no more memory than a GPU of 24 GB would leave them, which the allocator is told to enforce.
A few checks of the engine on this very GPU come first. ``--sizes tiny`` tries everything on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.random_models import SHAPES, make_base, write_adapter, write_model

WARM_UP, COUNTED = 1, 1
LIMIT = 24e9 - 2**30
"""Bytes for our tensors on a GPU of 24 GB, of which the driver and the CUDA context take some."""
BASES = ("bfloat16", "nf4")
PROMPT, NEW = 384, 128
PPO = {
    "iterations": WARM_UP + COUNTED,
    "rollout_batch": 64,
    "generation_batch": 64,
    "num_ppo_epochs": 2,
    "num_minibatches": 2,
    "max_prompt_length": PROMPT,
    "max_new_tokens": NEW,
    "micro_batch_tokens": 8192,
    "gradient_checkpointing": True,
}
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {  # what differs from PPO
    ("tiny", "bfloat16"): {"rollout_batch": 4, "max_new_tokens": 8},
    ("8b", "bfloat16"): {"rollout_batch": 32, "generation_batch": 16, "micro_batch_tokens": 2048},
    ("8b", "nf4"): {"micro_batch_tokens": 4096},
}
HEADER = """# PPO on one GPU

`python benchmarks/ppo_cuda.py {arguments}`

{date}, {gpu}, PyTorch {torch}, transformers {transformers}. Llama shapes with random weights; one frozen base with
the roles policy, reference, reward and value as LoRA adapters of rank 16; prompts of {prompt} tokens, {new} sampled
tokens each, {epochs} epochs of {minibatches} minibatches, layers recomputed in the backward pass. Seconds are of the
iteration after the first. `ratio check` is how far the first probability ratio of an iteration is from 1.
`share` is the arithmetic of the model in scoring and learning (recomputation not counted) over what the GPU's bfloat16
matrix product of 8192 does in the same time: {rate:.0f} TFLOP/s.{limit}
"""
PHASES = ("rollout", "score", "train")
COLUMNS = (
    "model", "base", "responses", "s an iteration", "rollout", "score", "train", "sampled tokens/s", "trained tokens/s",
    "share", "peak allocated GB", "reserved GB", "ratio check",
)  # fmt: skip


def main() -> None:
    """Check, run each model in a process of its own, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["8b", "1b"], choices=list(SHAPES))
    parser.add_argument("--bases", nargs="+", default=["nf4", "bfloat16"], choices=BASES)
    parser.add_argument(
        "--seconds", type=float, default=330, help="no model is begun after this, and none runs on past it"
    )
    parser.add_argument("--one", nargs=2, metavar=("SIZE", "BASE"), help="only this one; prints its numbers as JSON")
    parser.add_argument("--only-checks", action="store_true", help="only the checks; prints them as JSON")
    parser.add_argument("--out", type=Path, help="where the table goes; the terminal when left out")
    arguments = parser.parse_args()
    if arguments.one:
        print("RESULT " + json.dumps(run_one(*arguments.one)))
        return
    if arguments.only_checks:
        print("RESULT " + json.dumps({"checks": checks(device()), **machine()}))
        return
    end = time.monotonic() + arguments.seconds
    found = child(["--only-checks"], end)
    rows: list[dict[str, Any]] = []
    text = table(found, rows)
    for size, base in ((size, base) for size in arguments.sizes for base in arguments.bases):
        rows.append({"size": size, "base": base, **child(["--one", size, base], end)})
        text = table(found, rows)
        if arguments.out:
            arguments.out.write_text(text, encoding="utf-8")
    print(text)


def child(arguments: list[str], end: float) -> dict[str, Any]:
    """What this program prints with these arguments, in a process of its own; what went wrong under ``failed``."""
    print(f"{' '.join(arguments)} …", file=sys.stderr, flush=True)
    left = end - time.monotonic()
    if left < 20:
        return {"failed": "no time was left"}
    try:
        ended = subprocess.run(
            [sys.executable, __file__, *arguments],
            capture_output=True,
            text=True,
            timeout=left,
        )
    except subprocess.TimeoutExpired:
        return {"failed": "no time was left"}
    print(ended.stdout[-4000:], ended.stderr[-4000:], file=sys.stderr, flush=True)
    result = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    if ended.returncode or not result:
        return {"failed": (ended.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return json.loads(result[-1].removeprefix("RESULT "))


def device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> dict[str, Any]:
    """What this runs on, and the rate of a large matrix product in TFLOP/s."""
    import transformers

    name = torch.cuda.get_device_name() if device() == "cuda" else "CPU"
    return {
        "gpu": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rate": matrix_rate() / 1e12,
    }


def matrix_rate(size: int = 8192, times: int = 20) -> float:
    """FLOP/s of bfloat16 products of random square matrices."""
    where = device()
    size = size if where == "cuda" else 512
    left, right = (torch.randn(size, size, device=where, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    synchronise()
    started = time.perf_counter()
    for _ in range(times):
        left @ right
    synchronise()
    return 2 * size**3 * times / (time.perf_counter() - started)


def synchronise() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_one(size: str, base: str) -> dict[str, Any]:
    """PPO by the stage itself on one model; its seconds, tokens, peak memory and arithmetic."""
    from rlhf_pipeline import models
    from stages import ppo, settings
    from stages.job import Job

    where = device()
    if size == "8b" and where == "cuda":
        torch.cuda.set_per_process_memory_fraction(LIMIT / torch.cuda.get_device_properties(0).total_memory)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        chosen = settings.load(write_run(folder, size, base))
        started = time.monotonic()
        policy_base = make_base(size, base, where)
        synchronise()
        base_bytes = allocated()
        print(f"the base is made in {time.monotonic() - started:.1f} s", flush=True)
        for name, with_head in (("sft", False), ("reward", True)):
            write_adapter(folder / name / "adapter", policy_base, with_head)
        models.load_causal_lm = lambda *_, **__: policy_base
        inputs: Any = {name: SimpleNamespace(folder=folder / name) for name in ("sft", "reward")}
        (folder / "ppo").mkdir()
        ppo.run(Job(chosen.ppo, chosen, folder / "ppo", inputs, folder, 0, where))
        lines = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    phases = {phase: statistics.median(line[f"seconds/{phase}"] for line in lines[WARM_UP:]) for phase in PHASES}
    peaks = {phase: max(line[f"memory/{phase}"] for line in lines) * 2**30 for phase in PHASES}
    on_gpu = where == "cuda"
    return {
        "phases": phases,
        "responses": chosen.ppo.rollout_batch,
        "length": lines[-1]["response/length"],
        "flop": arithmetic(policy_base, chosen.ppo),
        "ratio_check": max(line["ppo/ratio_check"] for line in lines),
        "allocated": max(peaks.values()) if on_gpu else 0,
        "allocated_by_phase": peaks,
        "allocated_base": base_bytes,
        "reserved": torch.cuda.max_memory_reserved() if on_gpu else 0,
    }


def allocated() -> int:
    """Bytes that tensors take on the GPU now."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def write_run(folder: Path, size: str, base: str) -> Path:
    """Tokenizer, prompts and configuration of a run on this model, whose file of weights is empty."""
    model = folder / "model"
    write_model(model, size)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(8, 8192, (256, PROMPT - 2), generator=generator).tolist()  # the template adds two tokens
    rows = ({"prompt": " ".join(f"w{i}" for i in row), "completion": "w9"} for row in words)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "run": {"folder": str(folder / "run"), "stages": ["sft", "collect", "reward", "ppo"]},
        "model": {"name": str(model), "dtype": "bfloat16", "quantization": "4bit" if base == "nf4" else "none"},
        "data": {"demonstrations": {"path": str(folder / "prompts.jsonl")}, "held_out": 8},
        "collect": {"judges": "imported"},
        "ppo": {**PPO, **SETTINGS.get((size, base), {})},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder / "run.yaml"


def arithmetic(model: Any, config: Any) -> dict[str, float]:
    """FLOP of one iteration by phase: 2 a weight and token forward, 2 more backward (frozen weights have no gradient).

    Policy and reference need the head, at response tokens only; attention's own products and the adapters are left out.
    """
    text = model.config
    kv = text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    layer = 2 * text.hidden_size * (text.hidden_size + kv) + 3 * text.hidden_size * text.intermediate_size
    body, head = layer * text.num_hidden_layers, text.hidden_size * text.vocab_size
    sampled = config.rollout_batch * config.max_new_tokens
    tokens = config.rollout_batch * PROMPT + sampled
    one_pass = {"with_head": 2 * (body * tokens + head * sampled), "without": 2 * body * tokens}
    return {
        "score": 2 * one_pass["with_head"] + 2 * one_pass["without"],
        "train": config.num_ppo_epochs * 2 * (one_pass["with_head"] + one_pass["without"]),
    }


def checks(where: str) -> dict[str, str]:
    """What must hold on this device, on a small model in bfloat16: each check with what was found."""
    from rlhf_pipeline.config import LoraSection
    from rlhf_pipeline.logprobs import pad_sequences, response_logprobs
    from rlhf_pipeline.roles import Roles

    roles = Roles(make_base("tiny", "bfloat16", where))
    roles.add("reference", lora=LoraSection())
    roles.add("policy", copy_of="reference", trainable=True)
    roles.add("reward", lora=LoraSection())
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(8, 8192, (n,), generator=generator).tolist() for n in (40, 24, 56, 33)]
    prompts, responses = [t[:10] for t in texts], [t[10:] for t in texts]

    def logprobs(role: str, rows: list[int]) -> torch.Tensor:
        with roles.use(role) as model:
            batch = pad_sequences([prompts[i] for i in rows], [responses[i] for i in rows], pad_id=0, device=where)
            return response_logprobs(model, batch)

    with torch.no_grad():
        together = logprobs("policy", [0, 1, 2, 3])
        alone = [logprobs("policy", [i])[0] for i in range(4)]
    padding = max((together[i, : len(a)] - a).abs().max().item() for i, a in enumerate(alone))
    same = (logprobs("policy", [0, 1, 2, 3]) - together).abs().max().item()
    before = {name: roles.fingerprint(name) for name in (None, "reference", "reward", "policy")}
    optimizer = torch.optim.AdamW(roles.parameters("policy"), lr=1e-2)
    (-logprobs("policy", [0, 1, 2, 3]).sum()).backward()
    with_gradient = all(p.grad is not None for p in roles.parameters("policy"))
    optimizer.step()
    moved = {name for name, print_ in before.items() if roles.fingerprint(name) != print_}
    return {
        "log-probabilities of a row alone and among others differ by at most": verdict(padding, lambda v: v <= 5e-2),
        "a training forward differs from the scoring forward by at most": verdict(same, lambda v: v <= 1e-4),
        "a step of the policy gives all its tensors a gradient": verdict(with_gradient, bool),
        "a step of the policy changes the policy alone": verdict(moved == {"policy"}, bool),
    }


def verdict(value: Any, holds: Callable[[Any], bool]) -> str:
    """The value, and whether it is as it must be."""
    shown = f"{value:.2g}" if isinstance(value, float) else "yes" if value else "no"
    return f"{shown} ({'holds' if holds(value) else 'FAILS'})"


def table(found: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown: the checks, then a line for each model."""
    limited = any(row["size"] == "8b" for row in rows)
    limit = f"\nThe runs of 8 billion weights were allowed {LIMIT / 1e9:.1f} GB." if limited else ""
    values = {
        "arguments": " ".join(sys.argv[1:]),
        "date": time.strftime("%d %B %Y", time.gmtime()),
        "limit": limit,
        "prompt": PROMPT,
        "new": NEW,
        "epochs": PPO["num_ppo_epochs"],
        "minibatches": PPO["num_minibatches"],
    }
    lines = [HEADER.format(**{"gpu": "?", "torch": "?", "transformers": "?", "rate": 0.0} | values | found)]
    if "failed" in found:
        lines.append(f"The checks did not run: {found['failed']}\n")
    lines += [f"- {name}: {result}" for name, result in found.get("checks", {}).items()]
    lines += ["", f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    lines += [line(row, found.get("rate", 0.0) * 1e12) for row in rows]
    return "\n".join(lines) + "\n"


def line(row: dict[str, Any], rate: float) -> str:
    """One model's line of the table."""
    if "failed" in row:
        return f"| {row['size']} | {row['base']} | {row['failed'].replace('|', '/')} |" + " |" * (len(COLUMNS) - 3)
    phases = row["phases"]
    total, work = sum(phases.values()), phases["score"] + phases["train"]
    sampled = row["responses"] * row["length"]
    trained = row["responses"] * (PROMPT + row["length"])
    share = f"{sum(row['flop'].values()) / work / rate:.0%}" if rate else "–"
    cells = [
        row["size"],
        row["base"],
        row["responses"],
        f"{total:.1f}",
        *(f"{seconds:.1f}" for seconds in phases.values()),
    ]
    cells += [f"{sampled / phases['rollout']:.0f}", f"{trained / work:.0f}", share]
    cells += [f"{row[key] / 1e9:.2f}" if row[key] else "–" for key in ("allocated", "reserved")]
    cells.append(f"{row['ratio_check']:.1e}")
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
