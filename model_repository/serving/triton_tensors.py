"""Tensors of Triton's Python backend as NumPy arrays and back, through DLPack and without copies.

`as_numpy()` and `Tensor(name, array)` of the backend's stub were compiled against NumPy 1 and give wrong strides and
sizes under NumPy 2. DLPack does not depend on NumPy's own layout and works under both.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from model_repository.serving.row_request import Array

_set_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
_set_destructor.argtypes = [ctypes.py_object, ctypes.c_void_p]
_set_destructor.restype = ctypes.c_int


class Inputs(Mapping[str, Array]):
    """A request's inputs by name, valid during `execute`. An array is made when it is read."""

    def __init__(self, request: Any) -> None:
        # Asked for one by one, each call would go through all of them.
        self._tensors = {tensor.name(): tensor for tensor in request.inputs()}

    def __getitem__(self, name: str) -> Array:
        array: Array = np.from_dlpack(_Capsule(self._tensors[name].to_dlpack()))
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def output(name: str, array: Array) -> Any:
    """Make an output tensor of a contiguous array that has its batch dimension.

    It is not copied here: the stub does that before it calls the model again. The stub renames a consumed capsule in a
    way that NumPy's own capsule destructor would report as an error, so that destructor is removed. The stub calls the
    tensor's deleter, which releases the array.
    """
    capsule = array.__dlpack__()
    _set_destructor(capsule, None)
    return pb_utils.Tensor.from_dlpack(name, capsule)


class _Capsule:
    """A DLPack capsule as `np.from_dlpack` takes it: with the keywords of later versions, which the stub refuses."""

    __slots__ = ("_capsule",)

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0
