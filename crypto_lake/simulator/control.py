"""What clients may say on a WebSocket, and what the venue answers: pure, no socket."""

from typing import Any, Protocol

import msgspec

MAX_STREAMS = 1024
_LONGEST_ID = 36
_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")


class Subscriptions(Protocol):
    """What a connection lets itself be told."""

    combined: bool

    @property
    def streams(self) -> tuple[str, ...]:
        """What is subscribed, in the order of asking."""

    def subscribe(self, name: str) -> None:
        """Twice is once."""

    def unsubscribe(self, name: str) -> None:
        """Names that are not there are none the worse."""


class _Wrong(Exception):
    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


def answer(text: str, subscriptions: Subscriptions) -> bytes:
    """Do what a client asks and give the reply to send."""
    try:
        request = _request(text)
    except _Wrong as wrong:
        return _error(wrong, None)
    identity = request.get("id")
    try:
        _check_id(identity)
        return msgspec.json.encode({"result": _do(request, subscriptions), "id": identity})
    except _Wrong as wrong:
        return _error(wrong, identity)


def _request(text: str) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise _Wrong(3, "Invalid JSON: expected value at line 1 column 1") from None
    if not isinstance(request, dict):
        raise _Wrong(2, "Invalid request: expected an object")
    return request


def _check_id(identity: object) -> None:
    if identity is None or (isinstance(identity, int) and not isinstance(identity, bool) and identity >= 0):
        return
    if isinstance(identity, str) and len(identity) <= _LONGEST_ID:
        return
    raise _Wrong(2, "Invalid request: request ID must be an unsigned integer")


def _do(request: dict[str, Any], subscriptions: Subscriptions) -> object:
    method, params = request.get("method"), request.get("params", [])
    if method not in _METHODS:
        raise _Wrong(2, f"Invalid request: unknown variant {method}, expected one of {', '.join(_METHODS)}")
    if not isinstance(params, list):
        raise _Wrong(2, "Invalid request: params must be an array")
    if method == "LIST_SUBSCRIPTIONS":
        return list(subscriptions.streams)
    if method.endswith("PROPERTY"):
        return _property(method, params, subscriptions)
    _change(method, params, subscriptions)
    return None


def _change(method: str, params: list[Any], subscriptions: Subscriptions) -> None:
    if not params or not all(isinstance(name, str) for name in params):
        raise _Wrong(2, "Invalid request: params must be a list of stream names")
    if method == "UNSUBSCRIBE":
        for name in params:
            subscriptions.unsubscribe(name)
        return
    if len({*subscriptions.streams, *params}) > MAX_STREAMS:
        raise _Wrong(2, f"Invalid request: too many subscriptions, at most {MAX_STREAMS} per connection")
    for name in params:
        subscriptions.subscribe(name)


def _property(method: str, params: list[Any], subscriptions: Subscriptions) -> object:
    expected = 2 if method == "SET_PROPERTY" else 1
    if len(params) > expected:
        raise _Wrong(2, "Invalid request: too many parameters")
    if len(params) < expected or not isinstance(params[0], str):
        raise _Wrong(2, "Invalid request: property name must be a string")
    if params[0] != "combined":
        raise _Wrong(0, "Unknown property")
    if method == "GET_PROPERTY":
        return subscriptions.combined
    if not isinstance(params[1], bool):
        raise _Wrong(1, "Invalid value type: expected Boolean")
    subscriptions.combined = params[1]
    return None


def _error(wrong: _Wrong, identity: object) -> bytes:
    answer = {"code": wrong.code, "msg": str(wrong)}
    return msgspec.json.encode(answer if identity is None else {**answer, "id": identity})
