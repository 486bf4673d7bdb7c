"""The reader of ONNX files: what is written is read, what is no model is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from jmt_fast.faces.onnx import read


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, values: np.ndarray, packed: bool, raw: bool) -> bytes:
    shape = field(1, b"".join(map(varint, values.shape))) if packed else b"".join(field(1, n) for n in values.shape)
    return shape + field(2, 1) + field(8, name.encode()) + field(9 if raw else 4, values.astype("<f4").tobytes())


def model(packed: bool = False, raw: bool = True) -> tuple[bytes, np.ndarray]:
    values = np.random.default_rng(0).normal(size=(3, 200, 1)).astype(np.float32)
    strides = b"".join(map(varint, (2, 300)))
    ints = field(8, strides) if packed else field(8, 2) + field(8, 300)
    attributes = field(5, field(1, b"strides") + ints) + field(5, field(1, b"epsilon") + field(2, 0.25))
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(4, b"Conv") + attributes
    counter = field(2, 7) + field(8, b"n") + field(9, bytes(8))  # an int64, which is passed over
    graph = field(1, node) + field(5, tensor("w", values, packed, raw)) + field(5, counter) + field(2, b"name")
    return field(1, 4) + field(7, graph), values


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_nodes_and_tensors_come_back(packed: bool, raw: bool) -> None:
    data, values = model(packed, raw)
    graph = read(data)
    [node] = graph.nodes
    assert (node.op, node.inputs, node.outputs) == ("Conv", ("x", "w"), ("y",))
    assert (node.ints, node.floats) == ({"strides": (2, 300)}, {"epsilon": 0.25})
    assert list(graph.tensors) == ["w"]
    assert np.array_equal(graph.tensors["w"], values)


def test_a_cut_file_is_refused() -> None:
    data, _ = model()
    for length in (0, 1, 5, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="not an ONNX model"):
            read(data[:length])


def test_damage_is_an_error_or_goes_unnoticed() -> None:
    """A ValueError of one line, or a graph of float32 tensors: never anything else."""
    data, _ = model()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(500):
        hurt = bytearray(data)
        for place in rng.integers(0, 120, 3):
            hurt[place] = rng.integers(256)
        try:
            graph = read(bytes(hurt))
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert all(values.dtype == np.float32 for values in graph.tensors.values())
    assert 100 < refused < 500
