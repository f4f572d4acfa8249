"""Pretrained weights: ``state_dict`` files with torchvision's keys, safetensors, and darknet's ``.weights``."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import fsspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mtl_cloud.errors import MissingExtraError, TrainingError
from mtl_cloud.train.nets.darknet_weights import load_weights
from mtl_cloud.train.nets.fcn import FCNResNet50
from mtl_cloud.train.nets.staged import StagedNetwork
from mtl_cloud.train.nets.yolo import YOLOv3

__all__ = ["load_pretrained"]

State: TypeAlias = dict[str, Tensor]

_log = logging.getLogger(__name__)
_STATE_DICT_SUFFIXES = (".pt", ".pth", ".th", ".safetensors")


def load_pretrained(network: StagedNetwork, uri: str) -> None:
    """Load a sub-network's weights from a path or URL. Files fetched by http are cached in torch hub's folder.

    If the file has no head, or a head for another number of classes, the head keeps its random weights and a warning
    is logged. All other tensors are required.

    Raises
    ------
    TrainingError
        The file cannot be fetched or read, or a required tensor is missing or has another shape.
    MissingExtraError
        The URL is ``s3://`` and s3fs is not installed.
    """
    path = _local(uri)
    if isinstance(network, YOLOv3) and path.suffix not in _STATE_DICT_SUFFIXES:
        fresh = load_weights(path, network)
    else:
        fresh = _fill(network, _read(path), path)
    if fresh:
        _log.warning("%s: missing or of another shape, so trained from random weights: %s", path, ", ".join(fresh))


def _local(uri: str) -> Path:
    """Path of the file on this machine; fetches it if necessary."""
    scheme, separator, _ = uri.partition("://")
    try:
        if not separator:
            return Path(uri).expanduser().resolve(strict=True)
        if scheme in ("http", "https"):
            return _from_hub(uri)
        return Path(fsspec.open_local(f"simplecache::{uri}", simplecache={"same_names": True}))
    except ImportError as error:
        raise MissingExtraError("aws", f"reading {uri}") from error
    except (OSError, RuntimeError) as error:  # torch hub raises RuntimeError for a wrong checksum
        raise TrainingError(
            f"the pretrained weights {uri} cannot be fetched: {error}",
            hint="check the paths and URLs of model.pretrained",
        ) from error


def _from_hub(url: str) -> Path:
    """Path of the file in torchvision's cache; downloads it if missing. ``vgg16-397923af.pth`` names its checksum."""
    name = Path(urlsplit(url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum = re.search(r"-([0-9a-f]{8,})\.", name)
        torch.hub.download_url_to_file(url, str(path), checksum[1] if checksum else None, progress=False)
    return path


def _read(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise TrainingError(f"{path}: not a readable weights file: {error}") from error
    if not isinstance(state, dict):
        raise TrainingError(f"{path}: contains a {type(state).__name__}, not a state_dict")
    inner: State = state.get("state_dict") or state.get("model") or state
    return inner


def _fill(network: StagedNetwork, state: State, path: Path) -> tuple[str, ...]:
    """Copy the tensors that fit. Returns the keys of heads that do not."""
    if isinstance(network, FCNResNet50) and "layer1.0.conv1.weight" in state:
        state = {f"backbone.{key}": tensor for key, tensor in state.items()}  # a bare ResNet-50
    unfit = [key for key, tensor in network.state_dict().items() if not _fits(key, tensor, state)]
    for key in unfit:
        if not key.startswith(network.head_prefixes):
            raise _mismatch(network, key, state, path)
    network.load_state_dict({key: tensor for key, tensor in state.items() if key not in unfit}, strict=False)
    return tuple(unfit)


def _fits(key: str, own: Tensor, state: State) -> bool:
    # Files from before torch 0.4.1, including some of torchvision's, do not count batches.
    if key not in state:
        return key.endswith(".num_batches_tracked")
    return state[key].shape == own.shape


def _mismatch(network: StagedNetwork, key: str, state: State, path: Path) -> TrainingError:
    name = type(network).__name__
    if key not in state:
        return TrainingError(f"{path}: no `{key}` in the file: these are not the weights of this {name}", hint=_HINT)
    theirs, ours = list(state[key].shape), list(network.state_dict()[key].shape)
    return TrainingError(f"{path}: `{key}` is {theirs} in the file and {ours} in this {name}", hint=_HINT)


_HINT = "published weights need model.width: 1 and the model.batch_norm that they were trained with"
