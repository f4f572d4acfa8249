"""Read old NumPy pickles without running any code that they name.

A pickle may name any function of any module and have it called. This reader accepts only the names that a dictionary of
lists and arrays needs, and replaces each by a stand-in: NumPy's code does not run on the file's bytes either.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from mtl_cloud.errors import DatasetError

__all__ = ["loads"]

_MALFORMED = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, TypeError, ValueError
)  # fmt: skip
"""Exceptions of the standard unpickler on bytes that are not a pickle."""


def loads(data: bytes, source: str) -> dict[str, Any]:
    """A pickled dictionary of plain values, lists and uint8 arrays, written by Python 2 or 3.

    Raises
    ------
    DatasetError
        ``data`` is not a complete pickle of that kind, or names anything else. The message names ``source``.
    """
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
        return {_text(key): _plain(value) for key, value in content.items()}
    except _MALFORMED as error:
        raise DatasetError(
            f"{source}: not a batch of CIFAR-10, or damaged ({error})", hint="unpack cifar-10-python.tar.gz again"
        ) from error


class _Array:
    """Stands in for ``numpy.ndarray``, and holds its state from the pickle."""

    def __init__(self) -> None:
        self.array: npt.NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)

    def __setstate__(self, state: tuple[object, tuple[int, ...], _Dtype, bool, str | bytes]) -> None:
        _version, shape, dtype, fortran, raw = state
        if dtype.code != "u1" or fortran:
            raise ValueError("an array that is not uint8 in C order")
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        self.array = np.frombuffer(data, dtype=np.uint8).reshape(shape)


class _Dtype:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, code: str, *_flags: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignores byte order and similar, which single bytes do not have."""


def _reconstruct(_subtype: object, _shape: object, _code: object) -> _Array:
    return _Array()


def _encode(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes into a pickle for Python 2


_STAND_INS: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _STAND_INS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is not allowed") from None


def _text(key: object) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


def _plain(value: object) -> object:
    return value.array if isinstance(value, _Array) else value
