#!/usr/bin/env bash
# transformers 5.23.0, gguf 0.19.0: of a GGUF file of architecture llama, from_pretrained(gguf_file=...) leaves out the
# biases of q, k and v, and the linear scaling of positions, although both stand in the file and llama.cpp computes with
# them: the config says attention_bias=False and has no factor, no missing or unexpected weight is reported at the
# default level of logging, and the logits are those of another model.
#
# Seen on 2026-11-29, Linux x86-64, Python 3.11, torch 2.13.0, the largest difference of a logit from the model's own:
#   without biases and scaling  0
#   with biases                 8.6
#   with scaling by 4           13
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import pathlib
import sys

import gguf
import torch
import transformers

transformers.logging.disable_progress_bar()
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
H, C, LAYERS = 4, 32, 2


def interleaved(t):
    """GGUF's llama turns neighbours, transformers' turns halves."""
    return t.view(H, 2, t.shape[0] // H // 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape)


def written(model, file, factor):
    w = gguf.GGUFWriter(file, "llama")
    w.add_context_length(64)
    w.add_embedding_length(C)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(64)
    w.add_head_count(H)
    w.add_head_count_kv(H)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_dimension_count(C // H)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(48)
    if factor != 1:
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(factor)
    for name, t in model.state_dict().items():
        t = t.detach()
        kind = name.rpartition(".")[2]
        if name.startswith("model.layers."):
            _, _, number, rest = name.split(".", 3)
            part = rest.rpartition(".")[0]
            t = interleaved(t) if part in ("self_attn.q_proj", "self_attn.k_proj") else t
            name = f"blk.{number}.{NAMES[part]}.{kind}"
        else:
            name = {
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight",
            }[name]
        w.add_tensor(name, t.contiguous().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def difference(biases=False, factor=1.0):
    rope = {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}
    config = transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=C,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=H,
        max_position_embeddings=64,
        attention_bias=biases,
        rope_parameters={"rope_theta": 10000.0, **rope},
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("q_proj.bias") or name.endswith("k_proj.bias") or name.endswith("v_proj.bias"):
            torch.nn.init.normal_(parameter)
    place = pathlib.Path(sys.argv[1], f"{biases}-{factor}")
    place.mkdir()
    written(model, place / "model.gguf", factor)
    back = transformers.AutoModelForCausalLM.from_pretrained(place, gguf_file="model.gguf", dtype=torch.float32).eval()
    ids = torch.randint(48, (1, 20))
    with torch.no_grad():
        return (back(ids).logits - model(ids).logits).abs().max().item()


plain, biases, scaled = difference(), difference(biases=True), difference(factor=4.0)
print(f"without biases and scaling {plain:.2g}, with biases {biases:.2g}, with scaling by 4 {scaled:.2g}")
assert plain < 1e-4, "even a plain model differs"
assert biases > 0.1 and scaled > 0.1, "not as stated"
PY
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0 gguf==0.19.0 numpy==2.2.6 accelerate
"$folder/venv/bin/python" "$folder/try.py" "$folder"
echo "as stated"
