"""Bad inputs through the real command line: each is one clear error without a traceback, and nothing counts as done.

A case makes the mistake and gives the command; its error must name the offending thing and say what to do next.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import NAMES
from tests import tiny_models
from tests.command_line import ROOT, Result, complete_stages, program, rlhf, write_config

Command = list[Any]


@dataclass
class Place:
    """Where one case happens: an empty folder, and copies of things that take long to make."""

    folder: Path
    finished: Path
    llama: Path
    running: list[Any] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def config(self, **changes: Any) -> Path:
        return write_config(self.folder, changes)

    def text(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def data(self, name: str, content: str | bytes, **settings: Any) -> Command:
        """Run SFT on a file of demonstrations."""
        source = {"path": str(self.text(name, content)), **settings}
        return ["run", self.config(data={"demonstrations": source}), "sft"]

    def model(self, **settings: Any) -> tuple[Path, Command]:
        """Run SFT on a copy of the tiny Llama, which the case then spoils."""
        folder = self.folder / "model"
        shutil.copytree(self.llama, folder)
        return folder, ["run", self.config(model={"name": str(folder), **settings}), "sft"]

    def template(self, text: str) -> Command:
        path = self.text("chat.jinja", text)
        return self.model(chat_template=str(path))[1]

    def with_run(self, **changes: Any) -> Path:
        """A configuration whose run folder holds a finished SFT, sample, collect and reward."""
        shutil.copytree(self.finished, self.run)
        return self.config(**changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that is finished up to the reward model, and a tiny Llama."""
    folder = tmp_path_factory.mktemp("prepared")
    made = rlhf("run", write_config(folder), "reward")
    assert made.code == 0, made.err
    tiny_models.make("llama", folder / "llama")
    return folder / "run", folder / "llama"


@pytest.fixture
def place(prepared: tuple[Path, Path], tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, *prepared)
    yield made
    for running in made.running:
        running.close()


def row(prompt: str = "How are you?", completion: str = "Well.") -> str:
    return json.dumps({"prompt": prompt, "completion": completion}) + "\n"


# Configuration


def wrong_type(at: Place) -> Command:
    return ["run", at.config(sft={"batch_size": "many"})]


def several_mistakes(at: Place) -> Command:
    return ["run", at.config(sft={"epochs": -1}, ppo={"critic": {"gamma": 2}}, evaluate={"judge": "mum"})]


def number_that_is_none(at: Place) -> Command:
    return ["run", at.config(sft={"learning_rate": float("inf")})]


def unknown_key(at: Place) -> Command:
    return ["run", at.config(sft={"learning_rat": 1e-4})]


def unknown_section(at: Place) -> Command:
    return ["run", at.config(rewards={"epochs": 1})]


def empty_config(at: Place) -> Command:
    return ["run", at.text("empty.yaml", "")]


def config_is_a_list(at: Place) -> Command:
    return ["run", at.text("list.yaml", "- run\n- model\n")]


def broken_yaml(at: Place) -> Command:
    return ["run", at.text("broken.yaml", "run:\n  folder: [x\nmodel: {name: pocket}\n")]


def yaml_within_itself(at: Place) -> Command:
    return ["run", at.text("loop.yaml", "run: &a {folder: *a}\n")]


def key_twice(at: Place) -> Command:
    return ["run", at.text("twice.yaml", "run: {folder: x}\nmodel: {name: pocket}\nrun: {folder: y}\n")]


def number_as_key(at: Place) -> Command:
    return ["run", at.text("number.yaml", "run: {folder: x}\nmodel: {name: pocket}\ndata: {}\n1: 2\n")]


def binary_config(at: Place) -> Command:
    return ["run", at.text("binary.yaml", bytes(range(256)))]


def missing_config(at: Place) -> Command:
    at.config()
    return ["run", at.folder / "toi.yaml"]


def config_is_a_folder(at: Place) -> Command:
    return ["run", at.folder]


def nothing_set(at: Place) -> Command:
    return ["run", at.config(), "--set", "sft.epochs"]


def unknown_key_set(at: Place) -> Command:
    return ["run", at.config(), "--set", "ppo.kl_coeff=0.1"]


def stage_without_what_it_needs(at: Place) -> Command:
    return ["run", at.config(run={"stages": ["sft", "ppo"]})]


def unknown_stage(at: Place) -> Command:
    return ["run", at.config(), "reword"]


def stage_left_out(at: Place) -> Command:
    return ["run", at.config(run={"stages": ["sft"]}), "reward"]


def unknown_command(at: Place) -> Command:
    return ["train", at.config()]


def unknown_config_section(at: Place) -> Command:
    return ["help-config", "sfd"]


# Data


def missing_data(at: Place) -> Command:
    at.text("rows.jsonl", row())
    return ["run", at.config(data={"demonstrations": {"path": str(at.folder / "row.jsonl")}}), "sft"]


def empty_data(at: Place) -> Command:
    return at.data("rows.jsonl", "")


def broken_json(at: Place) -> Command:
    return at.data("rows.jsonl", row() + '{"prompt": "and', on_bad_rows="error")


def binary_data(at: Place) -> Command:
    return at.data("rows.jsonl", b"\x00\x01\x02" * 1000)


def not_gzip(at: Place) -> Command:
    return at.data("rows.jsonl.gz", row())


def cut_off_gzip(at: Place) -> Command:
    return at.data("rows.jsonl.gz", gzip.compress(row().encode() * 1000)[:-20])


def not_parquet(at: Place) -> Command:
    return at.data("rows.parquet", row())


def unknown_suffix(at: Place) -> Command:
    return at.data("rows.xlsx", row())


def missing_columns(at: Place) -> Command:
    return at.data("rows.jsonl", json.dumps({"question": "How?", "answer": "So."}) + "\n")


def mixed_formats(at: Place) -> Command:
    alpaca = json.dumps({"instruction": "Say it.", "input": "", "output": "It."}) + "\n"
    return at.data("rows.jsonl", row() * 2 + alpaca * 2)


def all_rows_unusable(at: Place) -> Command:
    return at.data("rows.jsonl", row(completion=" ") * 3, on_bad_rows="drop")


def all_rows_too_long(at: Place) -> Command:
    source = {"path": str(at.text("rows.jsonl", "".join(row(f"{i} " + "word " * 60) for i in range(9))))}
    return ["run", at.config(data={"demonstrations": source}, sft={"max_length": 32}), "sft"]


def all_rows_held_out(at: Place) -> Command:
    source = {"path": str(at.text("rows.jsonl", row()))}
    return ["run", at.config(data={"demonstrations": source, "prompts": source, "held_out": 1}), "sft"]


def no_data(at: Place) -> Command:
    return ["run", at.config(data={"demonstrations": None, "prompts": None}), "sft"]


def nothing_to_import(at: Place) -> Command:
    return ["run", at.with_run(collect={"judges": "imported"}), "collect"]


def gold_judge_for_others_prompts(at: Place) -> Command:
    source = {"path": str(at.text("rows.jsonl", "".join(row(f"Question {i}?") for i in range(40))))}
    return ["run", at.config(data={"prompts": source}, evaluate={"judge": "gold"}, run={"stages": ["sft", "evaluate"]})]


def simulated_judges_of_others_prompts(at: Place) -> Command:
    source = {"path": str(at.text("rows.jsonl", "".join(row(f"Question {i}?") for i in range(40))))}
    return ["run", at.config(data={"prompts": source}), "collect"]


# Models and templates


def model_folder_missing(at: Place) -> Command:
    return ["run", at.config(model={"name": str(at.folder / "nowhere")}), "sft"]


def template_with_a_mistake(at: Place) -> Command:
    return at.template("{% for message in messages %}{{ message.content }")


def template_without_the_assistant(at: Place) -> Command:
    return at.template("{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}")


def template_whose_prompt_is_no_prefix(at: Place) -> Command:
    return at.template("{{ messages | length }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}")


def template_missing(at: Place) -> Command:
    return at.model(chat_template=str(at.folder / "none.jinja"))[1]


def template_argument_unknown(at: Place) -> Command:
    return at.model(template_arguments={"think": False})[1]


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def no_token_for_padding(at: Place) -> Command:
    """GPT-2 has one special token for everything; here bytes that no text contains are missing too."""
    folder = at.folder / "gpt2"
    tiny_models.make("gpt2", folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    kept = [token for token in whole["model"]["vocab"] if len(token) > 1 or token.isascii()]
    whole["model"]["vocab"] = {token: place for place, token in enumerate(kept)}
    whole["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    return ["run", at.config(model={"name": str(folder), "chat_template": "plain"}), "sft"]


def no_end_token(at: Place) -> Command:
    folder, command = at.model(
        chat_template=str(at.text("plain.jinja", "{% for m in messages %}{{ m.content }}\n{% endfor %}"))
    )
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    return command


def pickle_weights(at: Place) -> Command:
    folder, command = at.model()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return command


def not_causal(at: Place) -> Command:
    folder, command = at.model()
    edit_json(folder / "config.json", model_type="bert", architectures=["BertForMaskedLM"])
    return command


def unknown_architecture(at: Place) -> Command:
    folder, command = at.model()
    edit_json(folder / "config.json", model_type="zebra", architectures=["ZebraForCausalLM"])
    return command


def weights_cut_off(at: Place) -> Command:
    folder, command = at.model()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return command


def weights_incomplete(at: Place) -> Command:
    folder, command = at.model()
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return command


def tokenizer_broken(at: Place) -> Command:
    folder, command = at.model()
    (folder / "tokenizer.json").write_text("{")
    return command


def tokenizer_of_another_model(at: Place) -> Command:
    folder, command = at.model()
    edit_json(folder / "config.json", vocab_size=100)
    return command


def an_adapter_for_a_model(at: Place) -> Command:
    return ["run", at.config(model={"name": str(at.finished / "sft" / "adapter")}), "sft"]


def lora_on_nothing(at: Place) -> Command:
    return ["run", at.config(sft={"lora": {"targets": ["no_such_layer"]}}), "sft"]


def prompts_longer_than_positions(at: Place) -> Command:
    tiny_models.make("gpt2", at.folder / "gpt2")
    source = {"path": str(at.text("rows.jsonl", "".join(row(f"{i} " + "word " * 400) for i in range(20))))}
    return ["run", at.config(model={"name": str(at.folder / "gpt2"), "chat_template": "plain"},
                             sample={"policy": "base"}, data={"prompts": source}), "sample"]  # fmt: skip


def responses_beyond_positions(at: Place) -> Command:
    tiny_models.make("gpt2", at.folder / "gpt2")
    return ["run", at.config(model={"name": str(at.folder / "gpt2"), "chat_template": "plain"},
                             sample={"max_new_tokens": 400}), "sample"]  # fmt: skip


# Artifacts


def made_with_another_base(at: Place) -> Command:
    """The weights changed under the same name: no setting says so, only the digest."""
    folder, _ = at.model()
    settings = at.config(model={"name": str(folder)})
    assert rlhf("run", settings, "sft").code == 0
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return ["run", settings, "sample"]


def policy_of_another_base(at: Place) -> Command:
    return ["run", at.config(model={"name": str(at.llama)}, sample={"policy": str(at.finished / "sft")}), "sample"]


def policy_that_is_none(at: Place) -> Command:
    return ["run", at.with_run(sample={"policy": str(at.finished / "reward")}), "sample"]


def policy_missing(at: Place) -> Command:
    return ["run", at.with_run(sample={"policy": "runs/none/ppo"}), "sample"]


def chat_with_a_damaged_policy(at: Place) -> Command:
    at.with_run()
    flip_a_byte(at.run / "sft" / "adapter" / "adapter_model.safetensors")
    return ["chat", at.run, "sft", "--once", "Hello"]


def chat_with_a_policy_whose_file_is_gone(at: Place) -> Command:
    at.with_run()
    (at.run / "sft" / "adapter" / "adapter_model.safetensors").unlink()
    return ["chat", at.run, "sft", "--once", "Hello"]


def chat_with_a_broken_manifest(at: Place) -> Command:
    at.with_run()
    (at.run / "sft" / "manifest.json").write_text('{"stage": "sft"')
    return ["chat", at.run, "sft", "--once", "Hello"]


def annotate_damaged_responses(at: Place) -> Command:
    at.with_run()
    flip_a_byte(at.run / "sample" / "responses.jsonl")
    return ["annotate", at.run]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def chat_with_an_unknown_policy(at: Place) -> Command:
    at.with_run()
    return ["chat", at.run, "dpa", "--once", "Hello"]


def chat_with_a_policy_not_made_yet(at: Place) -> Command:
    at.with_run()
    return ["chat", at.run, "ppo", "--once", "Hello"]


def status_of_nothing(at: Place) -> Command:
    return ["status", at.folder / "nowhere"]


def report_of_nothing(at: Place) -> Command:
    return ["report", at.folder / "nowhere"]


def annotate_no_run(at: Place) -> Command:
    return ["annotate", at.folder]


def annotate_before_sampling(at: Place) -> Command:
    at.run.mkdir()
    shutil.copy(at.finished / "config.yaml", at.run)
    return ["annotate", at.run]


def annotate_a_run_that_does_not_sample(at: Place) -> Command:
    at.run.mkdir()
    source = {"path": str(at.text("rows.jsonl", row()))}
    changes = {"data": {"preferences": source}, "run": {"stages": ["sft", "collect"]}}
    shutil.copy(at.config(**changes), at.run / "config.yaml")
    return ["annotate", at.run]


def annotate_on_a_port_in_use(at: Place) -> Command:
    at.with_run()
    taken = socket.create_server(("127.0.0.1", 0))
    at.running.append(taken)
    return ["annotate", at.run, "--port", taken.getsockname()[1]]


# The judgement store


def store_is_no_database(at: Place) -> Command:
    return ["run", at.with_run(collect={"store": str(at.text("notes.db", "only notes\n" * 100))}), "collect"]


def store_of_a_newer_version(at: Place) -> Command:
    settings = at.with_run(collect={"store": str(at.folder / "newer.db"), "overlap": 2})
    shutil.copy(at.run / "judgements.db", at.folder / "newer.db")
    with sqlite3.connect(at.folder / "newer.db") as store:
        store.execute("UPDATE schema_version SET version = 999")
    store.close()
    return ["run", settings, "collect"]


def store_that_cannot_be_reached(at: Place) -> Command:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"postgresql+psycopg://nobody@127.0.0.1:{port}/nothing"
    return ["run", at.with_run(collect={"store": url}), "collect"]


def store_of_another_kind(at: Place) -> Command:
    return ["run", at.with_run(collect={"store": "mysql://me@there/db"}), "collect"]


def guidelines_missing(at: Place) -> Command:
    return ["run", at.with_run(collect={"judges": "people", "guidelines": str(at.folder / "none.md")}), "collect"]


# The machine


def run_folder_is_a_file(at: Place) -> Command:
    at.text("run", "a file")
    return ["run", at.config()]


def run_folder_below_a_file(at: Place) -> Command:
    at.text("run", "a file")
    return ["run", at.config(), "--set", f"run.folder={at.run / 'below'}"]


def run_folder_not_writable(at: Place) -> Command:
    return ["run", at.config(), "--set", "run.folder=/proc/rlhf"]


def another_process(at: Place) -> Command:
    from stages.states import locked

    at.run.mkdir()
    there, done = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(at.run):
            (at.run / ".lock").write_text("4711 sft")
            there.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    there.wait(10)
    at.running.append(_Until(done, thread))
    return ["run", at.config()]


@dataclass
class _Until:
    done: threading.Event
    thread: threading.Thread

    def close(self) -> None:
        self.done.set()
        self.thread.join(10)


def no_cuda(at: Place) -> Command:
    return ["run", at.config(run={"device": "cuda"}), "sft"]


def four_bits_on_a_cpu(at: Place) -> Command:
    return ["run", at.config(run={"device": "cpu"}, model={"quantization": "4bit"}), "sft"]


def tracker_missing(at: Place) -> Command:
    return ["run", at.config(run={"tracking": "wandb"}), "sft"]


def batches_that_do_not_divide(at: Place) -> Command:
    return ["run", at.config(sft={"micro_batch_size": 3}), "sft"]


def learning_rate_too_high(at: Place) -> Command:
    return ["run", at.config(sft={"learning_rate": 1e30, "max_steps": 4}), "sft"]


def learning_rate_too_high_in_the_last_step(at: Place) -> Command:
    return ["run", at.config(sft={"learning_rate": 1e30, "max_steps": 1, "warmup": 0, "schedule": "constant"}), "sft"]


def learning_rate_too_high_for_ppo(at: Place) -> Command:
    return ["run", at.with_run(ppo={"learning_rate": 1e30}), "ppo"]


def learning_rate_too_high_in_ppos_last_step(at: Place) -> Command:
    return ["run", at.with_run(ppo={"learning_rate": 1e30, "iterations": 1}), "ppo"]


def learning_rate_too_high_for_reward(at: Place) -> Command:
    settings = at.with_run(reward={"learning_rate": 1e30, "max_steps": 3, "warmup": 0})
    shutil.rmtree(at.run / "reward")
    return ["run", settings, "reward"]


def learning_rate_too_high_for_dpo(at: Place) -> Command:
    return ["run", at.with_run(dpo={"learning_rate": 1e30, "max_steps": 1, "warmup": 0}), "dpo"]


@dataclass(frozen=True)
class Case:
    make: Callable[[Place], Command]
    code: int
    says: tuple[str, ...]
    """Patterns that the error must contain: the offending thing, and what to do."""
    kept: frozenset[str] = frozenset()
    """Stages that are complete before and after."""

    @property
    def damages(self) -> bool:
        """The case spoils what was complete, so that it no longer counts as that."""
        return any(word in self.make.__name__ for word in ("damaged", "broken_manifest", "file_is_gone"))


def case(make: Callable[[Place], Command], code: int, *says: str, kept: str = "") -> Any:
    return pytest.param(Case(make, code, says, frozenset(kept.split())), id=make.__name__)


UP_TO_REWARD = "sft sample collect reward"
CASES = [
    case(wrong_type, 2, r"toy\.yaml:\d+: sft\.batch_size: .*integer.*many"),
    case(several_mistakes, 2, "3 mistakes", "sft.epochs", "ppo.critic.gamma", "evaluate.judge", "gold"),
    case(number_that_is_none, 2, "sft.learning_rate", "finite"),
    case(unknown_key, 2, r"toy\.yaml:\d+: unknown key sft.learning_rat; did you mean learning_rate\?"),
    case(unknown_section, 2, "unknown key rewards; did you mean reward"),
    case(empty_config, 2, "empty.yaml: .*mapping of sections", "configs/demo.yaml"),
    case(config_is_a_list, 2, "list.yaml: .*mapping of sections.*list"),
    case(broken_yaml, 2, r"broken\.yaml:\d+: not valid YAML"),
    case(yaml_within_itself, 2, "loop.yaml"),
    case(key_twice, 2, r"twice\.yaml:3: .*'run' stands twice \(first on line 1"),
    case(number_as_key, 2, "number.yaml:4", "1"),
    case(binary_config, 2, "binary.yaml: not a text file"),
    case(missing_config, 2, r"toi\.yaml: there is no such configuration file", r"did you mean .*toy\.yaml"),
    case(config_is_a_folder, 2, "directory|folder", "config.yaml|YAML"),
    case(nothing_set, 2, "--set", "KEY=VALUE", "sft.epochs"),
    case(unknown_key_set, 2, r"--set ppo\.kl_coeff: unknown key ppo\.kl_coeff; did you mean kl_coef\?"),
    case(stage_without_what_it_needs, 2, "ppo, which needs reward", "add reward"),
    case(unknown_stage, 2, "no stage 'reword'", "sft, sample"),
    case(stage_left_out, 2, "leaves out reward", "run.stages"),
    case(unknown_command, 2, "train", "--help"),
    case(unknown_config_section, 2, "sfd", "sft"),
    case(missing_data, 1, r"row\.jsonl: there is no such file", r"did you mean .*rows\.jsonl"),
    case(empty_data, 1, r"rows\.jsonl: the file is empty"),
    case(broken_json, 1, r"rows\.jsonl:2: .*JSON"),
    case(binary_data, 1, r"rows\.jsonl: .*binary"),
    case(not_gzip, 1, r"rows\.jsonl\.gz: .*not gzip"),
    case(cut_off_gzip, 1, r"rows\.jsonl\.gz: .*cut off"),
    case(not_parquet, 1, r"rows\.parquet: .*Parquet"),
    case(unknown_suffix, 1, r"rows\.xlsx: .*\.xlsx", "wanted .jsonl"),
    case(missing_columns, 1, r"rows\.jsonl", "question, answer", "columns"),
    case(mixed_formats, 1, "formats in one source", "alpaca", "format:"),
    case(all_rows_unusable, 1, r"rows\.jsonl", "none of the 3 rows", "empty response"),
    case(all_rows_too_long, 1, "32 tokens", "max_length"),
    case(all_rows_held_out, 1, "held.out"),
    case(no_data, 2, "data.demonstrations"),
    case(nothing_to_import, 2, "data.preferences", kept=UP_TO_REWARD),
    case(gold_judge_for_others_prompts, 2, "evaluate.judge", "reward_model", kept="sft"),
    case(simulated_judges_of_others_prompts, 2, "simulated", "data.prompts|collect.judges", kept="sft sample"),
    case(model_folder_missing, 1, "nowhere", "no such folder", "hub id"),
    case(template_with_a_mistake, 1, "template", "plain"),
    case(template_without_the_assistant, 1, "template leaves out the assistant"),
    case(template_whose_prompt_is_no_prefix, 1, "renders the prompt alone differently", "chat_template: FILE"),
    case(template_missing, 1, r"none\.jinja", "plain"),
    case(template_argument_unknown, 1, "no argument 'think'"),
    case(no_token_for_padding, 1, "padding", "add a pad token"),
    case(no_end_token, 1, "ends a turn", "template"),
    case(pickle_weights, 1, r"pickle files \(pytorch_model\.bin\)", "safetensors"),
    case(not_causal, 1, "not a causal language model: BertForMaskedLM", "decoder-only"),
    case(unknown_architecture, 1, "model.name", "zebra"),
    case(weights_cut_off, 1, "model.name: .*model", "cannot be loaded"),
    case(weights_incomplete, 1, "weights do not fit", "layers.1.mlp.up_proj"),
    case(tokenizer_broken, 1, "tokenizer cannot be loaded"),
    case(tokenizer_of_another_model, 1, "tokenizer has ids up to", "same"),
    case(an_adapter_for_a_model, 1, "holds an adapter, not a model"),
    case(lora_on_nothing, 2, "no_such_layer", "lora.targets", "q_proj"),
    case(prompts_longer_than_positions, 1, "256", "prompt", kept="sft"),
    case(responses_beyond_positions, 1, "256", "max_new_tokens", kept="sft"),
    case(made_with_another_base, 1, "another model", "base weights", "sft --again", kept="sft"),
    case(policy_of_another_base, 1, "another model", "base weights", kept="sft"),
    case(policy_that_is_none, 2, "reward_model, not a policy", "sample.policy", kept=UP_TO_REWARD),
    case(policy_missing, 2, "runs/none/ppo", "sample.policy", kept=UP_TO_REWARD),
    case(chat_with_a_damaged_policy, 1, "adapter_model.safetensors: content differs", "again: rlhf run"),
    case(chat_with_a_policy_whose_file_is_gone, 1, "adapter_model.safetensors: missing", "again: rlhf run"),
    case(chat_with_a_broken_manifest, 1, r"manifest\.json: .*cannot be read", "again: rlhf run"),
    case(annotate_damaged_responses, 1, r"responses\.jsonl", "again: rlhf run"),
    case(chat_with_an_unknown_policy, 2, "no policy 'dpa'", "sft", kept=UP_TO_REWARD),
    case(chat_with_a_policy_not_made_yet, 2, "no policy 'ppo'", "rlhf run .* ppo", kept=UP_TO_REWARD),
    case(status_of_nothing, 2, "not a run folder", "rlhf run"),
    case(report_of_nothing, 2, "not a run folder", "rlhf run"),
    case(annotate_no_run, 2, "not a run folder", "rlhf run"),
    case(annotate_before_sampling, 2, "nothing to judge yet", "rlhf run .* sample"),
    case(annotate_a_run_that_does_not_sample, 2, "nothing to judge yet", "add sample to run.stages"),
    case(annotate_on_a_port_in_use, 2, r"port \d+ cannot be used", r"--port \d+", kept=UP_TO_REWARD),
    case(store_is_no_database, 1, r"notes\.db: .*not a judgement store", "another file", kept=UP_TO_REWARD),
    case(store_of_a_newer_version, 1, r"newer\.db: .*999", "upgrade", kept=UP_TO_REWARD),
    case(
        store_that_cannot_be_reached, 1, r"nobody@127\.0\.0\.1.* cannot be reached", "host and port", kept=UP_TO_REWARD
    ),
    case(store_of_another_kind, 1, "mysql", "postgresql", kept=UP_TO_REWARD),
    case(guidelines_missing, 2, "guidelines", r"none\.md", kept=UP_TO_REWARD),
    case(run_folder_is_a_file, 2, "run: .*cannot be made", "--set run.folder"),
    case(run_folder_below_a_file, 2, "below", "--set run.folder"),
    case(run_folder_not_writable, 2, "/proc/rlhf", "--set run.folder"),
    case(another_process, 2, "process 4711 is running", "wait for it"),
    case(no_cuda, 2, "run.device is cuda", "run.device=cpu"),
    case(four_bits_on_a_cpu, 1, "model.quantization", "CUDA", "none"),
    case(tracker_missing, 2, "wandb is not installed", "pip install wandb"),
    case(batches_that_do_not_divide, 2, "batch_size", "micro_batch_size", "does not divide"),
    case(learning_rate_too_high, 1, "loss|finite|number", "learning_rate"),
    case(learning_rate_too_high_in_the_last_step, 1, "finite|number|nan|inf", "learning_rate"),
    case(learning_rate_too_high_for_ppo, 1, "finite", "learning_rate", kept=UP_TO_REWARD),
    case(learning_rate_too_high_in_ppos_last_step, 1, "finite|nan|inf", "learning_rate", kept=UP_TO_REWARD),
    case(learning_rate_too_high_for_reward, 1, "finite|number|nan|inf", "learning_rate", kept="sft sample collect"),
    case(learning_rate_too_high_for_dpo, 1, "finite|number|nan|inf", "learning_rate", kept=UP_TO_REWARD),
]


def check(result: Result, code: int, says: tuple[str, ...]) -> None:
    """The exit code, the words, and nothing that only a programmer understands."""
    assert result.code == code, f"exit code {result.code}\n{result.out}\n{result.err}"
    for text in ("Traceback", "not foreseen", 'File "'):
        assert text not in result.err + result.out, result.err
    for pattern in says:
        assert re.search(pattern, result.err, re.DOTALL), f"{pattern!r} is not in:\n{result.err}"
    assert "→" in result.err or "--help" in result.err, f"it does not say what to do:\n{result.err}"


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_is_one_clear_error(case: Case, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    command = case.make(place)
    find = importlib.util.find_spec  # the machine that runs this may have CUDA and wandb
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    if case.make is no_cuda:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = rlhf(*command)
    check(result, case.code, case.says)
    if place.run.is_dir() and not case.damages:
        assert complete_stages(place.run) == case.kept


# What a program of its own shows: exit codes of the operating system, switches that are read at import, other users


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [(wrong_type, 2, "sft.batch_size"), (broken_json, 1, r"rows\.jsonl:2"), (status_of_nothing, 2, "not a run folder")],
)
def test_the_program_exits_as_it_says(make: Callable[[Place], Command], code: int, says: str, place: Place) -> None:
    check(program(*make(place)), code, (says,))


def test_the_hub_without_a_network(place: Place) -> None:
    """Both in one program of its own, which spends its time on imports."""
    commands = [
        [*map(str, ["run", place.config(), "sft", "--set", f"{key}={value}"])]
        for key, value in {"model.name": "nobody/nothing", "data.demonstrations": "{path: nobody/nothing}"}.items()
    ]
    calls = "import json, sys\nfrom tests.command_line import rlhf\n"
    calls += "print(json.dumps([vars(rlhf(*command)) for command in json.loads(sys.argv[1])]))"
    ended = subprocess.run(
        [sys.executable, "-c", calls, json.dumps(commands)],
        capture_output=True, text=True, cwd=ROOT, timeout=200,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place.folder / "hub")},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for found in json.loads(ended.stdout.splitlines()[-1]):
        check(Result(**found), 1, ("nobody/nothing", "hub", "give (the|their) folder"))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="made for root, who may everything")
@pytest.mark.parametrize("forbidden", ["run", "rows.jsonl"])
def test_no_permission(forbidden: str, place: Place) -> None:
    source = place.text("rows.jsonl", "".join(row(f"Question {i}?") for i in range(20)))
    (place.run / "sft.partial").mkdir(parents=True)
    settings = place.config(data={"demonstrations": {"path": str(source)}})
    (place.folder / forbidden).chmod(0o500 if forbidden != "rows.jsonl" else 0o000)
    # Root without the capability that lets root pass over permissions.
    alone = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]
    ended = subprocess.run(
        [*alone, sys.executable, "-m", "stages", "run", str(settings), "sft"],
        capture_output=True, text=True, cwd=ROOT, timeout=200,
    )  # fmt: skip
    (place.folder / forbidden).chmod(0o700)
    result = Result(ended.returncode, ended.stdout, ended.stderr)
    assert result.code in (1, 2)
    check(result, result.code, (re.escape(forbidden), "permission|Permission|cannot be written"))
    assert complete_stages(place.run) == set()


# A full disk: wherever the space ends, it is said, nothing counts as complete, and the same command goes on


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    assert mounted.returncode == 0, mounted.stderr
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("stage", "free"),
    [("sft", 0), ("sft", 12), ("sft", 400), ("sft", 1500), ("sft", 3000), ("sample", 4), ("collect", 8), ("reward", 40),
     ("reward", 900), ("dpo", 900), ("ppo", 900), ("evaluate", 12)],
)  # fmt: skip
def test_a_full_disk(stage: str, free: int, disk: Path, prepared: tuple[Path, Path], tmp_path: Path) -> None:
    """``free``: kilobytes that are left when the stage starts."""
    run = disk / "run"
    if stage != "sft":
        shutil.copytree(prepared[0], run)
        if stage in NAMES[:4]:
            for later in NAMES[NAMES.index(stage) : 4]:
                shutil.rmtree(run / later)
        if stage == "collect":
            (run / "judgements.db").unlink()
    before = complete_stages(run) if run.is_dir() else set()
    settings = write_config(tmp_path, {"run": {"folder": str(run)}})
    filler = disk / "filler"
    with filler.open("wb") as out:
        out.write(b"0" * (shutil.disk_usage(disk).free - free * 1024))
    failed = rlhf("run", settings, stage)
    check(failed, 1, ("disk is full", "[Ff]ree some space"))
    assert complete_stages(run) == before if run.is_dir() else not before

    filler.unlink()
    again = rlhf("run", settings, stage)
    assert again.code == 0, again.err
    assert complete_stages(run) == before | {stage} | ({"dpo", "ppo"} if stage == "evaluate" else set())


# What a run mends itself


@pytest.mark.parametrize("harm", ["flip a byte", "break the manifest", "delete the folder", "delete a file"])
def test_a_damaged_input_is_made_again(harm: str, place: Place) -> None:
    settings = place.with_run(dpo={"max_steps": 1})
    sft = place.run / "sft"
    if harm == "flip a byte":
        flip_a_byte(sft / "adapter" / "adapter_model.safetensors")
    elif harm == "break the manifest":
        (sft / "manifest.json").write_text("{")
    elif harm == "delete a file":
        (sft / "adapter" / "adapter_config.json").unlink()
    else:
        shutil.rmtree(sft)
    shown = rlhf("status", place.run)
    assert ("missing" if harm == "delete the folder" else "damaged") in shown.out.splitlines()[0]
    result = rlhf("run", settings, "dpo")
    assert result.code == 0, result.err
    assert complete_stages(place.run) == {"sft", "sample", "collect", "reward", "dpo"}
