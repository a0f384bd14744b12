"""The protocol of requests to a stateful model: START, END, and the members of a request.

With Triton's direct sequence batcher a request belongs to one sequence, whose slot is a row of the model. A request may
also be about other conversations, its members: a frame that many share is then one request, and what Triton and its
Python backend spend on a request is spent once. `members` [N, 2] int64 has the row and the key of each conversation,
and every other input has N entries. A conversation chooses its key when it begins, so that a late request of the
slot's previous conversation is rejected.

A request with START has one member, whose row is 0, or -1 if there is nothing to run yet: its other inputs are then
ignored. A request with END frees its row, whatever its inputs hold. An invalid request is refused as a whole, with
nothing done.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from model_repository.serving.row_request import Array, BadInputError, Model, Parsed, RowRequest, check
from model_repository.serving.slots import Slots


def start(slots: Slots, row: int, inputs: Mapping[str, Array]) -> bool:
    """Begin a conversation in the row of its sequence. Return whether there is something to run."""
    members = _members(inputs)
    if len(members) != 1:
        raise BadInputError(f"members: expected one at the start of a sequence, got {len(members)}")
    first, key = members[0].tolist()
    slots.begin(row, key)
    return bool(first >= 0)


def parse(model: Model[Parsed], slots: Slots, inputs: Mapping[str, Array], started: int | None = None) -> Parsed:
    """Return what is to be run, of the row that has `started` or of conversations that have begun before.

    Inputs have Triton's batch dimension, which is 1.
    """
    rows = slots.rows_of(_members(inputs)) if started is None else np.array([started])
    count = len(rows)
    if count > 1 and (single := [name for name in model.optional if name in inputs]):
        raise BadInputError(f"{single[0]}: expected one member, got {count}")
    names = [name for name in model.input_names if name in inputs or name not in model.optional]
    return model.parse(RowRequest(rows, {name: _unbatched(inputs, name, count) for name in names}))


def required(inputs: Mapping[str, Array], name: str) -> Array:
    """Return an input. Raises `BadInputError` if it is missing."""
    if name not in inputs:
        raise BadInputError(f"input {name!r} is missing")
    return inputs[name]


def _members(inputs: Mapping[str, Array]) -> Array:
    members = required(inputs, "members")
    check(members, "members", np.int64, (-1, 2))
    if members.shape[:1] != (1,) or not members.size:
        raise BadInputError("members: expected at least one")
    array: Array = members[0]
    return array


def _unbatched(inputs: Mapping[str, Array], name: str, members: int) -> Array:
    array = required(inputs, name)
    if array.shape[:2] != (1, members):
        raise BadInputError(f"{name}: expected shape [1, {members}, ...], got {list(array.shape)}")
    unbatched: Array = array[0]
    return unbatched
