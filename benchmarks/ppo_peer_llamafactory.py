"""One run of LLaMA-Factory's PPO; started by ``ppo_peers.py`` in LLaMA-Factory's environment.

    python benchmarks/ppo_peer_llamafactory.py MODEL DATA WORK --iterations 3

LoRA, with the reward model as a second LoRA adapter (``reward_model_type: lora``) and the value head on the policy's
trunk, as LLaMA-Factory has it. Prints the seconds of each iteration.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"DISABLE_VERSION_CHECK": "1", "USE_MODELSCOPE_HUB": "0"}

import torch
from llamafactory.train.ppo.trainer import CustomPPOTrainer
from llamafactory.train.tuner import run_exp

BATCH, PROMPT, RESPONSE, EPOCHS = 16, 32, 48, 4
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Make the reward adapter where there is none, train, and print each iteration's seconds but the first's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--reward-only", action="store_true", help="make the reward adapter and leave")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    common = {
        "model_name_or_path": arguments.model,
        "dataset_dir": str(arguments.data),
        "template": "default",
        "use_cpu": True,
        "finetuning_type": "lora",
        "lora_rank": 16,
        "lora_target": "all",
        "report_to": "none",
        "overwrite_output_dir": True,
        "save_only_model": True,
        "do_train": True,
        "learning_rate": 1e-5,
        "preprocessing_num_workers": 1,
    }
    reward = arguments.work / "reward"
    if arguments.reward_only:
        pairs = {"stage": "rm", "dataset": "pairs", "cutoff_len": 64, "max_samples": 4, "max_steps": 1}
        run_exp({**common, **pairs, "per_device_train_batch_size": 2, "output_dir": str(reward)})
        return
    seconds, lengths = time_iterations(CLOCKS[arguments.clock])
    run_exp(
        {
            **common,
            "stage": "ppo",
            "dataset": "prompts",
            "cutoff_len": PROMPT,
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": 1,
            "ppo_buffer_size": 1,
            "ppo_epochs": EPOCHS,
            "max_new_tokens": RESPONSE,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "reward_model": str(reward),
            "reward_model_type": "lora",
            "max_steps": arguments.iterations,
            "max_samples": arguments.iterations * BATCH,
            "num_train_epochs": 1,
            "logging_steps": 1,
            "save_steps": 10**6,
            "output_dir": str(arguments.work / "ppo"),
        }
    )
    prompts, responses = zip(*lengths, strict=True)
    found = {"length": sum(responses) / len(responses), "prompt": sum(prompts) / len(prompts)}
    print("RESULT " + json.dumps({"seconds": seconds[1:], **found}))


def time_iterations(now: Callable[[], float]) -> tuple[list[float], list[tuple[int, int]]]:
    """Seconds of every iteration, from sampling to its last step, and (prompt, response) lengths; filled later."""
    seconds: list[float] = []
    lengths: list[tuple[int, int]] = []
    started = 0.0
    sample, step = CustomPPOTrainer.get_inputs, CustomPPOTrainer.step

    def get_inputs(self: CustomPPOTrainer, batch: dict[str, torch.Tensor]) -> object:
        nonlocal started
        started = now()
        queries, responses = sample(self, batch)
        lengths.extend((len(q), len(r)) for q, r in zip(queries, responses, strict=True))
        return queries, responses

    def one_step(self: CustomPPOTrainer, *arguments: object) -> object:
        result = step(self, *arguments)
        seconds.append(now() - started)
        return result

    CustomPPOTrainer.get_inputs, CustomPPOTrainer.step = get_inputs, one_step
    return seconds, lengths


if __name__ == "__main__":
    main()
