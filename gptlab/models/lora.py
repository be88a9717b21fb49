"""LoRA: a trained model stays as it is, and learns the product of two small matrices beside some of its own.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. Generation runs such a model as it is, or, faster, `merged`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from gptlab.models.gpt import GPT
from gptlab.models.low_rank import WHOLE, Adapted, AdaptedEmbedding, AdaptedLinear, NewRows
from gptlab.models.weights import assign, check_shapes, empty_model, is_tied
from gptlab.system.errors import UserError, did_you_mean

# A target's layer in a block or in the model, and which of the projections stacked there it is; None: all as one.
TARGETS: dict[str, tuple[str, int | None]] = {
    "c_attn": ("attn.c_attn", None),
    "q": ("attn.c_attn", 0),
    "k": ("attn.c_attn", 1),
    "v": ("attn.c_attn", 2),
    "attn.c_proj": ("attn.c_proj", None),
    "c_fc": ("mlp.c_fc", None),
    "gate": ("mlp.c_fc", 0),
    "up": ("mlp.c_fc", 1),
    "mlp.c_proj": ("mlp.c_proj", None),
    "lm_head": ("lm_head", None),
    "wte": ("wte", None),
}
OUTSIDE = ("lm_head", "wte")  # of the blocks; a tied model has one matrix for both


@dataclass(frozen=True)
class LoRAConfig:
    """The config group `lora`, checked.

    Raises:
        UserError: a value is out of range, or a target does not exist or is named twice.
    """

    rank: int
    """Rows of A and columns of B."""
    alpha: float
    """The product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q", "v")
    """Names of `TARGETS`: c_attn (one product for queries, keys and values) or q, k, v (one for each), ..."""
    dropout: float = 0.0
    """Dropout of what the products read; one mask for all parts of a layer."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, so that the best learning rate is the same for each rank (Kalajdzievski
    2023, https://arxiv.org/abs/2312.03732)."""
    untie: bool = False
    """Part the head from the embedding of a tied model, which a target lm_head or wte needs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise UserError(f"lora.rank={self.rank}: must be at least 1, or 0 for no adapters")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha={self.alpha}: must be above 0; twice the rank is usual")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout={self.dropout}: must be at least 0 and below 1")
        if not self.targets:
            raise UserError(f"lora.targets=[]: must be at least one of {', '.join(TARGETS)}")
        for target in self.targets:
            if target not in TARGETS:
                raise UserError(
                    f"lora.targets={target!s:.99}: no such layer; {did_you_mean(f'{target!s:.99}', TARGETS)}"
                )
        for one, other in combinations(self.targets, 2):
            (layer, part), (other_layer, other_part) = TARGETS[one], TARGETS[other]
            if layer == other_layer and (part == other_part or None in (part, other_part)):
                raise UserError(
                    f"lora.targets={','.join(self.targets)}: {one} and {other} are the same matrix; name it once, as a "
                    f"whole or by its parts"
                )
        if self.dropout and "lm_head" in self.targets:
            raise UserError(
                f"lora.dropout={self.dropout}: the head knows no dropout; use lora.dropout=0, or leave lm_head out of "
                f"lora.targets"
            )
        if self.untie and not set(OUTSIDE) & set(self.targets):
            raise UserError(f"lora.untie=true: changes nothing without {' or '.join(OUTSIDE)} in lora.targets")

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def add_adapters(model: GPT, config: LoRAConfig) -> None:
    """Put adapters into a model and freeze everything else; what the model computes stays the same to the bit.

    The first values of A come from torch's generator; B begins as zeros (of an embedding, A does). Optimizers treat the
    adapters as any matrix outside the blocks: AdamW trains them, and Muon, left without a matrix, refuses the model.

    Raises:
        UserError: the model is no GPT, or lacks a target; or its head and embedding are one matrix and a target.
    """
    if not isinstance(model, GPT):
        raise UserError(f"lora.rank={config.rank}: adapters are for a GPT, and this model is a {type(model).__name__}")
    if model.lora is not None:
        raise ValueError("the model has adapters already")
    layers = adapted_layers(model, config.targets)
    if model.config.tied and set(OUTSIDE) & set(config.targets):
        if not config.untie:
            raise UserError(
                f"lora.targets={','.join(config.targets)}: the head and the embedding of this model are one matrix "
                f"(model.tied=true), and an adapter of one alone would part them; leave {' and '.join(OUTSIDE)} out, "
                f"or part them with lora.untie=true"
            )
        model.lm_head.weight = nn.Parameter(model.wte.weight.detach().clone())
        model.config = dataclasses.replace(model.config, tied=False)
    elif config.untie:
        raise UserError("lora.untie=true: the head and the embedding of this model are apart already; leave it out")
    model.requires_grad_(False)
    for name, rows in layers.items():
        layer = model.get_submodule(name)
        adapted: Adapted
        if isinstance(layer, nn.Embedding):
            adapted = AdaptedEmbedding(layer, config.rank, config.scale)
        else:
            assert isinstance(layer, nn.Linear)
            adapted = AdaptedLinear(layer, rows, config.rank, config.scale)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, adapted)
    model.lora = config


def adapted_layers(model: GPT, targets: tuple[str, ...]) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the layers that get adapters, each with the parts that do: a part's first row, and the row after its last.

    Raises:
        UserError: the model has no such layer.
    """
    modules = dict(model.named_modules())
    layers: dict[str, dict[str, tuple[int, int]]] = {}
    for target in sorted(targets, key=list(TARGETS).index):
        path, part = TARGETS[target]
        for prefix in [""] if target in OUTSIDE else [f"h.{i}." for i in range(model.config.n_layer)]:
            layer = modules.get(prefix + path)
            if not isinstance(layer, (nn.Linear, nn.Embedding)):
                raise UserError(f"lora.targets={target}: this model has no {path}; leave it out")
            count = len(layer.weight)
            stacked = model.config.stacked.get(path.split(".")[-1], (count,))
            if part is not None and len(stacked) == 1:
                raise UserError(
                    f"lora.targets={target}: the {path} of model.mlp={model.config.mlp} has no parts; use c_fc"
                )
            start = sum(stacked[:part])
            rows = (0, count) if part is None else (start, start + stacked[part])
            layers.setdefault(prefix + path, {})[WHOLE if part is None else target] = rows
    return layers


def train_new_rows(model: GPT, known: int) -> None:
    """Train the rows of a model's new tokens whole, in each frozen table of tokens; all others stay as they are.

    New tokens begin alike, see `grow_vocabulary`; were their rows as frozen as the others, none could be told from
    another, nor learned as an end. What the model computes stays the same to the bit.

    Args:
        known: the number of tokens that are not new.
    """
    if known == model.config.vocab_size:
        return
    shared: NewRows | None = None
    for name in reversed(OUTSIDE):
        layer = getattr(model, name)
        if layer.weight.requires_grad:
            continue
        if not isinstance(layer, Adapted):
            wrapped = AdaptedEmbedding(layer, 0, 1.0) if name == "wte" else AdaptedLinear(layer, {}, 0, 1.0)
            setattr(model, name, layer := wrapped.train(layer.training))
        layer.new = shared if shared is not None and model.config.tied else NewRows(layer.weight, known)
        shared = layer.new


def adapters(model: nn.Module) -> dict[str, Adapted]:
    """Return the layers of a model that have adapters or rows of new tokens, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, Adapted)}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the adapters alone, and the rows of new tokens; not copies.

    Their names are those in the model's state dict; the rows of a tied model have two.
    """
    state: dict[str, Tensor] = {}
    for name, layer in adapters(model).items():
        for part, addition in layer.additions().items():
            state |= {f"{name}.lora.{part}.{matrix}": getattr(addition, matrix).detach() for matrix in ("A", "B")}
        if layer.new is not None:
            state[f"{name}.new.rows"] = layer.new.rows.detach()
    return state


@torch.no_grad()
def load_adapters(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what `adapter_state` returned into a model with the same adapters.

    Raises:
        UserError: names or shapes differ.
    """
    own = adapter_state(model)
    check_shapes(state, own)
    for name, tensor in own.items():
        tensor.copy_(state[name])


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let a model compute what it did before it had adapters, as the reference of DPO or of a KL penalty.

    The model's own dropout stays on in training mode.
    """
    layers = adapters(model).values()
    before = [each.active for each in layers]
    for each in layers:
        each.active = False
    try:
        yield
    finally:
        for each, active in zip(layers, before, strict=True):
            each.active = active


def without_adapters(model: GPT) -> GPT:
    """Return the model as it was before it had adapters, new tokens included; the two share the weights."""
    return _plain(model, {})


def merged(model: GPT) -> GPT:
    """Return a model without adapters that computes the same; the two share the weights that have no adapters.

    The sums are made in fp32 and cast once to the type of the weights. In bf16 the result differs from the model with
    its adapters by more than the sum's rounding, since small changes of large weights are lost; see `largest_change`.
    A model without adapters is returned itself.
    """
    if not adapters(model):
        return model
    return _plain(model, adapters(model))


@torch.no_grad()
def _plain(model: GPT, layers: Mapping[str, Adapted]) -> GPT:
    """Return the model without adapters, with those of these layers added to the weights in fp32 or better."""
    added = adapter_state(model)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in added}
    for name, layer in layers.items():
        weight = layer.weight.detach()
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        wide = wide if layer.new is None else layer.new.put_in(wide)
        if layer.additions():
            wide = wide + layer.delta()
        state[f"{name}.weight"] = wide.to(weight.dtype)
    if is_tied(model.config):
        del state["lm_head.weight"]
    plain = assign(empty_model(model.config), state)
    assert isinstance(plain, GPT)
    return plain.train(model.training)


def probe(model: GPT) -> Tensor:
    """Return tokens on which models can be compared, (8, T), drawn from a fixed seed; T is at most 64."""
    c = model.config
    return torch.randint(c.vocab_size, (8, min(c.block_size, 64)), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def largest_change(model: GPT, other: GPT, idx: Tensor) -> float:
    """Return the largest absolute difference between the logits of two models for tokens idx (B, T), without dropout.

    Between a model with adapters and the `merged` one it is what merging has cost.
    """
    modes = [each.training for each in (model, other)]
    logits, others = (each.eval()(idx).float() for each in (model, other))
    for each, mode in zip((model, other), modes, strict=True):
        each.train(mode)
    return float((logits - others).abs().max())
