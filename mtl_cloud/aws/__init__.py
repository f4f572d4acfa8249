"""The one door to AWS: a maker of clients, and the map from AWS's errors to ours. boto3 is imported on first use."""

from __future__ import annotations

from mtl_cloud.aws.clients import AwsClients, ClientMaker
from mtl_cloud.aws.codes import CODES, ErrorClass
from mtl_cloud.aws.denials import Denial, decode_denial, encoded_denial, read_denial
from mtl_cloud.aws.diagnosis import Diagnosis, diagnose, read_reason
from mtl_cloud.aws.translate import translated

__all__ = [
    "CODES",
    "AwsClients",
    "ClientMaker",
    "Denial",
    "Diagnosis",
    "ErrorClass",
    "decode_denial",
    "diagnose",
    "encoded_denial",
    "read_denial",
    "read_reason",
    "translated",
]
