"""Models of others: Hugging Face's, nanoGPT's, OpenAI's own, and our exports; nothing in their files is executed.

Where a model has more rows of embedding than its tokenizer has tokens (padding to a round number, as nanoGPT's 50,304),
the rows behind are cut off: no text stands for them, so none is to be drawn or scored.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import pickletools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab import checkpoint, hf_tokenizers, models
from gptlab.checkpoint import Info
from gptlab.data.tokenizers import BPETokenizer, CharTokenizer, Tokenizer
from gptlab.models import Model, hf, weights
from gptlab.models.gpt_config import GPTConfig
from gptlab.system.errors import UserError
from gptlab.system.files import digest, read_bytes

Loaded = tuple[Model, Tokenizer, Info]

NAMES = {  # on the hub
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")
SMALL_FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json", *TOKENIZER_FILES)
GPT2_SIZES = (50257, 50304)  # of GPT-2's vocabulary, and padded to a multiple of 64
DIGEST = f"{checkpoint.KEY}.sha256"  # of our own weights, in the header of their file
META = 1 << 23  # bytes of a meta.pkl: all of Unicode has less
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there; both may be cut into shards


def download(name: str) -> Path:
    """The folder of a model of the Hugging Face hub, out of its cache or from the network.

    Args:
        name: one of `NAMES`, or organisation/name.

    Raises:
        UserError: it is not to be had.
    """
    import huggingface_hub

    repo = NAMES.get(name, name)
    try:
        for whole in WEIGHTS:
            stem, _, suffix = whole.partition(".")
            shards = (whole, f"{stem}-*.{suffix}", f"{whole}.index.json")
            folder = Path(huggingface_hub.snapshot_download(repo, allow_patterns=[*SMALL_FILES, *shards]))
            if any(folder.glob(f"{stem}*.{suffix}")):
                break
    except Exception as error:  # of the hub, of the network, of the disk: no family of errors has all of them
        raise UserError(
            f"{name}: there is no such file or folder, and {repo} is not in Hugging Face's cache, nor can it be "
            f"downloaded ({_line(error)}). Where there is a network, "
            f"`hf download {repo} --local-dir FOLDER` fetches it: copy that folder here and give its path"
        ) from error
    for file in folder.glob(f"{stem}*.{suffix}"):
        sha256 = file.resolve().name  # in its cache, large files are named by it
        if re.fullmatch("[0-9a-f]{64}", sha256) and digest(file).hexdigest() != sha256:
            raise UserError(f"{file} is not what {repo} has (its sha256 differs): remove it to download it anew")
    return folder


def hugging_face(folder: Path, raw_dir: Path) -> Loaded:
    """A folder as `save_pretrained` writes it: config.json, safetensors or pytorch_model.bin, a tokenizer.

    Args:
        raw_dir: where GPT-2's vocabulary is looked for if the folder has none.

    Raises:
        UserError: a file is missing or broken, or the model is none of ours.
    """
    about = _json(folder / "config.json")
    with _naming(folder / "config.json"):
        config = hf.config_from_hf(about)
    tokenizer = _tokenizer(folder, config, raw_dir)
    with _naming(folder):
        model = _sized(weights.filled(config, hf.from_hf(_weights(folder), config)), tokenizer)
    return model, tokenizer, Info(folder, None, {}, {}, None, f"Hugging Face {about['model_type']}")


def exported(file: Path) -> Loaded:
    """What `python -m gptlab.export --format safetensors` has written.

    Raises:
        UserError: the file is broken, or its header does not describe the model.
    """
    state, header = _safetensors(file)
    if checkpoint.KEY not in header:
        raise UserError(
            f"{file} has weights only: its header lacks the '{checkpoint.KEY}' entry of gptlab's exports. Of a Hugging "
            f"Face model give the folder, with config.json and the tokenizer in it"
        )
    unknown = header.keys() - {"format", checkpoint.KEY, DIGEST}
    if unknown:  # perhaps its checksum, of which the name is damaged
        raise UserError(f"{file}: its header is damaged (it has {', '.join(sorted(unknown))[:99]})")
    try:
        about = {"step": None, "metrics": {}, "config": {}, "data_sha256": None} | json.loads(header[checkpoint.KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: its header is damaged ({error})") from error
    return checkpoint.restored(about, state, file, "gptlab export")


def nanogpt(file: Path, raw_dir: Path) -> Loaded:
    """nanoGPT's ckpt.pt (https://github.com/karpathy/nanoGPT).

    Its own meta.pkl holds the characters, beside the file or in ../data/<dataset>; without it the tokens are GPT-2's.

    Raises:
        UserError: the file is broken or does not fit together, or there is no tokenizer.
    """
    content = checkpoint.plain(file)
    try:
        args = content["model_args"]
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias", "dropout")
        config = models.from_dict({"name": "gpt", "mlp": "gelu_exact", **{name: args[name] for name in sizes}})
        assert isinstance(config, GPTConfig)
        state = {re.sub(r"^(_orig_mod\.)?(transformer\.)?", "", name): w for name, w in content["model"].items()}
        state = {name: weight for name, weight in state.items() if not hf.BUFFERS.search(name)}
        dataset = "".join(re.findall(r"[\w-][\w.-]{,99}$", str(content.get("config", {}).get("dataset"))))
        step = content.get("iter_num")
        step = step if type(step) is int and 0 <= step < 1 << 63 else None
    except UserError as error:
        raise UserError(f"{file} is a damaged checkpoint of nanoGPT: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is a damaged checkpoint of nanoGPT: {_line(error)}") from error
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
    with _naming(file):
        model = _sized(weights.filled(config, state), tokenizer)
    # Its best_val_loss is of random batches, and perhaps of an earlier step: no metric of these weights.
    return model, tokenizer, Info(file, step, {}, {}, None, "nanoGPT")


def openai(folder: Path, raw_dir: Path) -> Loaded:
    """OpenAI's own release of GPT-2 (https://github.com/openai/gpt-2): hparams.json and a TensorFlow checkpoint.

    Raises:
        UserError: TensorFlow is missing, a file is missing or broken, or the weights do not fit hparams.json.
    """
    about = _json(folder / "hparams.json")
    names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    with _naming(folder / "hparams.json"):
        config = hf.config_from_hf({"model_type": "gpt2"} | {names.get(k, k): value for k, value in about.items()})
    tokenizer = _tokenizer(folder, config, raw_dir)
    with _naming(folder):
        model = _sized(weights.filled(config, hf.from_hf(_variables(folder), config)), tokenizer)
    return model, tokenizer, Info(folder, None, {}, {}, None, "OpenAI TensorFlow")


def _variables(folder: Path) -> dict[str, Tensor]:
    """The variables of a TensorFlow checkpoint under the names that `transformers` gave them: model/h0/ln_1/g ..."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no greetings
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            "a TensorFlow checkpoint, and TensorFlow is not installed: pip install 'gptlab[tensorflow]'; or take the "
            "same weights from Hugging Face: gpt2, gpt2-medium, gpt2-large, gpt2-xl"
        ) from error
    try:
        reader = tf.train.load_checkpoint(str(folder))
        values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except Exception as error:  # TensorFlow raises what it likes
        raise UserError(
            f"TensorFlow cannot read the checkpoint; are checkpoint and model.ckpt.* all there? ({_line(error)})"
        ) from error
    state = {}
    for name, value in values.items():
        module = re.sub(r"^model\.|\.[wgb]$", "", re.sub(r"/h(\d+)/", r"/h/\1/", name).replace("/", "."))
        tensor = torch.from_numpy(value)
        # A matrix is a convolution of width 1: (1, in, out).
        state[f"{module}.{'bias' if name.endswith('/b') else 'weight'}"] = tensor[0] if tensor.dim() == 3 else tensor
    return state


def _weights(folder: Path) -> dict[str, Tensor]:
    """Their weights, whole or in shards."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [name]
        elif index.is_file():
            named = _json(index).get("weight_map")
            files = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
        else:
            continue
        state: dict[str, Tensor] = {}
        for file in files:
            if Path(file).name != file:
                raise UserError(f"{index.name} names {file[:99]}, which is no file of this folder")
            if not (folder / file).is_file():
                raise UserError(f"{index.name} names {file}, which is not there; is the download complete?")
            state |= _safetensors(folder / file)[0] if file.endswith(".safetensors") else _bin(folder / file)
        return state
    raise UserError(f"there are no weights (no {' or '.join(WEIGHTS)}, whole or in shards)")


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, mapped, and the header of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            names = content.keys()
            state, header = {name: content.get_tensor(name) for name in names}, content.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:  # the last of torch, for its types
        raise UserError(f"{file} is broken or no safetensors file ({error}); is the download complete?") from error
    if DIGEST in header and header[DIGEST] != weights.digest(state, header.get(checkpoint.KEY, "")):
        raise UserError(f"{file} has changed since gptlab wrote it (the sha256 differs): export the model again")
    return state, header


def _bin(file: Path) -> dict[str, Tensor]:
    content = checkpoint.plain(file)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} holds something else than weights by name")
    return content


def _tokenizer(folder: Path, config: GPTConfig, raw_dir: Path) -> Tokenizer:
    if config.vocab_size in GPT2_SIZES and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return BPETokenizer.gpt2(raw_dir)
    return hf_tokenizers.read(folder)


def _sized(model: Model, tokenizer: Tokenizer) -> Model:
    """The model with as many tokens as the tokenizer has."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}: "
            f"they do not belong together"
        )
    return weights.cropped(model, dataclasses.replace(model.config, vocab_size=tokenizer.vocab_size))


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
        raise UserError(f"{file} is no meta.pkl of nanoGPT's characters: {_line(error)}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} has no names and values")
    return content


def _line(error: Exception) -> str:
    """The kind of an error and the beginning of what it says."""
    said, _, _ = str(error).strip().partition("\n")
    return f"{type(error).__name__}: {said[:200]}"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Mistakes begin with the path of what they are in."""
    try:
        yield
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
