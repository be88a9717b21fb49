"""nanoGPT's ckpt.pt, and the characters in its meta.pkl."""

from __future__ import annotations

import pickle
import pickletools
import re
from pathlib import Path

from gptlab import models
from gptlab.data.tokenizers import BPETokenizer, CharTokenizer
from gptlab.formats import huggingface_names
from gptlab.formats.checkpoint import Info, Loaded
from gptlab.formats.reading import GPT2_SIZES, error_line, load_plain, naming_path, sized_to_tokenizer
from gptlab.models import weights
from gptlab.models.gpt_config import GPTConfig
from gptlab.system.errors import UserError
from gptlab.system.files import read_bytes

META = 1 << 23  # bytes of a meta.pkl: all of Unicode has less


def open_checkpoint(file: Path, raw_dir: Path) -> Loaded:
    """nanoGPT's ckpt.pt (https://github.com/karpathy/nanoGPT).

    Its own meta.pkl holds the characters, beside the file or in ../data/<dataset>; without it the tokens are GPT-2's.

    Raises:
        UserError: the file is broken or does not fit together, or there is no tokenizer.
    """
    content = load_plain(file)
    try:
        args = content["model_args"]
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias", "dropout")
        config = models.from_dict({"name": "gpt", "mlp": "gelu_exact", **{name: args[name] for name in sizes}})
        assert isinstance(config, GPTConfig)
        state = {re.sub(r"^(_orig_mod\.)?(transformer\.)?", "", name): w for name, w in content["model"].items()}
        state = {name: weight for name, weight in state.items() if not huggingface_names.BUFFERS.search(name)}
        dataset = "".join(re.findall(r"[\w-][\w.-]{,99}$", str(content.get("config", {}).get("dataset"))))
        step = content.get("iter_num")
        step = step if type(step) is int and 0 <= step < 1 << 63 else None
    except UserError as error:
        raise UserError(f"{file} is a damaged checkpoint of nanoGPT: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is a damaged checkpoint of nanoGPT: {error_line(error)}") from error
    del content
    here = file.absolute().parent
    places = (here / "meta.pkl", here.parent / "data" / dataset / "meta.pkl")
    meta = next((place for place in places if place.is_file()), None)
    if meta is None and config.vocab_size not in GPT2_SIZES:
        raise UserError(
            f"{file} has {config.vocab_size} tokens, and their meta.pkl is neither beside it nor at {places[1]}: "
            f"copy it there (nanoGPT's data/{dataset}/prepare.py writes it)"
        )
    tokenizer = _meta(meta) if meta is not None else BPETokenizer.gpt2(raw_dir)
    with naming_path(file):
        model = sized_to_tokenizer(weights.fill(config, state), tokenizer)
    # Its best_val_loss is of random batches, and perhaps of an earlier step: no metric of these weights.
    return model, tokenizer, Info(file, step, {}, {}, None, "nanoGPT")


# What a pickle of dicts of strings and integers is made of; nothing else is read.
INERT = {"PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "SETITEM", "SETITEMS", "MEMOIZE", "BINPUT", "LONG_BINPUT"}
INERT |= {"BINGET", "LONG_BINGET", "SHORT_BINUNICODE", "BINUNICODE", "BININT", "BININT1", "BININT2"}


def _meta(file: Path) -> CharTokenizer:
    """The characters of nanoGPT's meta.pkl.

    Raises:
        UserError: it holds something else, which is not executed.
    """
    try:
        content = read_bytes(file, META)
        for operation, argument, place in pickletools.genops(content):
            if operation.name not in INERT or (operation.name.endswith("PUT") and (argument or 0) > (place or 0)):
                raise ValueError(f"it would do more than read: {operation.name} {str(argument or '')[:99]}")
        characters = pickle.loads(content)["itos"]
        return CharTokenizer("".join(characters[i] for i in range(len(characters))))
    except Exception as error:  # a damaged pickle raises what it likes
        raise UserError(f"{file} is no meta.pkl of nanoGPT's characters: {error_line(error)}") from error
