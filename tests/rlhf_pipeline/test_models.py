"""Loading, saving and scoring; every way a model folder can be unusable has its own message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig

from rlhf_pipeline import model_source, models
from rlhf_pipeline.config import LoraSection, ModelConfig
from rlhf_pipeline.errors import ArtifactError, ModelError
from rlhf_pipeline.reward_models import RewardModel, load_reward_model
from tests import tiny_models

SEQUENCES = [[3, 4, 5, 6], [7, 8], [9] * 30, [10, 11, 12], [13]]


@pytest.fixture
def llama(tmp_path: Path) -> ModelConfig:
    return tiny_models.make("llama", tmp_path / "llama")


def randomise(peft_model: PeftModel) -> None:
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name or "score.modules_to_save" in name:
            parameter.data.normal_(std=0.2)


def make_policy(model: ModelConfig, folder: Path) -> Path:
    policy = models.add_adapter(models.load_causal_lm(model, device="cpu"), LoraSection(rank=4), task="CAUSAL_LM")
    randomise(policy)
    models.save_adapter(policy, folder / "adapter", base_name=model.name)
    return folder


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_reward_model_reads_the_same_scores_after_saving_in_any_batch(tmp_path, family):
    model = tiny_models.make(family, tmp_path / "base")
    classifier = models.load_classifier(model, device="cpu")
    trained = models.add_adapter(classifier, LoraSection(rank=4), task="SEQ_CLS")
    randomise(trained)
    before = RewardModel(trained).score(SEQUENCES, batch_size=2)
    models.save_adapter(trained, tmp_path / "rm" / "adapter", base_name=model.name)

    loaded = load_reward_model(model, tmp_path / "rm", device="cpu")
    assert loaded.score(SEQUENCES, batch_size=2) == before
    assert len(set(before)) == len(SEQUENCES)
    alone = [loaded.score([ids])[0] for ids in SEQUENCES]
    assert alone == pytest.approx(before, abs=1e-5)
    head = models.read_score_head(tmp_path / "rm" / "adapter")
    assert head.shape == (1, 32)
    assert head.any()


def test_score_is_that_of_transformers_at_the_last_token(llama, tmp_path):
    torch.manual_seed(0)
    reference = AutoModelForSequenceClassification.from_pretrained(llama.name, num_labels=1)
    reference.config.pad_token_id = 5
    reference.save_pretrained(tmp_path / "rm" / "model")
    padded = torch.full((len(SEQUENCES), 30), 5)
    for row, ids in enumerate(SEQUENCES):
        padded[row, : len(ids)] = torch.tensor([i if i != 5 else 6 for i in ids])
    with torch.no_grad():
        expected = reference(padded, attention_mask=(padded != 5).long()).logits[:, 0].tolist()
    scores = load_reward_model(llama, tmp_path / "rm", device="cpu").score(
        [[i if i != 5 else 6 for i in ids] for ids in SEQUENCES]
    )
    assert scores == pytest.approx(expected, abs=1e-6)


def test_end_token_counts_even_where_it_is_the_pad_token(llama):
    classifier = models.load_classifier(llama, device="cpu")
    torch.nn.init.normal_(classifier.score.weight)
    classifier.config.pad_token_id = 2
    reward_model = RewardModel(classifier)
    with_end, without = reward_model.score([[0, 9, 10, 2], [0, 9, 10]])
    assert abs(with_end - without) > 1e-3


def test_head_stays_float32_over_a_bfloat16_backbone(llama):
    classifier = models.load_classifier(llama.model_copy(update={"dtype": "bfloat16"}), device="cpu")
    assert classifier.model.embed_tokens.weight.dtype == torch.bfloat16
    assert classifier.score.weight.dtype == torch.float32
    assert not classifier.score.weight.any(), "a new head starts at zero, not at random"
    assert RewardModel(classifier).score([[1, 2]]) == [0.0]


def test_an_encoders_head_is_drawn_as_transformers_does(tmp_path):
    encoder = tiny_models.make_encoder(tmp_path)
    torch.manual_seed(3)
    ours = models.load_classifier(encoder, device="cpu")
    torch.manual_seed(3)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    assert ours.classifier.weight.std().item() == pytest.approx(0.02, rel=0.5)
    assert torch.equal(ours.classifier.weight, theirs.classifier.weight), "they start alike"


def test_classifier_takes_over_the_policys_adapter(llama, tmp_path):
    policy = make_policy(llama, tmp_path / "sft")
    copy = models.classifier_from_policy(models.load_classifier(llama, device="cpu"), policy / "adapter")
    saved = load_file(policy / "adapter" / "adapter_model.safetensors")
    own = {name.replace(".default", ""): tensor for name, tensor in copy.named_parameters()}
    assert saved
    assert all(torch.equal(own[name], tensor) for name, tensor in saved.items())
    trainable = {name for name, parameter in copy.named_parameters() if parameter.requires_grad}
    assert "base_model.model.score.modules_to_save.default.weight" in trainable
    assert len(trainable) == len(saved) + 1


def test_adapter_of_another_shape_is_refused(llama, tmp_path):
    policy = make_policy(llama, tmp_path / "sft")
    path = policy / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)
    with pytest.raises(ArtifactError, match="does not fit"):
        models.classifier_from_policy(models.load_classifier(llama, device="cpu"), policy / "adapter")


def test_policy_is_loaded_on_its_base_and_can_be_merged(llama, tmp_path):
    folder = make_policy(llama, tmp_path / "sft")
    ids = torch.tensor([[0, 9, 10, 11]])
    base = models.load_policy(llama, None, device="cpu")
    policy = models.load_policy(llama, folder, device="cpu")
    merged = models.load_merged(llama, folder, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        assert not torch.allclose(base(ids).logits, policy(ids).logits, atol=1e-3)
        torch.testing.assert_close(merged(ids).logits, policy(ids).logits, atol=1e-5, rtol=1e-5)
    assert all(p.requires_grad for p in merged.parameters())
    assert not any(p.requires_grad for p in policy.parameters())
    models.save_full(merged, tmp_path / "full" / "model")
    assert models.full_model(tmp_path / "full") == tmp_path / "full" / "model"
    again = models.load_policy(llama, tmp_path / "full", device="cpu")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, merged(ids).logits)


def test_saved_adapter_names_the_base_as_the_user_does(llama, tmp_path):
    policy = models.add_adapter(models.load_causal_lm(llama, device="cpu"), LoraSection(rank=2), task="CAUSAL_LM")
    models.save_adapter(policy, tmp_path / "a", base_name="Qwen/Qwen3-0.6B")
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "Qwen/Qwen3-0.6B"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_policy_adapter_is_no_reward_model(llama, tmp_path):
    with pytest.raises(ArtifactError, match="no score head"):
        load_reward_model(llama, make_policy(llama, tmp_path / "sft"), device="cpu")
    with pytest.raises(ArtifactError, match="neither adapter/ nor model/"):
        models.load_policy(llama, tmp_path, device="cpu")


def test_identity_changes_with_the_weights_and_not_with_the_place(llama, tmp_path):
    first = models.base_identity(llama)
    moved = tmp_path / "moved"
    shutil.copytree(llama.name, moved)
    same = models.base_identity(ModelConfig(name=str(moved)))
    assert same["digest"] == first["digest"]
    path = moved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert models.base_identity(ModelConfig(name=str(moved)))["digest"] != first["digest"]


def broken(llama: ModelConfig, folder: Path) -> Path:
    shutil.copytree(llama.name, folder)
    return folder


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def incomplete(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, path, metadata={"format": "pt"})


def of_another_shape(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 64}))


def masked(folder: Path) -> None:
    BertConfig(hidden_size=8, num_attention_heads=2, architectures=["BertForMaskedLM"]).save_pretrained(folder)


def unknown(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no_such_architecture"}')


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def adapter_only(folder: Path) -> None:
    without_config(folder)
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (pickled, "pickle files"),
        (without_weights, "no weights"),
        (without_config, "no config.json"),
        (adapter_only, "holds an adapter"),
        (truncated, "cannot be loaded"),
        (incomplete, "1 missing"),
        (of_another_shape, "cannot be loaded|of another shape"),
        (masked, "not a causal language model: BertForMaskedLM"),
        (unknown, "config.json cannot be used"),
        (no_json, "config.json cannot be used"),
    ],
)
def test_unusable_folders(llama, tmp_path, damage, words):
    folder = broken(llama, tmp_path / "broken")
    damage(folder)
    with pytest.raises(ModelError, match=words) as error:
        models.load_causal_lm(ModelConfig(name=str(folder)), device="cpu")
    assert str(folder) in str(error.value)


def test_folder_that_is_not_there():
    with pytest.raises(ModelError, match="there is no such folder"):
        models.load_causal_lm(ModelConfig(name="./no/such/folder"), device="cpu")


def test_hub_name_without_a_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        model_source.model_folder(ModelConfig(name="nobody/nothing-of-this-name"))
    with pytest.raises(ModelError, match="neither a folder here nor a model on the hub"):
        model_source.model_folder(ModelConfig(name="two words"))


def test_four_bit_needs_cuda(llama):
    with pytest.raises(ModelError, match="4-bit weights need CUDA"):
        models.load_causal_lm(llama.model_copy(update={"quantization": "4bit"}), device="cpu")


def test_auto_precision():
    model = ModelConfig(name="x")
    assert models.dtype_of(model, "cpu") == torch.float32
    assert models.dtype_of(model, "cuda") == torch.bfloat16
    assert models.dtype_of(model.model_copy(update={"dtype": "float32"}), "cuda") == torch.float32
