"""Snapshots of the training state: host copies of its tensors, and everything else as one JSON tree.

``restore_snapshot(take_snapshot(state))`` is ``state``, bit for bit.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtl_cloud.train.checkpoint.host_buffers import DTYPES, HostBuffers, TensorSpec

__all__ = ["PART_BYTES", "HostBuffers", "Snapshot", "restore_snapshot", "take_snapshot"]

PART_BYTES = 64 * 2**20
"""Most tensor bytes of a stored part: one atomic PUT, cheap to repeat."""


@dataclass(frozen=True)
class Snapshot:
    """A state, separated into a JSON tree and tensors.

    In ``tree`` a tensor is ``{"$tensor": name}``, a float that JSON lacks ``{"$float": its 8 bytes}``, and a mapping
    whose keys are not plain strings ``{"$dict": [[key, value], ...]}``.
    """

    tree: dict[str, Any]
    tensors: dict[str, Tensor]
    """On the CPU, contiguous, at most ``part_bytes`` each, sharing no memory with the state. Named by JSON pointer."""
    files: Sequence[memoryview] = ()
    """The memory of these tensors, as safetensors files. Empty for a loaded checkpoint."""


def take_snapshot(
    state: Mapping[str, Any], *, buffers: HostBuffers | None = None, part_bytes: int = PART_BYTES
) -> Snapshot:
    """Copy ``state``: nested mappings, lists and tuples (which become lists) of tensors and JSON scalars.

    Equal views of the same memory are stored once, and are one tensor again after loading. With ``buffers`` the
    snapshot uses their memory, and is valid until the next one is taken there. Raises ``TypeError`` that names the
    place of anything else.
    """
    walker = _StateWalker(part_bytes)
    tree = walker.mapping(state, "")
    specs = [TensorSpec(name, value.dtype, tuple(value.shape)) for name, value in walker.tensors.items()]
    devices = {value.device for value in walker.tensors.values() if value.is_cuda}
    allocated = (buffers or HostBuffers()).allocate(specs, part_bytes=part_bytes, pinned=bool(devices))
    tensors = {name: tensor for buffer in allocated for name, tensor in buffer.tensors.items()}
    for name, value in walker.tensors.items():
        tensors[name].copy_(value, non_blocking=True)
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return Snapshot(tree, tensors, [buffer.data for buffer in allocated])


def restore_snapshot(snapshot: Snapshot) -> Any:
    """The state, with tensors on the CPU, bit for bit."""
    return _restore(snapshot.tree, dict(snapshot.tensors))


class _StateWalker:
    """Builds the JSON tree of a state, and collects the tensors to copy by name."""

    def __init__(self, part_bytes: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._part_bytes = part_bytes
        # The tensor itself is held too, so that its address is not reused.
        self._seen: dict[tuple[Any, ...], tuple[dict[str, Any], Tensor]] = {}

    def value(self, value: Any, path: str) -> Any:
        match value:
            case Tensor():
                return self._tensor(value, path)
            case Mapping():
                return self.mapping(value, path)
            case list() | tuple():
                return [self.value(item, f"{path}/{index}") for index, item in enumerate(value)]
            case float() if not math.isfinite(value):
                return {"$float": struct.pack(">d", value).hex()}
            case None | bool() | int() | float() | str():
                return value
        raise TypeError(f"{path}: a {type(value).__qualname__} cannot be part of a checkpoint")

    def mapping(self, value: Mapping[Any, Any], path: str) -> dict[str, Any]:
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: self.value(item, f"{path}/{_escaped(key)}") for key, item in value.items()}
        pairs = enumerate(value.items())
        return {"$dict": [[self.value(key, path), self.value(item, f"{path}/{n}")] for n, (key, item) in pairs]}

    def _tensor(self, value: Tensor, path: str) -> dict[str, Any]:
        view = (
            value.device,
            value.data_ptr(),
            value.dtype,
            value.shape,
            value.stride(),
            value.is_conj(),
            value.is_neg(),
        )
        if view not in self._seen:
            self._seen[view] = self._named(value.detach(), path), value
        return self._seen[view][0]

    def _named(self, value: Tensor, path: str) -> dict[str, Any]:
        if value.dtype not in DTYPES:
            raise TypeError(f"{path}: a tensor of {value.dtype} cannot be part of a checkpoint")
        if value.nbytes <= self._part_bytes:
            self.tensors[path] = value
            return {"$tensor": path}
        pieces = torch.split(value.reshape(-1), max(1, self._part_bytes // value.element_size()))
        self.tensors |= {f"{path}/{index}": piece for index, piece in enumerate(pieces)}
        return {"$tensor": path, "pieces": len(pieces), "shape": list(value.shape)}


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _restore(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        return _restore_mapping(tree, tensors)
    if isinstance(tree, list):
        return [_restore(item, tensors) for item in tree]
    return tree


def _restore_mapping(tree: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    match tree:
        case {"$float": digits}:
            return struct.unpack(">d", bytes.fromhex(digits))[0]
        case {"$dict": pairs}:
            return {_restore(key, tensors): _restore(item, tensors) for key, item in pairs}
        case {"$tensor": name}:
            if name not in tensors:
                pieces = [tensors[f"{name}/{index}"] for index in range(tree["pieces"])]
                tensors[name] = torch.cat(pieces).view(tree["shape"])
            return tensors[name]
    return {key: _restore(item, tensors) for key, item in tree.items()}
