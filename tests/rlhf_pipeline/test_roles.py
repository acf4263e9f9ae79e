"""Roles on one base: what PEFT would do wrong (ppo_spec 2.3), each as a test, and adapters that survive saving."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor

from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.errors import ArtifactError, ModelError
from rlhf_pipeline.logprobs import (
    last_hidden,
    pad_sequences,
    response_hidden,
    response_logprobs,
    response_states,
    token_logprobs,
)
from rlhf_pipeline.models import read_score_head
from rlhf_pipeline.roles import Roles
from tests.rlhf_pipeline.test_generation import CONFIGS, sample, tiny

LORA = LoraSection(rank=4, alpha=8, dropout=0.3)
BATCH = pad_sequences([[5, 6, 7], [8]], [[3, 2], [20, 21, 22, 2]], pad_id=0)


def scramble(roles: Roles, name: str, seed: int = 1) -> None:
    """Fresh adapters are the base (B = 0): give each its own weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in roles.parameters(name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def four(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Roles:
    """Reference, policy, reward and value as PPO has them."""
    roles = Roles(tiny(architecture).to(dtype))
    hidden = roles.base.config.hidden_size
    for seed, (frozen, trained) in enumerate([("reference", "policy"), ("reward", "value")]):
        roles.add(frozen, lora=LORA)
        if frozen == "reward":
            roles.set_head("reward", torch.zeros(1, hidden))
        scramble(roles, frozen, seed)
        roles.add(trained, copy_of=frozen, trainable=True)
    return roles


def outputs(roles: Roles, name: str | None) -> Tensor:
    with torch.no_grad(), roles.use(name) as model:
        return response_logprobs(model, BATCH)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_each_role_is_its_adapter_alone(architecture: str, tmp_path: Path) -> None:
    """Against a model that has this one adapter, read by PEFT itself."""
    roles = four(architecture)
    for index, name in enumerate(("policy", "value")):
        scramble(roles, name, 10 + index)
    for name in ("reference", "policy", "reward", "value"):
        roles.save(name, tmp_path / name, model_name="some/model")
        alone = PeftModel.from_pretrained(tiny(architecture), tmp_path / name).eval()
        with torch.no_grad():
            expected = response_logprobs(alone.get_base_model(), BATCH)
        assert torch.equal(outputs(roles, name), expected)
        again = Roles(tiny(architecture))
        again.add("x", folder=tmp_path / name)
        assert torch.equal(outputs(again, "x"), expected)
    assert torch.equal(outputs(roles, None), outputs(Roles(tiny(architecture)), None))
    assert len({outputs(roles, name).sum().item() for name in (None, "reference", "policy", "reward", "value")}) == 5


@pytest.mark.parametrize("settings", [{}, {"lora_alpha": 7}, {"use_dora": True}, {"lora_bias": True}], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapted_layer_is_pefts(architecture: str, settings: dict, tmp_path: Path) -> None:
    """States and gradients; to the bit where the scaling (alpha 8 of rank 4) is a power of two."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    torch.manual_seed(1)
    peft = get_peft_model(tiny(architecture), LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    peft.save_pretrained(tmp_path)
    response_logprobs(peft.get_base_model(), BATCH).sum().backward()
    expected = {name: one.grad for name, one in peft.named_parameters() if one.requires_grad}
    roles = Roles(tiny(architecture))
    roles.add("policy", folder=tmp_path, trainable=True)
    with roles.use("policy") as model:
        response_logprobs(model, BATCH).sum().backward()
    found = {name: one.grad for name, one in roles.base.named_parameters() if one.requires_grad}
    assert len(found) == len(expected) > 0
    tolerance = 1e-5 if "lora_alpha" in settings else 0
    for one, other in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_an_adapted_layer_in_mixed_precision_rounds_once() -> None:
    """bfloat16 base, float32 adapter: as the product in float32, to the precision of bfloat16."""
    exact, mixed = four(), four(dtype=torch.bfloat16)
    layers = [next(m for m in roles.base.modules() if isinstance(m, Linear)) for roles in (exact, mixed)]
    x = torch.randn(3, 2, layers[0].in_features).bfloat16()
    with torch.no_grad(), exact.use("policy"):
        expected = layers[0](x.float())
    with torch.no_grad(), mixed.use("policy"), mixed.precision():
        found = layers[1](x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


def test_copies_start_equal_and_fresh_adapters_are_the_base() -> None:
    roles = four()
    assert torch.equal(outputs(roles, "policy"), outputs(roles, "reference"))  # KL(policy‖reference) is exactly 0
    assert torch.equal(roles.named_parameters("value")["head.weight"], roles.named_parameters("reward")["head.weight"])
    roles.add("new", lora=LORA)
    assert torch.equal(outputs(roles, "new"), outputs(roles, None))


def test_layers_with_the_names_of_roles(tmp_path: Path) -> None:
    """BERT's attention has a layer ``value``: a role of that name takes and saves its own tensors, as the others do."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=64, is_decoder=True, **shape)
    torch.manual_seed(0)
    roles = Roles(transformers.AutoModelForCausalLM.from_config(config))
    names = ("reference", "policy", "reward", "value")
    for seed, name in enumerate(names):
        roles.add(name, lora=LORA, trainable=name in ("policy", "value"))
        scramble(roles, name, seed)
    own = {name: {id(p) for p in roles.parameters(name)} for name in names}
    assert {len(ids) for ids in own.values()} == {26}, "two tensors for each of 6 layers in 2 blocks, and the head's"
    assert len(set.union(*own.values())) == 4 * 26
    roles.add("copy", copy_of="value")
    assert torch.equal(outputs(roles, "copy"), outputs(roles, "value"))
    for name in names:
        roles.save(name, tmp_path / name)
        roles.add(f"{name} again", folder=tmp_path / name)
        assert torch.equal(outputs(roles, f"{name} again"), outputs(roles, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_one_role_moves_no_other_bit(dtype: torch.dtype) -> None:
    roles = four(dtype=dtype)
    names = [None, "reference", "policy", "reward", "value"]
    before = {name: roles.fingerprint(name) for name in names}
    seen = {name: outputs(roles, name) for name in names}
    for name in ("policy", "value"):
        fit = torch.optim.AdamW(roles.parameters(name), lr=0.01)
        for _ in range(3):
            fit.zero_grad()
            with roles.use(name) as model:
                loss = response_logprobs(model, BATCH).sum()
                if name == "value":
                    loss = roles.head("value", response_hidden(model, BATCH)).square().sum()
                loss.backward()
            fit.step()
    changed = {name for name in names if roles.fingerprint(name) != before[name]}
    assert changed == {"policy", "value"}
    for name in names:
        assert torch.equal(outputs(roles, name), seen[name]) == (name not in changed)
    assert all(p.dtype == torch.float32 for name in names[1:] for p in roles.parameters(str(name)))


def test_every_trainable_tensor_gets_a_gradient_and_no_other_has_one() -> None:
    roles = four()
    for name in ("policy", "value"):  # one after the other, as PPO does in each minibatch
        with roles.use(name) as model:
            if name == "policy":
                response_logprobs(model, BATCH).sum().backward()
            else:
                roles.head("value", response_hidden(model, BATCH)).sum().backward()
    for name in ("policy", "value"):
        bare = [k for k, p in roles.named_parameters(name).items() if p.grad is None or p.grad.abs().sum() == 0]
        assert bare == []
    trained = {id(p) for name in ("policy", "value") for p in roles.parameters(name)}
    assert all(p.grad is None for p in roles.base.parameters() if id(p) not in trained)
    assert all(p.grad is None for p in roles.parameters("reward"))


def test_a_gradient_survives_a_switch_before_backward() -> None:
    """With PEFT's set_adapter all of these would silently be None."""
    roles = four()
    with roles.use("policy") as model:
        loss = response_logprobs(model, BATCH).sum()
    outputs(roles, "value")
    loss.backward()
    late = [p.grad.clone() for p in roles.parameters("policy")]
    for parameter in roles.parameters("policy"):
        parameter.grad = None
    with roles.use("policy") as model:
        response_logprobs(model, BATCH).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(late, roles.parameters("policy"), strict=True))
    assert len(late) == 28


def test_switching_changes_no_requires_grad_and_nothing_is_in_training_mode() -> None:
    roles = four()
    expected = {name: name in ("policy", "value") for name in ("reference", "policy", "reward", "value")}

    def flags() -> dict[str, set[bool]]:
        return {name: {p.requires_grad for p in roles.parameters(name)} for name in expected}

    assert flags() == {name: {flag} for name, flag in expected.items()}
    for name in (None, *expected):
        outputs(roles, name)
        assert flags() == {name: {flag} for name, flag in expected.items()}
    roles.add("later", copy_of="policy")  # PEFT freezes or unfreezes others when it adds one
    assert flags() == {name: {flag} for name, flag in expected.items()}
    assert not any(p.requires_grad for k, p in roles.base.named_parameters() if "lora_" not in k)
    assert not any(module.training for module in roles.base.modules())


def test_dropout_is_off_even_in_training_mode() -> None:
    roles = four()
    roles.base.train()
    assert torch.equal(outputs(roles, "policy"), outputs(roles, "policy"))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_recomputed_layers_give_the_same_gradient_from_less_memory(architecture: str) -> None:
    saved: list[int] = []

    def gradient(recompute: bool) -> list[Tensor]:
        roles = four(architecture)
        if recompute:
            roles.recompute_layers()
        assert [r.ids for r in sample(roles.base, temperature=0)] == greedy  # a cache is still used
        with roles.use("policy") as model:
            kept: list[Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
                loss = response_logprobs(model, BATCH).sum()
            saved.append(sum(t.numel() for t in kept))
            loss.backward()
        assert not any(module.training for module in roles.base.modules())
        return [p.grad for p in roles.parameters("policy")]

    greedy = [r.ids for r in sample(tiny(architecture), temperature=0)]
    pairs = list(zip(gradient(False), gradient(True), strict=True))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs)
    assert saved[1] < saved[0] / 2


def test_a_head_on_the_adapter_of_another_role() -> None:
    roles = four()
    roles.add_head("critic", torch.randn(1, 32), on="policy", trainable=True)
    scramble(roles, "policy", 7)
    assert torch.equal(outputs(roles, "critic"), outputs(roles, "policy"))
    assert list(roles.named_parameters("critic")) == ["head.weight", "head.bias"]
    assert roles.adapter_of("critic") == roles.adapter_of("policy") == "policy"
    before = roles.fingerprint("critic"), roles.fingerprint("policy")
    with roles.use("policy") as model:
        roles.head("critic", response_hidden(model, BATCH)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name in ("critic", "policy") for p in roles.parameters(name))
    torch.optim.SGD(roles.parameters("critic"), lr=0.1).step()
    assert roles.fingerprint("critic") != before[0]
    assert roles.fingerprint("policy") == before[1]
    roles.load_state("critic", {key: torch.zeros_like(value) for key, value in roles.state("critic").items()})
    assert not any(p.any() for p in roles.parameters("critic"))
    with pytest.raises(ValueError, match="add it once"):
        roles.add_head("critic", torch.zeros(1, 32), on="policy")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_bfloat16_base_with_float32_adapters_and_heads(architecture: str) -> None:
    """Products are bfloat16, the adapters' too; heads and gradients are float32, and near those of a float32 base."""
    found: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
    products: set[torch.dtype] = set()
    for dtype in (torch.float32, torch.bfloat16):
        roles = four(architecture, dtype)
        products.clear()
        for layer in roles._layers:
            layer.lora_A["role_policy"].register_forward_hook(lambda _m, _i, output: products.add(output.dtype))
        with roles.use("policy") as model:
            states, logits = response_states(model, BATCH)
            values = roles.head("reward", states)
            assert not torch.is_autocast_enabled("cpu")  # the backward pass must not be in it
            token_logprobs(logits, BATCH.ids[BATCH.places()]).sum().backward()
        assert products == {dtype}
        assert values.dtype == torch.float32
        assert all(p.grad.dtype == torch.float32 for p in roles.parameters("policy"))
        found[dtype] = outputs(roles, "policy"), torch.cat([p.grad.flatten() for p in roles.parameters("policy")])
    (logprobs, gradient), (rounded, near) = found.values()
    assert 0 < (logprobs - rounded).abs().max() < 0.15  # weights of ten times the usual size
    assert torch.nn.functional.cosine_similarity(gradient, near, dim=0) > 0.99


def test_recomputing_another_roles_layers_is_refused() -> None:
    """PEFT would do so and say nothing: the gradient has the right shape and no relation to the right one."""
    roles = four()
    roles.recompute_layers()
    with roles.use("policy") as model:
        loss = response_logprobs(model, BATCH).sum()
    with roles.use("value"), pytest.raises(RuntimeError, match="backward pass of role 'policy' came after use"):
        loss.backward()


def test_misuse_is_refused() -> None:
    roles = four()
    with roles.use("policy"), pytest.raises(RuntimeError, match="'policy' is in use"), roles.use("value"):
        pass
    with pytest.raises(KeyError, match="no role 'critic'; there are reference, policy"), roles.use("critic"):
        pass
    with pytest.raises(ValueError, match="add it once"):
        roles.add("policy", lora=LORA)
    with pytest.raises(ZeroDivisionError), roles.use("policy"):
        raise ZeroDivisionError
    with torch.no_grad():  # an error leaves no adapter active
        assert torch.equal(response_logprobs(roles.base, BATCH), outputs(Roles(tiny("llama")), None))
    next(layer for layer in roles._layers).merge(adapter_names=["role_policy"])
    with pytest.raises(RuntimeError, match="merged"), roles.use("reference"):
        pass


def test_a_reward_adapter_of_peft_is_read_without_its_head(tmp_path: Path) -> None:
    """SEQ_CLS, as TRL's trainer saves it: same hidden states and same scores from the causal model's base."""
    causal = tiny("llama")
    classifier = transformers.LlamaForSequenceClassification(causal.config)
    classifier.config.num_labels = 1
    classifier.score = torch.nn.Linear(32, 1, bias=False)
    classifier.model.load_state_dict(causal.model.state_dict())
    config = LoraConfig(
        r=3, target_modules="all-linear", task_type="SEQ_CLS", lora_dropout=0.2, init_lora_weights=False
    )
    peft = get_peft_model(classifier, config).eval()
    peft.save_pretrained(tmp_path)
    roles = Roles(causal)
    roles.add("reward", folder=tmp_path)
    roles.set_head("reward", read_score_head(tmp_path))
    with torch.no_grad(), roles.use("reward") as model:
        scores = roles.head("reward", last_hidden(model, BATCH))
    for row in range(2):
        length = int(BATCH.prompt_lengths[row] + BATCH.response_mask[row].sum())
        with torch.no_grad():
            expected = peft(input_ids=BATCH.ids[row : row + 1, :length]).logits.item()
        assert scores[row].item() == pytest.approx(expected, abs=1e-5)


def test_saved_adapters_say_where_they_belong_and_follow_the_umask(tmp_path: Path) -> None:
    roles = four()
    before = os.umask(0o027)
    try:
        roles.save("policy", tmp_path / "adapter", model_name="org/model")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "adapter").iterdir()}
    assert modes == {"adapter_model.safetensors": 0o640, "adapter_config.json": 0o640}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/model"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["inference_mode"] is True
    assert config["lora_dropout"] == 0
    assert str(tmp_path) not in json.dumps(config)


def test_foreign_and_broken_adapters_are_refused(tmp_path: Path) -> None:
    four("qwen3").save("policy", tmp_path / "qwen")
    with pytest.raises(ArtifactError, match="does not fit this base"):
        Roles(tiny("gpt2")).add("policy", folder=tmp_path / "qwen")
    with pytest.raises(ArtifactError, match="not a LoRA adapter"):
        Roles(tiny("llama")).add("policy", folder=tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"lora.targets: .*q_prj"):
        Roles(tiny("llama")).add("policy", lora=LoraSection(targets=["q_prj"]))
    weights = tmp_path / "qwen" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="not a LoRA adapter"):
        Roles(tiny("qwen3")).add("policy", folder=tmp_path / "qwen")


def test_a_fingerprint_sees_one_bit() -> None:
    roles = four()
    for name in (None, "reward"):
        before = roles.fingerprint(name)
        tensor = next(iter(roles.base.parameters())) if name is None else roles.parameters(name)[-1]
        with torch.no_grad():
            tensor.view(torch.int32).flatten()[0] ^= 1
        assert roles.fingerprint(name) != before
        with torch.no_grad():
            tensor.view(torch.int32).flatten()[0] ^= 1
        assert roles.fingerprint(name) == before
