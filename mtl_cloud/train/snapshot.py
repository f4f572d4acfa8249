"""The training state as a snapshot: owned host copies of its tensors, and everything else as one JSON tree.

``restore_snapshot(take_snapshot(state))`` is ``state``, bit for bit.

Fresh memory costs several times what a copy into it does: the system hands it out page by page, and CUDA has to pin it.
A run's states are alike, so ``HostBuffers`` keeps the memory of one snapshot for the next.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["PART_BYTES", "HostBuffers", "Snapshot", "restore_snapshot", "take_snapshot"]

PART_BYTES = 64 * 2**20
"""Tensor bytes of a stored part at most: one atomic PUT, cheap to repeat."""


@dataclass(frozen=True)
class Snapshot:
    """A state taken apart.

    In ``tree`` a tensor is ``{"$tensor": name}``, a float that JSON lacks ``{"$float": its 8 bytes}``, and a mapping
    whose keys are not plain strings ``{"$dict": [[key, value], ...]}``.
    """

    tree: dict[str, Any]
    tensors: dict[str, Tensor]
    """On the CPU, contiguous, at most ``part_bytes`` each, sharing no memory with the state. Named by JSON pointer."""


class HostBuffers:
    """The memory that one snapshot after another is copied into; each overwrites the one before.

    Holds as many bytes as the tensors of the newest snapshot. What comes from a GPU lies in pinned memory.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, path: str, value: Tensor) -> Tensor:
        """A contiguous tensor of ``value``'s type and shape for the place ``path``, with anything in it."""
        buffer = self._buffers.get(path)
        if buffer is None or (buffer.dtype, buffer.shape) != (value.dtype, value.shape):
            self._buffers.pop(path, None)  # freed before its successor is made
            self._buffers[path] = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return self._buffers[path]

    def keep(self, paths: Collection[str]) -> None:
        """Free what belongs to other places."""
        for path in self._buffers.keys() - paths:
            del self._buffers[path]


def take_snapshot(
    state: Mapping[str, Any], *, buffers: HostBuffers | None = None, part_bytes: int = PART_BYTES
) -> Snapshot:
    """Copy ``state``: nested mappings, lists and tuples (which become lists) of tensors and JSON scalars.

    Equal views of the same memory are stored once, and are one tensor again after loading. With ``buffers`` the
    snapshot lives in them, until the next one is taken there. Raises ``TypeError`` that names the place of anything
    else.
    """
    taker = _Taker(buffers or HostBuffers(), part_bytes)
    return Snapshot(taker.mapping(state, ""), taker.finish())


def restore_snapshot(snapshot: Snapshot) -> Any:
    """The state again: tensors on the CPU, every bit as it was."""
    return _restore(snapshot.tree, dict(snapshot.tensors))


class _Taker:
    def __init__(self, buffers: HostBuffers, part_bytes: int) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._buffers = buffers
        self._part_bytes = part_bytes
        # The tensor itself is held too, so that its address stays its own.
        self._seen: dict[tuple[Any, ...], tuple[dict[str, Any], Tensor]] = {}

    def finish(self) -> dict[str, Tensor]:
        """The tensors, once all copies have arrived."""
        for device in {tensor.device for _, tensor in self._seen.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        self._buffers.keep({place["$tensor"] for place, _ in self._seen.values()})
        return self._tensors

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
            self._seen[view] = self._copied(value, path), value
        return self._seen[view][0]

    def _copied(self, value: Tensor, path: str) -> dict[str, Any]:
        host = self._buffers.take(path, value)
        host.copy_(value.detach(), non_blocking=value.is_cuda)
        if host.nbytes <= self._part_bytes:
            self._tensors[path] = host
            return {"$tensor": path}
        pieces = torch.split(host.view(-1), max(1, self._part_bytes // host.element_size()))
        self._tensors |= {f"{path}/{index}": piece for index, piece in enumerate(pieces)}
        return {"$tensor": path, "pieces": len(pieces), "shape": list(host.shape)}


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
