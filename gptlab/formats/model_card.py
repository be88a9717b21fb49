"""The model card of an export: README.md with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Any

import yaml  # type: ignore[import-untyped]

from gptlab import __version__, models
from gptlab.data.batches import Windows
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.description import ModelInfo
from gptlab.models import Model, ModelConfig
from gptlab.models.gpt_config import GPTConfig
from gptlab.runs.identity import does, flatten
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.system.terminal import duration

LIBRARIES = {
    "hf": "transformers",
    "safetensors": "gptlab",
    "onnx": "onnx",
    "onnx_cached": "transformers.js",
    "gguf": "gguf",
    "llama2c": "llama2.c",
}
TAGS = {
    "onnx": ["gptlab"],
    "onnx_cached": ["gptlab", "onnx"],
    "gguf": ["gptlab", "gguf"],
    "llama2c": ["gptlab"],
}
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "onnx", "onnxruntime", "gguf")

USE = {
    "hf": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("{prompt}", return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens={new}, do_sample=True, temperature=0.8)
print(tokenizer.decode(ids[0]))
```

or `python -m gptlab.generate {path} "{prompt}"`.
""",
    "safetensors": """\
```
python -m gptlab.generate {path}/model.safetensors "{prompt}"
```

The file's metadata has the model's config, the tokenizer and the run's config. Weights have the names of OpenAI's
GPT-2; those of linear layers are (out, in).
""",
    "llama2c": """\
```
./run {path}/model.bin -z {path}/tokenizer.bin -t 0.8 -i "{prompt}"
```

with `run`, which `make run` makes of https://github.com/karpathy/llama2.c, or
`python -m gptlab.generate {path} "{prompt}"`.
""",
    "onnx": """\
```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("{name}/tokenizer.json")
session = onnxruntime.InferenceSession("{name}/model.onnx")
ids = tokenizer.encode("{prompt}").ids
for _ in range({new}):
    (logits,) = session.run(["logits"], {{"input_ids": np.array([ids[-{block_size}:]])}})  # (1, T, {vocab_size})
    ids.append(int(logits[0, -1].argmax()))
print(tokenizer.decode(ids))
```
""",
    "onnx_cached": """\
```js
import {{ env, pipeline }} from "@huggingface/transformers";

env.localModelPath = "./"; // the folder in which this one lies
const generate = await pipeline("text-generation", "{name}");
const [first] = await generate("{prompt}", {{ max_new_tokens: {new}, do_sample: true, temperature: 0.8 }});
console.log(first.generated_text);
```

or in Python, with the keys and values in hand:

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("{name}/tokenizer.json")
session = onnxruntime.InferenceSession("{name}/onnx/model.onnx")
past = [each.name for each in session.get_inputs() if each.name.startswith("past_key_values")]
cache = [np.zeros((1, {kv_heads}, 0, {head_size}), np.float32)] * len(past)
ids = unread = tokenizer.encode("{prompt}").ids
for _ in range({new}):
    feed = {{"input_ids": np.array([unread]), "attention_mask": np.ones((1, len(ids)), np.int64)}}
    feed["position_ids"] = np.arange(len(ids) - len(unread), len(ids))[None]
    logits, *cache = session.run(None, feed | dict(zip(past, cache)))  # (1, T, {vocab_size}), and all tokens
    unread = [int(logits[0, -1].argmax())]
    ids = ids + unread
print(tokenizer.decode(ids))
```
""",
    "gguf": """\
```
llama-completion -m {path}/model.gguf -no-cnv -p "{prompt}" -n {new} --temp 0.8
```

or in Python, with llama-cpp-python:

```python
from llama_cpp import Llama

model = Llama("{name}/model.gguf", n_ctx={block_size}, verbose=False)
print("{prompt}" + model("{prompt}", max_tokens={new}, temperature=0.8)["choices"][0]["text"])
```

or `python -m gptlab.generate {path}/model.gguf "{prompt}"`. Prompt and text together have at most {block_size} tokens:
llama.cpp may be asked for more, and then ends (learned positions) or writes what the model has not learned.
""",
}
GENAI = '\n`onnxruntime_genai.Model("{name}")` reads this folder, too.\n'


def model_card(
    model: Model, tokenizer: Tokenizer, info: ModelInfo, form: str, name: str, for_genai: bool = False
) -> str:
    """Return the text of an export's README.md.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        info: its info.
        form: the format of the export: hf, safetensors, onnx, onnx_cached, gguf or llama2c.
        name: the name of the folder.
        for_genai: whether onnxruntime-genai reads it, too.
    """
    c = model.config
    front: dict[str, Any] = {"library_name": LIBRARIES[form], "pipeline_tag": "text-generation"}
    front["tags"] = TAGS.get(form, ["gptlab", "safetensors"])
    made = f"trained by gptlab, run `{info.config.get('name')}`" if info.config else f"from a {info.origin}"
    prompt = "PROMPT" if tokenizer.unknown("To be") else "To be"
    new = max(1, min(100, c.block_size - 8))
    use = USE[form] + (GENAI if for_genai else "")
    use = use.format(name=name, path=quote(name), prompt=prompt, new=new, **_sizes(c))
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n",
        f"A language model of {model.num_parameters():,} parameters, {made}. It sees at most {c.block_size} tokens.\n",
        f"## Use\n\n{use}",
        "## Training\n\n" + _table(training_facts(tokenizer, info)),
    ]
    if info.metrics:
        protocol = Windows.of(None, None, c.block_size).protocol("val") + tokenizer.begin_protocol
        parts.append(f"Measured on the validation split ({protocol}): loss in nats per token, bpb in bits per byte.\n")
    parts += ["## Architecture\n\n" + _table(models.to_dict(c)), "## Versions\n\n" + _table(_versions())]
    if info.config:
        given = info.config.get("data")
        data = {k: v for k, v in given.items() if does(f"data.{k}", "computes")} if isinstance(given, dict) else None
        config = {**info.config, "init_from": _origin(info), "resume": None, "data": data}
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        parts.append(f"<details><summary>The run's config</summary>\n\n```yaml\n{text}```\n\n</details>\n")
    return "\n".join(parts)


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of a config, and of a GPT the sizes that follow from them."""
    kept = {"kv_heads": config.kv_heads, "head_size": config.head_size} if isinstance(config, GPTConfig) else {}
    return vars(config) | kept


def training_facts(tokenizer: Tokenizer, info: ModelInfo) -> dict[str, Any]:
    """Return facts about the model's training, by what they are called; of paths only the names."""
    run, summary = flatten(info.config), _summary(info)
    paths = run.get("data.path") or []
    names = ", ".join(Path(str(path)).name for path in (paths if isinstance(paths, list) else [paths]))
    facts = {
        "data": f"{run.get('data.name', '')}{f' ({names})' if names else ''}",
        "sha256 of the text": info.data_sha256,
        "begun from": _origin(info),
        "tokenizer": f"{tokenizer.name}, {tokenizer.vocab_size:,} ids",
        "step": info.step,
        "seed": str(run["seed"]) if "seed" in run else None,
        **info.metrics,
        "train/loss, the run's last": summary.get("train/loss"),
        "tokens, the whole run": summary.get("tokens"),
        "training time": duration(summary["train_seconds"]) if "train_seconds" in summary else None,
        "device": summary.get("device"),
        "precision": summary.get("precision"),
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _origin(info: ModelInfo) -> str | None:
    """Return the model that the run was initialised from, without the folders of the run's machine."""
    given = info.config.get("init_from")
    return Path(given).name if isinstance(given, str) and Path(given).is_absolute() else given


def _summary(info: ModelInfo) -> dict[str, Any]:
    """Return the flattened summary.json of a checkpoint's run directory; empty if there is none."""
    file = info.path.parent.parent / "summary.json"
    with suppress(UserError):
        return flatten(read_json(file, must_be_sealed=False)) if info.path.parent.name == "checkpoints" else {}
    return {}


def _versions() -> dict[str, str]:
    """Return the versions of gptlab, Python and the installed packages that matter for the export."""
    versions = {"gptlab": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _table(rows: dict[str, Any]) -> str:
    """Return a Markdown table with two columns."""
    cells = "".join(f"| {key} | {_cell(value)} |\n" for key, value in rows.items())
    return f"| | |\n|---|---|\n{cells}"


def _cell(value: Any) -> str:
    """Return a value as it is shown in a table."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
