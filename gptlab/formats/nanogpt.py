"""nanoGPT's ckpt.pt, and the characters in its meta.pkl."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gptlab import models
from gptlab.data import meta_pickle
from gptlab.data.tokenizers import BPETokenizer
from gptlab.formats import huggingface_config
from gptlab.formats.checkpoint import LoadedModel
from gptlab.formats.description import ModelInfo
from gptlab.formats.reading import GPT2_SIZES, naming_path, rename, without_wrappers
from gptlab.formats.torch_reading import crop_to_tokenizer, load_plain
from gptlab.models import arrays, weights
from gptlab.models.gpt_config import GPTConfig
from gptlab.system.errors import UserError, error_line

PREFIXES = re.compile(r"^(model\.)*(transformer\.)?")  # of its names, the first from Lightning and the like


def open_checkpoint(file: Path, raw_dir: Path, content: Any = None) -> LoadedModel:
    """Open nanoGPT's ckpt.pt (https://github.com/karpathy/nanoGPT), on the CPU in evaluation mode.

    The characters are read from meta.pkl, beside the file or in ../data/<dataset>; without it the tokens are GPT-2's.

    Args:
        file: the ckpt.pt.
        raw_dir: where GPT-2's vocabulary is looked for.
        content: what `load_plain` has read from the file, emptied to free the optimizer's state; None: read it here.

    Raises:
        UserError: the file is broken or does not fit together, or there is no tokenizer.
    """
    if content is None:
        content = load_plain(file)
    try:
        args = content["model_args"]
        state = rename(without_wrappers(content["model"]), lambda name: PREFIXES.sub("", name))
        state = {name: weight for name, weight in state.items() if not huggingface_config.BUFFERS.search(name)}
        rows = len(state.get(arrays.EMBEDDING, state.get(arrays.HEAD, ())))
        config = _config(args, rows)
        dataset = "".join(re.findall(r"[\w-][\w.-]{,99}$", str(content.get("config", {}).get("dataset"))))
        step = content.get("iter_num")
        step = step if type(step) is int and 0 <= step < 1 << 63 else None
    except UserError as error:
        raise UserError(f"{file} is a damaged checkpoint of nanoGPT: {error}") from error
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{file} is a damaged checkpoint of nanoGPT: {error_line(error)}") from error
    content.clear()
    here = file.absolute().parent
    places = (here / meta_pickle.FILE, here.parent / "data" / dataset / meta_pickle.FILE)
    meta = next((place for place in places if place.is_file()), None)
    if meta is None and config.vocab_size not in GPT2_SIZES:
        raise UserError(
            f"{file} has {config.vocab_size} tokens, and their meta.pkl is neither beside it nor at {places[1]}: "
            f"copy it there (nanoGPT's data/{dataset}/prepare.py writes it)"
        )
    tokenizer = meta_pickle.read_meta(meta) if meta is not None else BPETokenizer.gpt2(raw_dir)
    with naming_path(file):
        model = crop_to_tokenizer(weights.fill(config, state), tokenizer)
    # Its best_val_loss is from random batches, and perhaps from an earlier step: not a metric of these weights.
    return model, tokenizer, ModelInfo(file, step, {}, {}, None, "nanoGPT")


def _config(args: dict[str, Any], rows: int) -> GPTConfig:
    """Return our config for nanoGPT's model_args.

    Those of before 2023-01-27 have neither `bias`, which all layers then had, nor always `vocab_size`, and their
    activation is GPT-2's approximation.

    Args:
        args: model_args.
        rows: the number of embeddings.

    Raises:
        KeyError: a size is missing.
        UserError: a value has the wrong type or is out of range.
    """
    fields = {name: args[name] for name in ("block_size", "n_layer", "n_head", "n_embd")}
    defaults = {"vocab_size": rows, "bias": True, "dropout": 0.0}
    fields |= {name: default if args.get(name) is None else args[name] for name, default in defaults.items()}
    config = models.from_dict({"name": "gpt", "mlp": "gelu_exact" if "bias" in args else "gelu", **fields})
    assert isinstance(config, GPTConfig)
    return config
