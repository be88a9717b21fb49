"""Two programs that run the graph of `export --format onnx --kv-cache`: onnxruntime and OpenVINO.

Both are spared the logits of a prompt but for its last token, which the graph has, since others want them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.benchmarks.alternation import in_another_process
from gptlab.system.errors import UserError

if TYPE_CHECKING:
    from gptlab.benchmarks.generation_peers import Draw, Prompts

GRAPH = "onnx/model.onnx"
IDS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"
PAST, PRESENT = "past_key_values.", "present."


def onnxruntime(folder: Path, weights: str, threads: int) -> Draw:
    """A session whose keys and values never leave it, by IO binding.

    int8 is its own `quantize_dynamic`, with a scale for each column of a matrix, of the head and of the table of tokens
    too. Activations become integers as they come.
    """
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    made = in_another_process(write_for_onnxruntime, folder, weights)
    session = ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    past = [each for each in session.get_inputs() if each.name.startswith(PAST)]
    results = [each.name for each in session.get_outputs()]

    def draw(prompts: Prompts, count: int) -> Prompts:
        binding = session.io_binding()
        shape = (len(prompts), past[0].shape[1], 0, past[0].shape[3])
        kept = [ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))] * len(past)

        def logits(inputs: dict[str, Any]) -> Any:
            nonlocal kept
            for name, value in inputs.items():
                binding.bind_cpu_input(name, value)
            for each, value in zip(past, kept, strict=True):
                binding.bind_ortvalue_input(each.name, value)
            for name in results:
                binding.bind_output(name)
            session.run_with_iobinding(binding)
            found, *kept = binding.get_outputs()
            return found.numpy()

        return greedy(logits, prompts, count)

    return draw


def openvino(folder: Path, weights: str, threads: int) -> Draw:
    """A model with keys and values as its state, which OpenVINO appends to and attends to in one operation.

    fp32 is its mode for accuracy, with keys and values in fp32. int8 is `compress_weights` of nncf, INT8_SYM: a scale
    for each row of a matrix, the table of tokens and the head too. Everything else is as OpenVINO has it by default:
    activations become integers in groups of 32, keys and values have 8 bits, and the rest is bf16 where the processor
    has that.
    """
    import numpy as np
    import openvino as ov

    core = ov.Core()
    if weights == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError("--weights bf16: OpenVINO has none on this processor; use --weights fp32")
    hints = {"fp32": {"EXECUTION_MODE_HINT": "ACCURACY"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}, "int8": {}}
    made = in_another_process(write_for_openvino, folder, weights)
    model = core.compile_model(made, "CPU", {"INFERENCE_NUM_THREADS": threads, **hints[weights]})

    def draw(prompts: Prompts, count: int) -> Prompts:
        request = model.create_infer_request()  # see findings/openvino-reset-state-spoils-the-8-bit-cache.sh
        rows = {"beam_idx": np.arange(len(prompts), dtype=np.int32)}
        return greedy(lambda inputs: request.infer(inputs | rows, share_inputs=True)[0], prompts, count)

    return draw


def greedy(logits: Callable[[dict[str, Any]], Any], prompts: Prompts, count: int) -> Prompts:
    """Draw `count` tokens after each prompt.

    Args:
        logits: by the inputs of a graph, the logits after the last token of each row, (B, 1, V).
    """
    import numpy as np

    idx = np.array(prompts)
    drawn = []
    for length in range(idx.shape[1], idx.shape[1] + count):
        t = np.tile(np.arange(length - idx.shape[1], length), (len(prompts), 1))
        idx = logits({IDS: idx, MASK: np.ones((len(prompts), length), np.int64), POSITIONS: t}).argmax(axis=-1)
        drawn.append(idx)
    return np.concatenate(drawn, axis=1).tolist()


def write_for_onnxruntime(folder: Path, weights: str) -> Path:
    """Write the graph with the logits of the last token alone, and integers for its matrices if they are wanted."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(folder / GRAPH)
    nodes = model.graph.node
    head = max(i for i, node in enumerate(nodes) if node.op_type == "MatMul")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "last"))
    nodes.insert(head, onnx.helper.make_node("Gather", [nodes[head].input[0], "last"], ["last_state"], axis=1))
    nodes[head + 1].input[0] = "last_state"
    onnx.save(model, made := folder / "fp32.onnx")
    if weights == "int8":
        quant_pre_process(
            made, ready := folder / "ready.onnx", skip_symbolic_shape=True
        )  # transposes the head's matrix
        quantize_dynamic(ready, made := folder / "int8.onnx", per_channel=True)
    return made


def write_for_openvino(folder: Path, weights: str) -> Path:
    """Write a model with a state: what went in and came out as keys and values stays inside.

    `beam_idx` says whose keys and values each row continues. It is part of the pattern by which OpenVINO knows such a
    model, as is a product with the keys that are not reshaped before, as torch's exporter does.
    """
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops
    from openvino.passes import MakeStateful, Manager

    model = ov.convert_model(folder / GRAPH)
    rows = ops.parameter([-1], np.int32, "beam_idx")
    rows.output(0).get_tensor().add_names({"beam_idx"})
    pairs = {name: name.replace(PAST, PRESENT) for each in model.inputs if (name := each.any_name).startswith(PAST)}
    for name in pairs:
        past = model.input(name)
        readers = past.get_target_inputs()
        gathered = ops.gather(past, rows, ops.constant(0))
        for reader in readers:
            reader.replace_source_output(gathered.output(0))
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            use_keys_as_they_are(node)
    heads = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    last = ops.gather(heads[-1].input_value(0), ops.constant([-1]), ops.constant(1))
    heads[-1].input(0).replace_source_output(last.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
    manager = Manager()
    manager.register_pass(MakeStateful(pairs))
    manager.run_passes(model)
    batch = ops.gather(ops.shape_of(rows), ops.constant([0]), ops.constant(0))
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ReadValue":  # at first as many rows as there are texts, of no tokens
            _, K, _, D = node.get_output_partial_shape(0)
            empty = ops.concat([batch, ops.constant(np.array([K.get_length(), 0, D.get_length()]))], axis=0)
            node.set_arguments([ops.broadcast(ops.constant(np.float32(0)), empty)])
    model.validate_nodes_and_infer_types()
    if weights == "int8":
        import nncf

        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    ov.save_model(model, made := folder / "openvino.xml", compress_to_fp16=False)
    return made


def use_keys_as_they_are(attention: Any) -> None:
    """Leave out what transposes keys and transposes them back, by way of a reshape."""
    keys = attention.input_value(1)
    for kind in ("Transpose", "Reshape", "Transpose", "Reshape"):
        if keys.get_node().get_type_name() != kind:
            return
        keys = keys.get_node().input_value(0)
    attention.input(1).replace_source_output(keys)
