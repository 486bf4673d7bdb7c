"""As much of the ONNX file format as reading a frozen network takes: its nodes, in order, and their tensors.

ONNX is a protobuf message; numbers of fields are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. A
hundred lines here save the packages `onnx` and `protobuf`, which nothing else would use.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

FLOAT = 1  # TensorProto.DataType


@dataclass(frozen=True)
class Node:
    """One operation: names of its inputs and outputs, its integer attributes (lists of them too) and real ones."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ints: dict[str, tuple[int, ...]]
    floats: dict[str, float]


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run, and the float32 tensors among their inputs."""

    nodes: list[Node]
    tensors: dict[str, np.ndarray]


def read(data: bytes) -> Graph:
    """The graph of an ONNX model. Raises ValueError for bytes that are no such model."""
    try:
        [graph] = [value for field, value in _fields(memoryview(data)) if field == 7]
        parts = list(_fields(graph))
        tensors = dict(_tensor(value) for field, value in parts if field == 5)
        nodes = [_node(value) for field, value in parts if field == 1]
    except (ValueError, IndexError, struct.error, TypeError, OverflowError) as error:
        raise ValueError(f"not an ONNX model: {error}") from error
    return Graph(nodes, {name: tensor for name, tensor in tensors.items() if tensor is not None})


def take_over(net: nn.Module, graph: Graph) -> None:
    """The weights of the graph's layers for the network's, which stand in the order in which the graph runs them.

    Raises ValueError where they are others.
    """
    kinds = {"Conv": nn.Conv2d, "ConvTranspose": nn.ConvTranspose2d, "BatchNormalization": nn.BatchNorm2d}
    nodes = [node for node in graph.nodes if node.op in kinds]
    layers = [layer for layer in net.modules() if isinstance(layer, tuple(kinds.values()))]
    if [kinds[node.op] for node in nodes] != [type(layer) for layer in layers]:
        raise ValueError(f"the file's layers are not {type(net).__name__}'s")
    with torch.no_grad():
        for node, layer in zip(nodes, layers, strict=True):
            parts = ("weight", "bias", "running_mean", "running_var")
            for part, source in zip(parts, node.inputs[1:], strict=False):
                value, place = torch.from_numpy(graph.tensors[source].copy()), getattr(layer, part)
                if place.shape != value.shape:
                    raise ValueError(f"{source}: {tuple(value.shape)}, expected {tuple(place.shape)}")
                place.copy_(value)


def _node(message: memoryview) -> Node:
    inputs, outputs, op = [], [], ""
    ints: dict[str, tuple[int, ...]] = {}
    floats: dict[str, float] = {}
    for field, value in _fields(message):
        match field:
            case 1:
                inputs.append(str(value, "utf8"))
            case 2:
                outputs.append(str(value, "utf8"))
            case 4:
                op = str(value, "utf8")
            case 5:
                _attribute(value, ints, floats)
    return Node(op, tuple(inputs), tuple(outputs), ints, floats)


def _attribute(message: memoryview, ints: dict[str, tuple[int, ...]], floats: dict[str, float]) -> None:
    parts = list(_fields(message))
    [name] = [str(value, "utf8") for field, value in parts if field == 1]
    whole = tuple(number for field, value in parts if field in (3, 8) for number in _integers(value))
    if whole:
        ints[name] = whole
    for field, value in parts:
        if field == 2:
            floats[name] = struct.unpack("<f", value)[0]


def _tensor(message: memoryview) -> tuple[str, np.ndarray | None]:
    parts = list(_fields(message))
    [name] = [str(value, "utf8") for field, value in parts if field == 8]
    [kind] = [value for field, value in parts if field == 2]
    if kind != FLOAT:
        return name, None
    shape = [number for field, value in parts if field == 1 for number in _integers(value)]
    raw = b"".join(bytes(value) for field, value in parts if field in (4, 9))  # packed floats, or raw data: both "<f4"
    return name, np.frombuffer(raw, "<f4").reshape(shape)


def _integers(value: int | memoryview) -> Iterator[int]:
    """A repeated integer field comes one by one, or packed."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: an int, or the bytes of a string, a message or a fixed-size number."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(message, at)
            case 5:
                size = 4
            case wire:
                raise ValueError(f"unknown wire type {wire}")
        if at + size > len(message):
            raise ValueError("the data ends within a field")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at
