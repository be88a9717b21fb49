"""LoRA adapters as folders of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

They belong on a model that is exported as, or read from, one of the families of `huggingface_families`. GPT-2 has the
projections of queries, keys and values in one layer, Llama in three: where one side has one product for what the other
side has in parts, the matrices are cut, or put together with zeros between, and the change of the weights stays the
same. In this module, "our" names are gptlab's and "their" names are those of `transformers`.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gptlab.formats.huggingface_config import family_of, their_names
from gptlab.formats.huggingface_families import FAMILIES
from gptlab.formats.huggingface_family import Family
from gptlab.formats.huggingface_gpt import GPT2
from gptlab.formats.reading import naming_path, read_json_object
from gptlab.formats.safetensors_file import read_safetensors
from gptlab.formats.torch_reading import read_weights_bin
from gptlab.formats.writing import write_weights
from gptlab.models.gpt import GPT
from gptlab.models.lora import OUTSIDE, TARGETS, LoRAConfig, adapters, add_adapters
from gptlab.models.low_rank import WHOLE, Adapted, LowRank
from gptlab.models.packed import Array
from gptlab.models.weights import check_shapes, check_sound
from gptlab.system.errors import UserError

log = logging.getLogger(__name__)

CONFIG_FILE, WEIGHT_FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."  # of every name in the file
ROWS = ".token_adapter.trainable_tokens_delta"  # ends the names of whole rows, those of `trainable_token_indices`
NUMBERED = re.compile(r"^.*\.\d+\.")  # up to the number of a block
MATRIX = re.compile(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?")
NAME_PATTERN = re.compile(r"\^?[\w.]{1,200}")  # of theirs, without the regular expressions that never end
# Their settings that change the function, or the base, beyond A and B; each must be absent, null or false.
REFUSED = (
    *("modules_to_save", "use_dora", "lora_bias", "layer_replication", "megatron_config"),
    *("target_parameters", "use_qalora", "use_bdlora", "arrow_config", "alora_invocation_tokens", "kasa_config"),
    *("monteclora_config", "ensure_weight_tying"),
)
LARGEST = 1e9  # of any number in a config
INITS = (None, True, False, "gaussian", "orthogonal", "eva")  # those that leave the base as it is


class Product(NamedTuple):
    """A matrix A (r, in) and a matrix B (out, r), whose product is scaled and added to a weight."""

    A: Tensor
    B: Tensor
    scale: float


Products = dict[tuple[str, str], Product]
"""The products in a file, by our layers and the targets that they are."""


def their_modules(name: str, family: Family) -> list[str]:
    """Return their names for our layer: one, or several where ours stacks projections."""
    return [each.removesuffix(".weight") for each in their_names(f"{name}.weight", family)]


def piece_rows(model: GPT, name: str, family: Family) -> dict[str, tuple[int, int]]:
    """Return their modules for our layer, each with the first of its rows in ours, and the row after its last."""
    modules = their_modules(name, family)
    weight = model.get_parameter(f"{name}.weight")
    count = weight.shape[1] if name == "wte" else weight.shape[0]
    sizes = model.config.stacked[name.split(".")[-1]] if len(modules) > 1 else (count,)
    return dict(zip(modules, pairwise((0, *accumulate(sizes))), strict=True))


def _piece_order(name: str, family: Family, model: GPT, start: int, stop: int) -> Array | None:
    """Return for each row of a piece of our layer which row of their module it is; None: they are in one order."""
    order = family.row_order(name, model.config)
    return None if order is None else order[start:stop] - start


def write_adapter(model: GPT, folder: Path, base: str | None = None, vocab_size: int | None = None) -> None:
    """Write a model's adapters; they belong on the export of `lora.without_adapters(model)`.

    Args:
        model: the model with its adapters.
        folder: an existing folder.
        base: the name or folder of that export, for `peft.AutoPeftModel`; None: not said.
        vocab_size: the number of ids of that export, where it has more than the model; see `writing.write_hf`.

    Raises:
        UserError: `transformers` has no such model; or a table of tokens has an adapter, and rows of new tokens, too.
        ValueError: the model has no adapters.
    """
    if model.lora is None:
        raise ValueError("the model has no adapters")
    family = FAMILIES[family_of(model.config)]
    state, tokens = _new_rows(model, family)
    ranks: dict[str, int] = {}  # by what a module's names in all blocks end with
    for name, layer in adapters(model).items():
        for module, rows in piece_rows(model, name, family).items():
            found = _product_of_rows(layer, *rows)
            if found is None:
                continue
            a, b = found
            order = _piece_order(name, family, model, *rows)
            b = b if order is None else b[order.argsort()]
            missing = 0 if vocab_size is None else vocab_size - model.config.vocab_size
            if name == "wte":
                a = nn.functional.pad(a, (0, missing))
            elif name == "lm_head":
                b = nn.functional.pad(b, (0, 0, 0, missing))
            kinds = ("lora_embedding_A", "lora_embedding_B") if name == "wte" else ("lora_A.weight", "lora_B.weight")
            state |= {f"{PREFIX}{module}.{kind}": x.contiguous() for kind, x in zip(kinds, (a, b), strict=True)}
            ranks[NUMBERED.sub("", module.removeprefix(family.base))] = len(a)
    about = _their_config(model.lora, ranks, family, base) | ({"trainable_token_indices": tokens} if tokens else {})
    (folder / CONFIG_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    write_weights(folder / WEIGHT_FILES[0], state)


def _new_rows(model: GPT, family: Family) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Return the rows of new tokens by their names, and their ids by table; of a tied model one table is named.

    Raises:
        UserError: see `write_adapter`.
    """
    state, tokens = {}, {}
    for name in ("wte",) if model.config.tied else ("wte", "lm_head"):
        new = getattr(model.get_submodule(name), "new", None)
        if new is None:
            continue
        if name in adapters(model) and adapters(model)[name].additions():
            raise UserError(
                f"lora.targets: PEFT has no adapter of {name} beside rows of new tokens; export the merged model, or "
                f"train without {name}"
            )
        (module,) = their_modules(name, family)
        state[f"{PREFIX}{module}{ROWS}"] = new.rows.detach().float().contiguous()
        tokens[module.split(".")[-1]] = list(range(new.known, model.config.vocab_size))
    return state, tokens


@torch.no_grad()
def _product_of_rows(layer: Adapted, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
    """Return A and B of the change of these rows, in fp32; None: they do not change."""
    a, b = [], []
    for part, addition in layer.additions().items():
        first, last = layer.rows[part]
        low, high = max(start, first), min(stop, last)
        if low < high:
            a.append(addition.A.float())
            b.append(addition.B.new_zeros(stop - start, addition.B.shape[1], dtype=torch.float32))
            b[-1][low - start : high - start] = addition.B[low - first : high - first]
    return (torch.cat(a), torch.cat(b, dim=1)) if a else None


def _their_config(config: LoRAConfig, ranks: Mapping[str, int], family: Family, base: str | None) -> dict[str, Any]:
    """Return their adapter_config.json; modules of another rank get the alpha that keeps the scale."""
    others = {module: rank for module, rank in ranks.items() if rank != config.rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": list(ranks),
        "rank_pattern": others,
        "alpha_pattern": {module: config.scale * _divisor(rank, config.rslora) for module, rank in others.items()},
        "fan_in_fan_out": family is GPT2 and not set(ranks) <= {"wte", "lm_head"},  # of Conv1D
        "bias": "none",
        "inference_mode": True,
    }


def _divisor(rank: int, rslora: bool) -> float:
    """Return what alpha is divided by."""
    return math.sqrt(rank) if rslora else rank


def read_adapter(folder: Path, model: GPT, kind: str | None = None) -> None:
    """Put the adapters of a folder that PEFT or gptlab wrote into a model, and freeze everything else.

    Rows of single tokens (`trainable_token_indices`) take the place of the model's own.
    Modules of different ranks get the largest of them, with zeros in B, and different scales go into B: what the model
    computes is the same, while further training begins with one rank and one scale for all.

    Args:
        folder: the folder.
        model: the adapters' base, see `lora.add_adapters`; a tied one is untied where the adapter needs it.
        kind: the base's `model_type` in `transformers`; None: that of its export.

    Raises:
        UserError: a file is missing or broken, or the adapter has what gptlab's have not, or belongs on another model.
    """
    about = read_json_object(folder / CONFIG_FILE)
    with naming_path(folder / CONFIG_FILE):
        _check_settings(about)
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no {' or '.join(WEIGHT_FILES)}; is the download complete?")
    state = read_safetensors(file)[0] if file.suffix == ".safetensors" else read_weights_bin(file)
    with naming_path(folder):
        family = FAMILIES[kind or family_of(model.config)]
        check_sound(model.config, state)
        _put_rows_in(state, about, model, family)
        products = _products(state, about, model, family)
        config = _our_config(about, products, model.config.tied)
        with torch.random.fork_rng(devices=[]):  # for the rows of A that the file does not have
            torch.manual_seed(0)
            add_adapters(model, config)
    layers = adapters(model)
    for (layer, target), product in products.items():
        _copy(product, layers[layer].additions()[WHOLE if TARGETS[target][1] is None else target])


@torch.no_grad()
def _put_rows_in(state: dict[str, Tensor], about: dict[str, Any], model: GPT, family: Family) -> None:
    """Move whole rows from a file into the tables of a model.

    Raises:
        UserError: they do not fit.
    """
    given = about.get("trainable_token_indices") or []
    modules = {PREFIX + their_modules(name, family)[0]: name for name in ("wte", "lm_head")}
    for name in [name for name in state if name.endswith(ROWS)]:
        rows, module = state.pop(name), name.removesuffix(ROWS)
        _check_table(modules.get(module), family)
        ids: Any = given.get(module.split(".")[-1]) if isinstance(given, dict) else given
        table: Any = model.get_parameter(f"{modules[module]}.weight") if module in modules else None
        fits = table is not None and isinstance(ids, list) and rows.shape == (len(ids), table.shape[1])
        if not fits or not all(type(i) is int and 0 <= i < len(table) for i in ids):
            raise UserError(f"its rows {name:.199} do not fit trainable_token_indices and this model")
        table[ids] = rows.to(table.dtype)


def _check_table(layer: str | None, family: Family) -> None:
    """Check that what an adapter adds to a table of tokens is that to ours."""
    if layer in OUTSIDE and family.embedding_is_scaled:
        raise UserError(
            f"it changes the embedding or the head of a {family.architecture}, whose embedding gptlab keeps multiplied "
            f"by sqrt(n_embd): merge it first (PEFT's merge_and_unload, then save_pretrained)"
        )


def _check_settings(about: dict[str, Any]) -> None:
    if about.get("peft_type") != "LORA":
        raise UserError(f"peft_type={about.get('peft_type')!s:.99}: gptlab reads LORA")
    wrong = [f"{name}={about[name]!s:.99}" for name in REFUSED if about.get(name)]
    if about.get("bias", "none") != "none":
        wrong.append(f"bias={about['bias']!s:.99}")
    init = about.get("init_lora_weights")
    if not (init is None or isinstance(init, bool | str)) or init not in INITS:
        wrong.append(f"init_lora_weights={init!s:.99}")
    if wrong:
        raise UserError(
            f"this adapter changes more than the products of two matrices: {', '.join(wrong)}; merge it first (PEFT's "
            f"merge_and_unload, then save_pretrained)"
        )
    for name in ("r", "lora_alpha"):
        if not _is_number(about.get(name)):
            raise UserError(f"{name}={about.get(name)!s:.99}: must be a number above 0 and below {LARGEST:,.0f}")
    dropout = about.get("lora_dropout", 0.0)
    if dropout != 0 and not (_is_number(dropout) and dropout < 1):
        raise UserError(f"lora_dropout={dropout!s:.99}: must be at least 0 and below 1")
    pattern = about.get("alpha_pattern") or {}
    for module, alpha in pattern.items() if isinstance(pattern, dict) else [(str(pattern), None)]:
        if not NAME_PATTERN.fullmatch(module) or not _is_number(alpha):
            raise UserError(f"alpha_pattern: {module:.99}={alpha!s:.99}: must be the name of a module and a number")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST


def _our_config(about: dict[str, Any], products: Products, tied: bool) -> LoRAConfig:
    """Return the config of adapters that hold these products: of the largest rank, scaled as the first of them."""
    targets = {target for _, target in products}
    rank, rslora = max(len(product.A) for product in products.values()), bool(about.get("use_rslora"))
    alpha = next(iter(products.values())).scale * _divisor(rank, rslora)
    dropout = about.get("lora_dropout", 0.0)
    if dropout and "lm_head" in targets:
        log.warning(
            "lora_dropout=%g is left out: the adapter has the head as a target, which knows no dropout", dropout
        )
        dropout = 0.0
    untie = tied and bool(targets & set(OUTSIDE))
    return LoRAConfig(rank, alpha, tuple(sorted(targets)), dropout, rslora, untie)


@torch.no_grad()
def _copy(product: Product, addition: LowRank) -> None:
    """Write a product into an addition of the same rank or a larger one."""
    rank = len(product.A)
    addition.A[:rank] = product.A
    addition.B.zero_()
    addition.B[:, :rank] = product.B * (product.scale / addition.scale)


def _products(state: Mapping[str, Tensor], about: dict[str, Any], model: GPT, family: Family) -> Products:
    """Return the products in a file, checked.

    Raises:
        UserError: names or shapes do not fit the model.
    """
    ours = [name for name, each in model.named_modules() if isinstance(each, nn.Linear) or name == "wte"]
    layers = {module: name for name in ours for module in their_modules(name, family)}
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        module, matrix = _module_and_matrix(name, family)
        if module not in layers or (matrix is None and layers[module] not in OUTSIDE):
            raise UserError(f"it has {name:.199}, and this model has no such layer: it belongs on another one")
        _check_table(layers[module], family)
        if matrix is not None:
            pairs[module][matrix] = tensor
        elif not _same_rows(tensor, model.get_parameter(f"{layers[module]}.weight")):
            raise UserError(f"it brings {name:.199}, which is not that of this model: it belongs on another one")
    if not pairs:
        raise UserError("it has no adapters")
    found = {}
    for module, pair in pairs.items():
        layer = layers[module]
        modules = their_modules(layer, family)
        place = (re.sub(r"^h\.\d+\.", "", layer), modules.index(module) if len(modules) > 1 else None)
        target = next(target for target, each in TARGETS.items() if each == place)
        start, stop = piece_rows(model, layer, family)[module]
        a, b = _checked(module, layer, pair, stop - start, model)
        order = _piece_order(layer, family, model, start, stop)
        found[layer, target] = Product(a, b if order is None else b[order], _scale(module, len(a), about))
    return found


def _module_and_matrix(name: str, family: Family) -> tuple[str, str | None]:
    """Return their module for a tensor's name, and A, B, or None for a weight of the base."""
    name = name.removeprefix(PREFIX)
    matrix = MATRIX.fullmatch(name)
    module = matrix[1] if matrix else name.removesuffix(".weight").removesuffix(".base_layer")
    if not module.startswith((family.base, "lm_head")):  # of an adapter on the model without its head
        module = family.base + module
    return module, matrix[2] if matrix else None


def _same_rows(tensor: Tensor, weight: Tensor) -> bool:
    """Return whether a base's weight that a file brings is that of our model, which may have fewer ids."""
    return tensor.shape[1:] == weight.shape[1:] and torch.equal(tensor[: len(weight)].to(weight.dtype), weight)


def _checked(module: str, layer: str, pair: dict[str, Tensor], n_out: int, model: GPT) -> tuple[Tensor, Tensor]:
    """Return A and B of a module, without the ids that only the exported base has.

    Raises:
        UserError: one is missing, or has another shape.
    """
    weight = model.get_parameter(f"{layer}.weight")
    for matrix, tensor in pair.items():
        if tensor.dim() != 2:
            raise UserError(f"{module}.lora_{matrix} is {list(tensor.shape)} and must be a matrix")
    if layer == "wte" and "A" in pair:
        pair["A"] = pair["A"][:, : len(weight)]
    elif layer == "lm_head" and "B" in pair:
        pair["B"] = pair["B"][: len(weight)]
    rank = max(len(pair["A"]), 1) if "A" in pair else 1
    shapes = {"A": (rank, len(weight) if layer == "wte" else weight.shape[1]), "B": (n_out, rank)}
    check_shapes(
        {f"{module}.lora_{matrix}": tensor for matrix, tensor in pair.items()},
        {f"{module}.lora_{matrix}": torch.empty(shape, device="meta") for matrix, shape in shapes.items()},
    )
    return pair["A"], pair["B"]


def _scale(module: str, rank: int, about: dict[str, Any]) -> float:
    """Return the scale of a module's product: by the first pattern that its name ends with."""
    patterns = (about.get("alpha_pattern") or {}).items()
    alphas = (alpha for name, alpha in patterns if re.fullmatch(rf"(.*\.)?({name})", module))
    return float(next(alphas, about["lora_alpha"]) / _divisor(rank, bool(about.get("use_rslora"))))
