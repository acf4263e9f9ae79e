"""One run of TRL 1.12's PPOTrainer (the last release that has one); started by ``ppo_peers.py`` in TRL's environment.

    python benchmarks/ppo_peer_trl.py MODEL --iterations 3 [--dtype bfloat16]

"All-LoRA" is the best that a user of the trainer can do: LoRA on the policy by ``peft_config``, and a value model in
which LoRA layers were put by hand; reference by adapters off, the reward model whole. Prints the seconds of each
iteration.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from datasets import Dataset
from peft import LoraConfig, inject_adapter_in_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

BATCH, PROMPT, RESPONSE, EPOCHS = 16, 32, 48, 4
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


class Clock(TrainerCallback):
    """When each iteration ended."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Called once an iteration."""
        self.ends.append(self.now())


def main() -> None:
    """Train for so many iterations and print their seconds, the first (a warm-up) left out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    arguments = parser.parse_args()
    set_seed(0)
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(f"{arguments.model}-reward", num_labels=1, dtype=dtype)
        for _ in range(2)
    )
    linear = sorted(
        {name.rsplit(".", 1)[-1] for name, m in value.model.named_modules() if isinstance(m, torch.nn.Linear)}
    )
    value = inject_adapter_in_model(LoraConfig(**LORA | {"target_modules": linear}), value)
    for name, parameter in value.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score"))
    ids = torch.randint(6, policy.config.vocab_size, (BATCH * (arguments.iterations + 1), PROMPT)).tolist()
    prompts = Dataset.from_dict({"input_ids": ids})
    lengths = count_responses(tokenizer.pad_token_id)
    clock = Clock(CLOCKS[arguments.clock])
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir="trl-ppo",
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=EPOCHS,
            local_rollout_forward_batch_size=BATCH,
            response_length=RESPONSE,
            stop_token="eos",
            temperature=1.0,
            total_episodes=BATCH * arguments.iterations,
            learning_rate=1e-5,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            num_sample_generations=0,
            disable_tqdm=True,
            logging_steps=10**6,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=prompts,
        eval_dataset=prompts.select(range(BATCH)),
        callbacks=[clock],
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    )
    trainer.train()
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    print("RESULT " + json.dumps({"seconds": seconds, "length": sum(lengths) / len(lengths)}))


def count_responses(pad_id: int) -> list[int]:
    """The length of every response that the trainer samples from now on, its end token counted."""
    lengths: list[int] = []
    original = ppo_trainer.batch_generation

    def batch_generation(model: object, queries: torch.Tensor, *rest: object) -> object:
        sequences, logits = original(model, queries, *rest)
        lengths.extend((sequences[:, queries.shape[1] :] != pad_id).sum(1).tolist())
        return sequences, logits

    ppo_trainer.batch_generation = batch_generation
    return lengths


if __name__ == "__main__":
    main()
