"""Every error class has attributes that each API can map."""

from __future__ import annotations

import grpc
import pytest

from gateway import errors
from gateway.session.events import Reason


def descendants(cls: type[errors.GatewayError]) -> list[type[errors.GatewayError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in descendants(child))]


OURS = [cls for cls in descendants(errors.GatewayError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", OURS)
def test_every_error_maps_to_each_protocol(cls):
    assert cls.code == cls.code.lower().replace("_", "-")
    assert cls.http_status >= 400
    assert grpc.StatusCode[cls.grpc_status] is not grpc.StatusCode.OK
    assert 1001 <= cls.close_code < 1015
    assert Reason(cls.end_reason) is not Reason.COMPLETED


@pytest.mark.parametrize("cls", OURS)
def test_an_error_of_the_client_is_not_counted_as_one_of_the_gateway(cls):
    alerts = {Reason.ERROR, Reason.ENGINE}
    if cls.http_status < 500:
        assert Reason(cls.end_reason) not in alerts or issubclass(cls, errors.TryLater)


def test_the_tree_in_the_docstring_is_complete():
    assert errors.__doc__ is not None
    listed = {word for word in errors.__doc__.replace("─", " ").split() if word in {cls.__name__ for cls in OURS}}
    assert listed == {cls.__name__ for cls in OURS}
