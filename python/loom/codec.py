"""Values to payload bytes and back.

JSON by msgspec, Pydantic models by their own serializer, bytes as they are.

It refuses what would not come back: NaN and infinity (JSON has neither), cycles, and types without
a JSON form.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, cast

import msgspec

from loom.errors import InvalidParams

_MAX_DEPTH: Final = 512
_MAX_WRITERS: Final = 1_024


def _encode_other(value: object) -> object:
    kind = type(value)
    serializer = getattr(kind, "__pydantic_serializer__", None)
    if serializer is None:
        raise TypeError(f"a value of type {kind.__name__} has no JSON form")
    return msgspec.Raw(serializer.to_json(value, by_alias=True))


to_json: Final = msgspec.json.Encoder(enc_hook=_encode_other).encode
from_json: Final = msgspec.json.Decoder().decode


WRITERS: Final[dict[Any, Callable[[Any], bytes]]] = dict.fromkeys(
    (dict, list, str, int, float, bool, type(None)), to_json
)
"""What writes a value as JSON, by its type: types seen before, and bytes never."""


def _remember(kind: type) -> None:
    """Let the next value of this type be written without a detour: models by their serializer."""
    if len(WRITERS) < _MAX_WRITERS:
        serializer = getattr(kind, "__pydantic_serializer__", None)
        if serializer is None:
            WRITERS[kind] = to_json
        elif _has_aliases(kind):
            WRITERS[kind] = partial(serializer.to_json, by_alias=True)
        else:
            WRITERS[kind] = serializer.to_json


def _has_aliases(kind: type) -> bool:
    """Tell whether a model's fields, or those of models in it, are written under other names."""
    schema: Callable[..., object] | None = getattr(kind, "model_json_schema", None)
    if schema is None:
        return True
    try:
        return schema(by_alias=True) != schema(by_alias=False)
    except (ValueError, RuntimeError):  # it has no JSON schema: nothing is known of it
        return True


CANNOT_ENCODE: Final = (
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    msgspec.MsgspecError,
)
"""What ``to_json`` raises for a value without a JSON form. It lets NaN pass as ``null``."""


CANNOT_DECODE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What ``from_json`` raises for a payload that is not JSON."""


def _has_null(payload: bytes) -> bool:
    return b"null" in payload


def encode(
    value: object, field: str = "data", has_null: Callable[[bytes], bool] = _has_null
) -> bytes:
    """Return the payload of ``value``: bytes as they are, everything else as JSON.

    JSON writers turn NaN into ``null``; only where ``has_null`` finds one is the value looked
    through.

    Raises:
        InvalidParams: ``value`` holds NaN, infinity, a cycle, or a type without a JSON form;
            ``field`` names it.
    """
    if type(value) is bytes:
        return value
    try:
        payload = to_json(value)
    except RecursionError:
        raise InvalidParams(
            f"{field} holds a cycle, or is nested too deeply",
            field=field,
            hint="send a tree of plain values; refer to shared parts by an id",
        ) from None
    except CANNOT_ENCODE as error:
        raise InvalidParams(
            f"{field} cannot be written as JSON: {error}",
            field=field,
            hint="send Pydantic models, dataclasses, dicts, lists, numbers, strings, or bytes",
        ) from None
    if type(value) not in WRITERS:
        _remember(type(value))
    if has_null(payload):
        path = _not_finite(value, field, 0)
        if path is not None:
            raise InvalidParams(
                f"{path} is not a finite number, which JSON cannot carry",
                field=path,
                hint="send None or leave the field out",
            )
    return payload


def decode(payload: bytes) -> Any:
    """Return the value of a JSON payload as plain dicts, lists, numbers and strings.

    Raises:
        InvalidParams: the payload is not JSON.
    """
    try:
        return from_json(payload)
    except CANNOT_DECODE as error:
        raise InvalidParams(f"the payload is not JSON: {error}", field="data") from None


def _not_finite(value: object, path: str, depth: int) -> str | None:
    """Return the path of the first number in ``value`` that is NaN or infinite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if depth > _MAX_DEPTH or isinstance(value, str | bytes | int | None):
        return None
    for name, part in _parts(value):
        if isinstance(name, float) and not math.isfinite(name):
            return f"{path}.{name}"
        found = _not_finite(part, f"{path}.{name}", depth + 1)
        if found is not None:
            return found
    return None


def _parts(value: object) -> list[tuple[object, object]]:
    if isinstance(value, Mapping):
        return list(cast("Mapping[object, object]", value).items())
    if isinstance(value, list | tuple | set | frozenset):
        return list(enumerate(cast("list[object]", value)))
    if dataclasses.is_dataclass(value):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    serializer = getattr(type(value), "__pydantic_serializer__", None)
    if serializer is not None:  # as it is written: with extra and computed fields
        return list(cast("dict[object, object]", serializer.to_python(value)).items())
    fields: tuple[str, ...] = getattr(type(value), "__struct_fields__", ())
    return [(name, getattr(value, name)) for name in fields]
