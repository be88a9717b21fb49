"""Adapters go to PEFT and come back: the same logits, gradients and merged weights, for GPT-2 and Llama."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from gptlab.data.tokenizers import CharTokenizer
from gptlab.formats import open_model, writing
from gptlab.formats.description import ModelInfo
from gptlab.formats.huggingface import open_folder
from gptlab.formats.huggingface_config import family_of
from gptlab.formats.huggingface_families import FAMILIES
from gptlab.formats.peft import piece_rows, read_adapter, write_adapter
from gptlab.models import GPT, GPTConfig
from gptlab.models.lora import (
    LoRAConfig,
    adapter_state,
    adapters,
    add_adapters,
    largest_change,
    merged,
    train_new_rows,
    without_adapters,
)
from gptlab.system.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target module is `torch.nn.Linear`"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter"),
]
LETTERS = "\n ,.abcdefghijklmnopqrstuvwxyz"
V, T, B = len(LETTERS), 12, 3
GPT2: dict[str, Any] = {"n_head": 3, "n_embd": 24}
# Grouped heads that are wider together than n_embd: q_proj, k_proj and v_proj have rows of their own numbers.
LLAMA: dict[str, Any] = {"n_head": 4, "n_kv_head": 2, "n_embd": 24, "head_dim": 8, "norm": "rmsnorm", "pos": "rope"}
LLAMA |= {"mlp": "swiglu", "bias": False, "tied": False}
NEOX = GPT2 | {"pos": "rope", "rope_fraction": 0.5, "parallel": True, "parallel_norms": True, "tied": False}
NANOCHAT = LLAMA | {"norm_weight": False, "embed_norm": True, "qk_norm": True, "mlp": "relu2"}
BASES = {"gpt2": GPT2, "gpt2 untied": GPT2 | {"tied": False}, "llama": LLAMA, "llama tied": LLAMA | {"tied": True}}
BASES |= {"neox": NEOX, "nanochat": NANOCHAT}
BLOCKS = ("attn.c_proj", "mlp.c_proj")


def base(name: str) -> GPT:
    torch.manual_seed(4)
    model = GPT(GPTConfig(V, T, n_layer=2, **BASES[name]))
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn(each.shape), alpha=0.05)
    return model.eval()


def adapted(name: str, config: LoRAConfig) -> GPT:
    model = base(name)
    add_adapters(model, config)
    generator = torch.Generator().manual_seed(6)
    for tensor in adapter_state(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model


def tokens(seed: int = 1) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def export(model: GPT, folder: Path) -> Any:
    """Export a model with our tokenizer, which there has two ids more, and open it with transformers."""
    folder.mkdir()
    info = ModelInfo(folder, None, {}, {}, None, "test")
    writing.write_hf(model, CharTokenizer(LETTERS), info, folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def exported_adapter(model: GPT, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Export base and adapter apart, put them together by PEFT, and return that model and the adapter's config."""
    theirs = export(without_adapters(model), folder / "base")
    adapter = folder / "adapter"
    adapter.mkdir()
    write_adapter(model, adapter, base=str(folder / "base"), vocab_size=theirs.config.vocab_size)
    return peft.PeftModel.from_pretrained(theirs, adapter, is_trainable=True).eval(), json.loads(
        (adapter / "adapter_config.json").read_text()
    )


CASES = {
    "gpt2 c_attn": ("gpt2", LoRAConfig(3, 5.0, ("c_attn", *BLOCKS, "c_fc"))),
    "gpt2 q and v": ("gpt2", LoRAConfig(3, 5.0, ("q", "v", "c_fc"))),
    "gpt2 q, k, v, rslora": ("gpt2", LoRAConfig(3, 5.0, ("q", "k", "v", "mlp.c_proj"), rslora=True)),
    "gpt2 k": ("gpt2", LoRAConfig(2, 7.0, ("k",))),
    "gpt2 head and embedding": ("gpt2 untied", LoRAConfig(3, 5.0, ("c_attn", "lm_head", "wte"))),
    "gpt2 untied head": ("gpt2", LoRAConfig(3, 5.0, ("lm_head",), untie=True)),
    "llama q and v": ("llama", LoRAConfig(3, 5.0, ("q", "v"))),
    "llama c_attn, c_fc": ("llama", LoRAConfig(3, 5.0, ("c_attn", "c_fc", *BLOCKS), rslora=True)),
    "llama all": ("llama", LoRAConfig(4, 8.0, ("q", "k", "v", *BLOCKS, "gate", "up", "lm_head", "wte"))),
    "llama tied": ("llama tied", LoRAConfig(4, 8.0, ("k", "up"))),
    "neox": ("neox", LoRAConfig(3, 5.0, ("c_attn", *BLOCKS, "c_fc", "lm_head", "wte"))),
    "nanochat": ("nanochat", LoRAConfig(3, 5.0, ("c_attn", *BLOCKS, "c_fc", "lm_head"))),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_what_we_do(case: str, tmp_path: Path) -> None:
    """Logits, gradients of the loss by what the adapters read, and the merged model, to 1e-5 in fp32.

    Faults 19 (rows of grouped and of wide heads), 20 (an untied head, exported as untied), 21 (merging).
    """
    model = adapted(*CASES[case])
    theirs, about = exported_adapter(model, tmp_path)
    assert about["r"] == CASES[case][1].rank
    logits, others = model(tokens()), theirs(input_ids=tokens()).logits[..., :V]
    torch.testing.assert_close(logits, others, rtol=1e-5, atol=1e-5)
    assert (logits - base(CASES[case][0])(tokens())).abs().max() > 0.05
    for each in (logits, others):
        F.cross_entropy(each.flatten(0, 1), tokens(2).flatten()).backward()
    check_gradients(model, theirs)
    plain = merged(model)
    assert largest_change(model, plain, tokens()) < 1e-5
    unloaded = theirs.merge_and_unload()
    torch.testing.assert_close(plain(tokens()), unloaded(input_ids=tokens()).logits[..., :V], rtol=1e-5, atol=1e-5)


def check_gradients(model: GPT, theirs: Any) -> None:
    """Compare the gradients of all A and B: where one side has several products for one, by the chain rule."""
    family = FAMILIES[family_of(model.config)]
    for name, layer in adapters(model).items():
        for part, addition in layer.additions().items():
            of_a, of_b = torch.zeros_like(addition.A), torch.zeros_like(addition.B)
            first, last = layer.rows[part]
            for module, (start, stop) in piece_rows(model, name, family).items():
                low, high = max(start, first), min(stop, last)
                if low >= high:
                    continue
                a, b = their_gradients(theirs.get_submodule(f"base_model.model.{module}"))
                order = family.row_order(name, model.config)
                b = b if order is None else b[order[start:stop] - start]
                rank = len(addition.A)
                before = [
                    each for each in layer.additions() if layer.rows[each][1] <= first and layer.rows[each][1] > start
                ]
                columns = slice(rank * len(before), rank * len(before) + rank)
                of_a += a[columns, : of_a.shape[1]]
                of_b[low - first : high - first] += b[low - start : high - start, columns]
            torch.testing.assert_close(addition.A.grad, of_a, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(addition.B.grad, of_b, rtol=1e-5, atol=1e-5)
            assert of_b.abs().max() > 1e-4


def their_gradients(module: Any) -> tuple[Tensor, Tensor]:
    if module.lora_embedding_A:
        return module.lora_embedding_A["default"].grad, module.lora_embedding_B["default"].grad
    return module.lora_A["default"].weight.grad, module.lora_B["default"].weight.grad


def write_theirs(name: str, folder: Path, **settings: Any) -> tuple[Any, Path]:
    """Let PEFT put adapters on an export, shake and save them; returns its model and the folder."""
    theirs = export(base(name), folder / "base")
    adapter = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter_name, each in adapter.named_parameters():
            if "lora_" in parameter_name:
                each.copy_(torch.randn(each.shape, generator=generator) * 0.2)
    adapter.save_pretrained(folder / "adapter")
    return adapter, folder / "adapter"


CONV1D = {"fan_in_fan_out": True}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", CONV1D | {"r": 3, "lora_alpha": 7, "target_modules": ["c_attn", "c_fc", "mlp.c_proj"]}),
    "gpt2 patterns": (
        "gpt2",
        CONV1D
        | {"r": 3, "lora_alpha": 7, "target_modules": ["c_attn", "c_proj"], "use_rslora": True}
        | {"rank_pattern": {"attn.c_proj": 5, "^transformer.h.1.attn.c_attn": 2}, "alpha_pattern": {"c_attn": 11}},
    ),
    "gpt2 one block": ("gpt2", CONV1D | {"r": 2, "target_modules": ["c_attn"], "layers_to_transform": [1]}),
    "gpt2 head of a tied model": ("gpt2", {"r": 2, "target_modules": ["lm_head"]}),
    "gpt2 embedding of a tied model": ("gpt2", CONV1D | {"r": 2, "target_modules": ["wte", "c_attn"]}),
    "llama": ("llama", {"r": 4, "lora_alpha": 3, "target_modules": "all-linear", "lora_dropout": 0.25}),
    "llama patterns": (
        "llama",
        {"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj", "embed_tokens", "lm_head"], "lora_dropout": 0.1}
        | {"rank_pattern": {"v_proj": 6, "layers.1.mlp.up_proj": 1}, "alpha_pattern": {"q_proj": 2, "lm_head": 9}},
    ),
    "llama tied": ("llama tied", {"r": 4, "target_modules": ["k_proj", "down_proj"], "use_rslora": True}),
    "neox": ("neox", {"r": 4, "target_modules": "all-linear"}),
    "nanochat": ("nanochat", {"r": 4, "target_modules": ["q_proj", "v_proj", "fc2", "lm_head"]}),
}


@pytest.mark.parametrize("case", THEIRS)
def test_an_adapter_of_peft_is_read(case: str, tmp_path: Path) -> None:
    """On the base as we have it and as it comes back from the export, which has two ids more."""
    name, settings = THEIRS[case]
    theirs, folder = write_theirs(name, tmp_path, **settings)
    logits = theirs(input_ids=tokens()).logits[..., :V]
    back = open_folder(tmp_path / "base", tmp_path)[0]
    assert isinstance(back, GPT)
    for model in (base(name), back):
        before = torch.get_rng_state()
        read_adapter(folder, model)
        assert torch.equal(torch.get_rng_state(), before)
        found = model(tokens())[..., :V]
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(merged(model)(tokens())[..., :V], logits, rtol=1e-5, atol=1e-5)
    assert (logits - base(name)(tokens())).abs().max() > 0.01
    assert model.lora is not None
    has_head = "lm_head" in model.lora.targets
    assert model.lora.dropout == (0.0 if has_head else settings.get("lora_dropout", 0.0))
    assert not (model.config.tied and {"lm_head", "wte"} & set(model.lora.targets))


LEAVE_AS_OTHERS = {  # families that are read only, or leave as another
    "opt": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "ffn_dim": 40, "pad_token_id": None},
    "gpt_neo": {"hidden_size": 24, "num_heads": 3, "num_layers": 2, "attention_types": [[["global"], 2]]},
    "gemma": {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    | {"num_hidden_layers": 2, "intermediate_size": 40, "pad_token_id": None},
}


def their_base(kind: str, folder: Path) -> Any:
    torch.manual_seed(4)
    sizes = {"vocab_size": V, "max_position_embeddings": T} | LEAVE_AS_OTHERS[kind]
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **sizes)).eval()
    theirs.save_pretrained(folder)
    writing.write_tokenizer(CharTokenizer(LETTERS), T, folder, V)
    return theirs


@pytest.mark.parametrize("kind", LEAVE_AS_OTHERS)
def test_an_adapter_on_a_model_that_leaves_as_another_family_is_read(kind: str, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapter = peft.get_peft_model(their_base(kind, tmp_path / "base"), config).eval()
    with torch.no_grad():
        for name, each in adapter.named_parameters():
            each.add_(torch.randn(each.shape), alpha=0.2 * ("lora_" in name))
    adapter.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapter.save_pretrained(tmp_path / "adapter")
    model, _, info = open_model.load_model(tmp_path / "adapter")
    assert info.family == kind
    torch.testing.assert_close(model(tokens()), adapter(input_ids=tokens()).logits, rtol=1e-5, atol=1e-5)
    assert (model(tokens()) - open_folder(tmp_path / "base", tmp_path)[0](tokens())).abs().max() > 0.01


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["embed_tokens"]}, {"target_modules": ["q_proj"], "trainable_token_indices": [3]}]
)
def test_an_adapter_on_gemmas_embedding_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, task_type="CAUSAL_LM", **settings)
    adapter = peft.get_peft_model(their_base("gemma", tmp_path / "base"), config)
    adapter.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"embedding or the head of a GemmaForCausalLM, .*: merge it first \(PEFT's"):
        open_model.load_model(tmp_path / "adapter")


def test_ours_comes_back(tmp_path: Path) -> None:
    """What one gptlab writes another reads, with the config and the tensors to the bit where nothing is stacked."""
    model = adapted(*CASES["llama all"])
    write_adapter(model, tmp_path)
    again = base("llama")
    read_adapter(tmp_path, again)
    assert model.lora is not None
    assert again.lora is not None
    assert (again.lora.rank, again.lora.alpha) == (model.lora.rank, model.lora.alpha)
    assert set(again.lora.targets) == set(model.lora.targets)
    state = adapter_state(again)
    assert all(torch.equal(state[name], tensor) for name, tensor in adapter_state(model).items())


def test_the_rest_of_a_larger_rank_can_still_learn(tmp_path: Path) -> None:
    """Rows of A beside zeros in B have a gradient for B; if both were zeros, none would ever come."""
    _, folder = write_theirs("llama", tmp_path, r=2, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 4})
    model = base("llama")
    read_adapter(folder, model)
    F.cross_entropy(model(tokens()).flatten(0, 1), tokens(2).flatten()).backward()
    q = adapters(model)["h.0.attn.c_attn"].additions()["q"]
    assert not q.B[:, 2:].any()
    assert q.B.grad is not None
    assert q.B.grad[:, 2:].abs().max() > 1e-5


def changed(**settings: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda about, state: about.update(settings)


def renamed(about: dict[str, Any], state: dict[str, Tensor]) -> None:
    state["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 24)


def cut(about: dict[str, Any], state: dict[str, Tensor]) -> None:
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"
    state[name] = state[name][:-1].clone()


def lost(about: dict[str, Any], state: dict[str, Tensor]) -> None:
    del state["base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"]


def other_base(about: dict[str, Any], state: dict[str, Tensor]) -> None:
    state["base_model.model.lm_head.base_layer.weight"] = torch.zeros(V, 24)


def numberless(about: dict[str, Any], state: dict[str, Tensor]) -> None:
    state["base_model.model.lm_head.base_layer.weight"] = torch.zeros(())


def wider_base(about: dict[str, Any], state: dict[str, Tensor]) -> None:
    state["base_model.model.lm_head.base_layer.weight"] = torch.zeros(V, 25)


def biased(about: dict[str, Any], state: dict[str, Tensor]) -> None:
    state["base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"] = torch.zeros(64, 24)


def emptied(about: dict[str, Any], state: dict[str, Tensor]) -> None:
    state.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(bias="all"), r"adapter_config.json: this adapter changes more than .*bias=all; merge it first"),
        (changed(modules_to_save=["lm_head"]), r"modules_to_save=\['lm_head'\]; merge it first"),
        (changed(use_dora=True), r"use_dora=True"),
        (changed(init_lora_weights="pissa"), r"init_lora_weights=pissa"),
        (changed(init_lora_weights=[1]), r"init_lora_weights=\[1\]"),
        (changed(peft_type="IA3"), r"peft_type=IA3: gptlab reads LORA"),
        (changed(r=0), r"r=0: must be a number above 0"),
        (changed(lora_alpha="8"), r"lora_alpha=8: must be a number above 0"),
        (changed(lora_alpha=10**400), r"lora_alpha=1000.*: must be a number above 0 and below 1,000,000,000"),
        (changed(lora_dropout=1.5), r"lora_dropout=1.5: must be at least 0 and below 1"),
        (changed(alpha_pattern={"(a+)+b": 3}), r"alpha_pattern: \(a\+\)\+b=3: must be the name of a module"),
        (changed(alpha_pattern={"q_proj": True}), r"alpha_pattern: q_proj=True: must be the name of a module and a"),
        (changed(alpha_pattern=[1]), r"alpha_pattern: \[1\]=None: must be the name of a module"),
        (renamed, r"it has base_model.model.model.layers.7.self_attn.q_proj.*: it belongs on another one"),
        (biased, r"it has base_model.model.model.layers.0.mlp.up_proj.base_layer.*: it belongs on another one"),
        (cut, r"v_proj.lora_B is \[15, 2\] and must be \[16, 2\]"),
        (lost, r"v_proj.lora_A is missing"),
        *((each, r"it brings \S+lm_head.base_layer.weight, which is not that") for each in (other_base, numberless)),
        (wider_base, r"it brings \S+lm_head.base_layer.weight, which is not that of this model"),
        (emptied, r"it has no adapters"),
    ],
)
def test_what_our_adapters_cannot_express_is_refused_in_words(change: Any, message: str, tmp_path: Path) -> None:
    write_adapter(adapted("llama", LoRAConfig(2, 4.0, ("q", "v"))), tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    state = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    change(about, state)
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    safetensors.torch.save_file(state, tmp_path / "adapter_model.safetensors")
    model = base("llama")
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path, model)
    assert torch.equal(model(tokens()), base("llama")(tokens()))


@pytest.mark.parametrize("target", ["wte", "q", "lm_head"])
@pytest.mark.parametrize("axes", [0, 1, 3])
def test_what_is_no_matrix_is_refused(target: str, axes: int, tmp_path: Path) -> None:
    """Of tables of tokens the rows that only the export has are cut off."""
    write_adapter(adapted("llama", LoRAConfig(2, 4.0, (target,))), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = safetensors.torch.load_file(file)
    for name, tensor in state.items():
        safetensors.torch.save_file(state | {name: torch.zeros([3, 2, 2][:axes], dtype=tensor.dtype)}, file)
        with pytest.raises(UserError, match=rf"lora_[AB] is {re.escape(str([3, 2, 2][:axes]))} and must be a matrix"):
            read_adapter(tmp_path, base("llama"))


def test_an_adapter_of_another_family_or_without_weights_is_refused(tmp_path: Path) -> None:
    write_adapter(adapted("llama", LoRAConfig(2, 4.0)), tmp_path)
    with pytest.raises(UserError, match="it belongs on another one"):
        read_adapter(tmp_path, base("gpt2"))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model.safetensors or adapter_model.bin"):
        read_adapter(tmp_path, base("llama"))
    with pytest.raises(ValueError, match="the model has no adapters"):
        write_adapter(base("llama"), tmp_path)


# Rows of single tokens.


def test_a_table_with_an_adapter_and_rows_of_new_tokens_is_refused(tmp_path: Path) -> None:
    model = base("gpt2 untied")
    add_adapters(model, LoRAConfig(3, 5.0, ("q", "wte")))
    train_new_rows(model, V - 2)
    with pytest.raises(UserError, match=r"lora.targets: PEFT has no adapter of wte beside rows of new tokens"):
        write_adapter(model, tmp_path)


@pytest.mark.parametrize("given", [[0, V], [0], [True, 1], ["0", 1], {"lm_head": [0, 1]}, "01", None])
def test_rows_of_tokens_that_the_model_lacks_are_refused(given: Any, tmp_path: Path) -> None:
    model = base("gpt2")
    add_adapters(model, LoRAConfig(3, 5.0, ("q",)))
    train_new_rows(model, V - 2)
    write_adapter(model, tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    assert about["trainable_token_indices"] == {"wte": [V - 2, V - 1]}
    read_adapter(tmp_path, base("gpt2"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(about | {"trainable_token_indices": given}))
    with pytest.raises(UserError, match="do not fit trainable_token_indices and this model"):
        read_adapter(tmp_path, base("gpt2"))


def test_rows_of_any_tokens_of_the_embedding_are_read(tmp_path: Path) -> None:
    """As PEFT writes those that were not new: a list of ids is of the embedding."""
    model = base("llama")
    add_adapters(model, LoRAConfig(3, 5.0, ("q",)))
    train_new_rows(model, V - 2)
    write_adapter(model, tmp_path)
    state = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in state if "embed_tokens" in name)
    (tmp_path / "adapter_model.safetensors").unlink()
    rows = torch.full((2, 24), 7.0)
    kept = {each: tensor for each, tensor in state.items() if "lora_" in each}
    safetensors.torch.save_file(kept | {name: rows}, tmp_path / "adapter_model.safetensors")
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(about | {"trainable_token_indices": [4, 1]}))
    found, before = base("llama"), base("llama")
    read_adapter(tmp_path, found)
    assert torch.equal(found.wte.weight[[4, 1]], rows)
    others = [i for i in range(V) if i not in (4, 1)]
    assert torch.equal(found.wte.weight[others], before.wte.weight[others])
    assert torch.equal(found.lm_head.weight, before.lm_head.weight)
