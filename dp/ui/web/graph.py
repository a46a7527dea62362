"""A checkpoint's network as an ONNX graph whose weights stay in the checkpoint's own model.safetensors: the graph says
where in that file each of them is, so that a page fetches them once, in the precision in which they are stored.

What is exported is one call of the network, with all of its inputs, for any number of rows:

    (x, time, x_self_cond, latents, condition) -> (prediction, latents_after)

without `condition` if the network has no classes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pkgutil
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dp.checkpoints.tensor_names import current_names
from dp.networks.rin import RIN
from dp.serving.backends import Positional, example_inputs

OPSET = 23  # with Attention and GroupNormalization, for which the browser's runtime has kernels of its own
WEIGHTS = "model.safetensors"  # the file to which the graph points
OUTPUTS = ["prediction", "latents_after"]
MIN_STORED = 16  # values: a smaller constant stays in the graph
INSTALL = "python -m pip install -r requirements-web.txt"


def load_onnx() -> Any:
    """Import onnx, at first use since it is optional. Raises ValueError, with the command, where it is missing."""
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise ValueError(f"exporting needs {error.name}, which is not installed: {INSTALL}") from None
    return onnx


def missing_packages() -> list[str]:
    """Return which of the packages that `load_onnx` imports are not installed, without importing any."""
    installed = {module.name for module in pkgutil.iter_modules()}
    return [name for name in ("onnx", "onnxscript") if name not in installed]


def input_names(network: RIN) -> list[str]:
    return ["x", "time", "x_self_cond", "latents"] + (["condition"] if network.num_classes else [])


def export_graph(network: RIN, weights: Path) -> bytes:
    """Return the ONNX graph of a network that was loaded from the safetensors file `weights`."""
    onnx = load_onnx()
    rows = {0: torch.export.Dim("rows", min=1, max=4096)}
    shapes = (rows,) * 4 + (((rows,),) if network.num_classes else ())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about the exporter's own parts
        program = torch.onnx.export(
            Positional(network).eval(),
            tuple(example_inputs(network, 2)),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=input_names(network),
            output_names=OUTPUTS,
            verbose=False,
        )
    model = program.model_proto
    forget_origin(model)
    give_norms_a_gain(onnx, model.graph, network.config["dim_head"])
    point_to_weights(onnx, model.graph, network.state_dict(), stored_tensors(weights))
    return model.SerializeToString()


def forget_origin(model: Any) -> None:
    """Remove the exporter's notes from a model: they hold lines and paths of the machine that exported it."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")  # shapes, which the runtime infers


def give_norms_a_gain(onnx: Any, graph: Any, size: int) -> None:
    """Give each norm of queries or keys without a gain one of `size` ones. The exporter gives it ones in the shape of
    the whole input, which the runtime's kernel for graphics processors rejects.
    """
    made_by = {output: node for node in graph.node for output in node.output}
    ones = onnx.numpy_helper.from_array(np.ones(size, np.float32), "no_gain")
    for node in graph.node:
        if node.op_type == "RMSNormalization" and made_by.get(node.input[1], node).op_type == "ConstantOfShape":
            node.input[1] = ones.name
    graph.initializer.append(ones)
    while unused := [node for node in graph.node if used_values(graph).isdisjoint(node.output)]:
        for node in unused:
            graph.node.remove(node)


def used_values(graph: Any) -> set[str]:
    return {name for node in graph.node for name in node.input} | {output.name for output in graph.output}


# ----------------------------------------------------------------------------
# Weights


def stored_tensors(path: Path) -> dict[str, tuple[str, list[int], int, int]]:
    """Return the dtype, the shape, the offset in the file and the length in bytes of each tensor of a safetensors file
    that has been checked.
    """
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    places = {name: about["data_offsets"] for name, about in header.items()}
    return {
        name: (header[name]["dtype"], header[name]["shape"], 8 + size + begin, end - begin)
        for name, (begin, end) in places.items()
    }


def point_to_weights(onnx: Any, graph: Any, weights: Mapping[str, torch.Tensor], stored: Mapping[str, Any]) -> None:
    """Replace each initializer of the graph that is one of the weights, or its transpose, by a place in the file.

    The exporter gives some weights other names and transposes some, so that they are recognized by their values.
    """
    names = current_names(stored)
    known: dict[bytes, tuple[str, bool]] = {}
    for name, value in weights.items():
        array = value.detach().numpy()
        if array.ndim == 2:
            known[key_of(array.T)] = name, True
        known[key_of(array)] = name, False
    kept, external, before = [], {}, []
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        found = known.get(key_of(array)) if array.dtype == np.float32 and array.size >= MIN_STORED else None
        if found is None:
            kept.append(tensor)
            continue
        name, is_transposed = found
        place = external.setdefault(name, external_tensor(onnx, f"stored.{name}", *stored[names[name]]))
        before += made_from(onnx, place, tensor.name, is_transposed)
    nodes = [*before, *graph.node]
    graph.ClearField("node")
    graph.ClearField("initializer")
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *external.values()])


def key_of(array: np.ndarray) -> bytes:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).digest()


def external_tensor(onnx: Any, name: str, dtype: str, shape: list[int], offset: int, length: int) -> Any:
    kinds = onnx.TensorProto
    types = {"F64": kinds.DOUBLE, "F32": kinds.FLOAT, "F16": kinds.FLOAT16, "BF16": kinds.BFLOAT16}
    tensor = kinds(name=name, data_type=types[dtype], dims=shape, data_location=kinds.EXTERNAL)
    for key, value in {"location": WEIGHTS, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def made_from(onnx: Any, place: Any, name: str, is_transposed: bool) -> list[Any]:
    """Return the nodes that make the float32 value `name` of a stored tensor."""
    make, source = onnx.helper.make_node, place.name
    half = f"{name}.float" if is_transposed else name
    nodes = [make("Cast", [source], [half], to=onnx.TensorProto.FLOAT)]
    return nodes + ([make("Transpose", [half], [name], perm=[1, 0])] if is_transposed else [])
