"""SavedModels that are code, not only weights: operations that reach files, other machines or Python."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.errors import ConvertError

# Of the operations that TensorFlow has, those that a model which only computes has no use for.
UNSAFE = re.compile(
    r"\w*(Dataset|Debug|File(?!name|spec)|Iterator|PyFunc|Reader|Record|Rpc|Snapshot|Summary\w*Writer|Write\w*Summary)\w*"
    r"|CalibrationStatisticsSaver|DistributedSave|DumpTensor|FixedUnigramCandidateSampler|GenerateVocabRemapping|ImmutableConst"
    r"|ImportEvent|LoadAndRemapMatrix|Print(V2)?|RemoteCall|Restore(Slice)?|Save(Slices)?|Skipgram"
)
WRITING = re.compile("MergeV2Checkpoints|SaveV2")
SAVER = re.compile(rf"DTensorRestoreV2|RestoreV2|{WRITING.pattern}")  # in every SavedModel, for its variables


def refuse_unsafe_ops(path: Path) -> None:
    """Read the graph of a SavedModel without loading it.

    Raises:
        ConvertError: it holds an unsafe operation, what it serves or runs when loaded uses the saver's, what reads its
            variables writes, or an output is made of several tensors.
    """
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415  takes seconds: not before it is needed

    stored = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    for meta in stored.meta_graphs:
        functions = {function.signature.name: function.node_def for function in meta.graph_def.library.function}
        for node in (*meta.graph_def.node, *(node for body in functions.values() for node in body)):
            refuse(path, node, UNSAFE)
        refuse_parts(path, meta)
        for node in reached(needed(meta, served(meta)), functions, meta.object_graph_def.concrete_functions):
            refuse(path, node, SAVER)
        for node in reached(needed(meta, [meta.saver_def.restore_op_name]), functions, []):
            refuse(path, node, WRITING)


def refuse(path: Path, node: Any, unsafe: re.Pattern[str]) -> None:
    """Name a node that has an unsafe operation."""
    if unsafe.fullmatch(node.op):
        raise ConvertError(
            f"{path}: node {node.name!r} ({node.op}) reaches files or runs Python: remove it, or give"
            " --trust-source if you know where the model is from"
        )


def refuse_parts(path: Path, meta: Any) -> None:
    """Refuse outputs that are sparse or composite: what leads to them is not followed, and no classifier has them."""
    for signature in meta.signature_def.values():
        for name, output in signature.outputs.items():
            if output.WhichOneof("encoding") != "name":
                raise ConvertError(f"{path}: output {name!r} is no plain tensor: export it with model.export(folder)")


def served(meta: Any) -> list[str]:
    """Names of the results of signatures and of start-up operations."""
    names = [tensor.name for signature in meta.signature_def.values() for tensor in signature.outputs.values()]
    return names + [name for collection in meta.collection_def.values() for name in collection.node_list.value]


def needed(meta: Any, names: Iterable[str]) -> list[Any]:
    """The nodes outside of functions that lead to these nodes or tensors."""
    nodes = {node.name: node for node in meta.graph_def.node}
    waiting, found = list(names), dict[str, Any]()
    while waiting:
        name = waiting.pop().removeprefix("^").split(":")[0]
        if name in nodes and name not in found:
            found[name] = nodes[name]
            waiting += nodes[name].input
    return list(found.values())


def reached(nodes: Iterable[Any], functions: Mapping[str, Iterable[Any]], called: Iterable[str]) -> Iterator[Any]:
    """These nodes, and those of the functions that they and `called` lead to. `functions` are node lists by name."""
    waiting, seen = list(called), set[str]()
    for node in nodes:
        yield node
        waiting += calls(node)
    while waiting:
        name = waiting.pop()
        if name in functions and name not in seen:
            seen.add(name)
            for node in functions[name]:
                yield node
                waiting += calls(node)


def calls(node: Any) -> Iterator[str]:
    """Names of the functions that a node may call: its own operation, and its attributes."""
    yield node.op
    for value in node.attr.values():
        for function in (value.func, *value.list.func):
            yield function.name
            yield from (inner.func.name for inner in function.attr.values())
