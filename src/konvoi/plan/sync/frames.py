"""Messages as bytes, and back. Whatever another island has sent is checked here, before anything acts on it: the one
file that knows pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError, with_config

from konvoi.errors import MessageRefused
from konvoi.plan.sync import messages, swaps
from konvoi.plan.sync.messages import Message
from konvoi.plan.sync.state import Durable

LARGEST = 1 << 20  # bytes of a message, which names tensors and holds none
DEEPEST = 8  # brackets inside brackets: a decision has five

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, str_max_length=200, strict=True)


def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(with_config(STRICT)(kind))


for _value in (messages.Update, messages.Decision, messages.Vote):
    with_config(STRICT)(_value)
ENTRY = _adapter(Durable)
Adapters = Mapping[str, TypeAdapter[Any]]
ADAPTERS: Adapters = {kind.__name__: _adapter(kind) for kind in get_args(Message)}
OF_SWAPS: Adapters = {kind.__name__: _adapter(kind) for kind in get_args(swaps.Message)}
Name = Annotated[str, StringConstraints(max_length=200)]


def encode(message: Message) -> bytes:
    """A kind's name, a line's end, and JSON."""
    return _encode(ADAPTERS, message)


def encode_swap(message: swaps.Message) -> bytes:
    """The same for islands that gossip."""
    return _encode(OF_SWAPS, message)


def _encode(adapters: Adapters, message: Any) -> bytes:
    name = type(message).__name__
    return name.encode() + b"\n" + adapters[name].dump_json(message)


def encode_durable(durable: Durable) -> bytes:
    return ENTRY.dump_json(durable)


def decode_durable(data: bytes) -> Durable:
    """Raises: MessageRefused."""
    try:
        durable: Durable = ENTRY.validate_json(data)
    except ValidationError as error:
        raise MessageRefused("this is not what an island has written down", found=str(error).splitlines()[0]) from None
    return durable


def decode(data: bytes) -> Message:
    """Raises: MessageRefused for anything that `encode` would not make of sound values."""
    message: Message = _decode(ADAPTERS, data)
    return message


def decode_swap(data: bytes) -> swaps.Message:
    """Raises: MessageRefused for anything that `encode_swap` would not make of sound values."""
    message: swaps.Message = _decode(OF_SWAPS, data)
    return message


def _decode(adapters: Adapters, data: bytes) -> Any:
    if len(data) > LARGEST:
        raise MessageRefused("a message is too large", found=f"{len(data)} bytes", expected=f"at most {LARGEST}")
    name, _, body = data.partition(b"\n")
    adapter = adapters.get(name.decode("ascii", "replace"))
    if adapter is None:
        raise MessageRefused("a message of an unknown kind", found=repr(name[:40]))
    try:
        return adapter.validate_json(body)
    except (ValidationError, RecursionError) as error:
        raise MessageRefused("a message that makes no sense", found=str(error).splitlines()[0]) from None
