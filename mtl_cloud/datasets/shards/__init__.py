"""Prepared datasets: standard tar shards with an index, made once from the original archives."""

from mtl_cloud.datasets.shards.cache import CachedReader, RangeReader, ShardCache
from mtl_cloud.datasets.shards.format import MANIFEST, DatasetManifest, FileEntry, Finding, SplitManifest
from mtl_cloud.datasets.shards.reader import Extent, ShardDataset, is_prepared, open_shards, read_manifest

__all__ = [
    "MANIFEST",
    "CachedReader",
    "DatasetManifest",
    "Extent",
    "FileEntry",
    "Finding",
    "RangeReader",
    "ShardCache",
    "ShardDataset",
    "SplitManifest",
    "is_prepared",
    "open_shards",
    "read_manifest",
]
