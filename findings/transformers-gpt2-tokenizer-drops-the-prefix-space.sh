#!/usr/bin/env bash
# transformers 5.23.0: beside a tokenizer.json whose ByteLevel step puts a space before each text, and a
# tokenizer_config.json that names GPT2Tokenizer and says nothing of it, AutoTokenizer encodes without that space. So one
# folder has two tokenizers: `tokenizers` reads the file as it is and gives another first id to every text. The class
# PreTrainedTokenizerFast keeps the file's step. ByteLevel() itself has the space by default, so files like that are
# common: it takes no mistake to make one.
#
# Seen on 2026-11-28, Python 3.11, tokenizers 0.23.3:
#   tokenizers ['Ġ', 'a', 'b'], GPT2Tokenizer ['a', 'b'], PreTrainedTokenizerFast ['Ġ', 'a', 'b']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import json
import pathlib
import sys

import tokenizers
from transformers import AutoTokenizer

made = tokenizers.Tokenizer(
    tokenizers.models.BPE({letter: i for i, letter in enumerate(["a", "b", "\u0120", "<|endoftext|>"])}, [])
)
made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
found = {"tokenizers": made.encode("ab").tokens}
for name in ("GPT2Tokenizer", "PreTrainedTokenizerFast"):
    folder = pathlib.Path(sys.argv[1], name)
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": name, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    found[name] = AutoTokenizer.from_pretrained(folder).tokenize("ab")
print(", ".join(f"{name} {tokens}" for name, tokens in found.items()))
assert found["tokenizers"] == found["PreTrainedTokenizerFast"] == ["\u0120", "a", "b"]
assert found["GPT2Tokenizer"] == ["a", "b"]
PY
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
"$folder/env/bin/python" "$folder/try.py" "$folder"
echo "as stated"
