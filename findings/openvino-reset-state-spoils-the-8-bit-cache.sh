#!/usr/bin/env bash
# openvino 2026.4.1 on a CPU: after reset_state() a model whose keys and values are a state (the form that optimum-intel
# writes) attends to wrong ones, without a word, where keys and values have 8 bits and there are more rows than before. 8
# bits are the default (KV_CACHE_PRECISION is u8). It is right again after another reset_state(), in f16 and f32, and in a
# new infer request, which takes 0.2 ms to make.
#
# Seen on 2026-11-30, Linux x86-64 with AVX-512, Python 3.11: the largest error of 1 row of 8 + 60 tokens, then of 2 rows
# of 8 + 30, beside the standard deviation of what is right
#   u8, reset_state()     0.022 598 (inf in another run)
#   u8, new request       0.022 0.0266
#   f16, reset_state()    0.002 0.00177
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.passes import MakeStateful, Manager

H, D = 4, 16


def attention() -> ov.Model:
    """Attention with keys and values as its state."""
    q, k, v = (ops.parameter([-1, H, -1, D], np.float32) for _ in "qkv")
    rows = ops.parameter([-1], np.int32)
    pasts = [ops.parameter([-1, H, -1, D], np.float32) for _ in "kv"]
    kept = [ops.concat([ops.gather(past, rows, ops.constant(0)), new], 2) for past, new in zip(pasts, (k, v))]
    results = [ops.result(each) for each in kept]
    for name, past, each in zip("kv", pasts, kept):
        past.output(0).set_names({f"past.{name}"})
        each.output(0).set_names({f"present.{name}"})
    y = ops.scaled_dot_product_attention(q, *kept, causal=False)
    model = ov.Model([ops.result(y), *results], [q, k, v, rows, *pasts])
    manager = Manager()
    manager.register_pass(MakeStateful({f"past.{name}": f"present.{name}" for name in "kv"}))
    manager.run_passes(model)
    batch = ops.gather(ops.shape_of(rows), ops.constant([0]), ops.constant(0))
    empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([batch, ops.constant(np.array([H, 0, D]))], 0))
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty])
    model.validate_nodes_and_infer_types()
    return model


def errors(kind: str, new: bool) -> list[float]:
    hints = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": kind}
    compiled = ov.Core().compile_model(attention(), "CPU", hints)
    request, found = compiled.create_infer_request(), []
    for rows, more in ((1, 60), (2, 30)):
        if new:
            request = compiled.create_infer_request()
        request.reset_state()
        q, k, v = np.random.default_rng(rows).standard_normal((3, rows, H, 8 + more, D)).astype(np.float32)
        worst = 0.0
        for begin, end in [(0, 8), *((i, i + 1) for i in range(8, 8 + more))]:
            part = np.s_[:, :, begin:end]
            y = request.infer([q[part], k[part], v[part], np.arange(rows, dtype=np.int32)])[0]
            scores = np.exp(q[part] @ k[:, :, :end].transpose(0, 1, 3, 2) / D**0.5)
            right = scores / scores.sum(-1, keepdims=True) @ v[:, :, :end]
            worst = max(worst, float(np.abs(y - right).max() / right.std()))
        found.append(worst)
    return found


for kind, new in (("u8", False), ("u8", True), ("f16", False)):
    first, second = errors(kind, new)
    print(f"{kind}, {'new request' if new else 'reset_state()'}", f"{first:.3f} {second:.3g}")
    assert first < 0.1
    assert (second < 0.1) == (kind != "u8" or new), "not as stated"
PY
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 numpy==2.2.6
"$folder/env/bin/python" "$folder/try.py"
echo "as stated"
