"""What arguments must be: small checks for callers that no type checker watches.

Each returns the value, or says which argument is wrong and what to write instead. What only the
engine can know, it refuses itself.
"""

import sys
from collections.abc import Sequence
from typing import Any, cast

from loom.errors import InvalidParams
from loom.limits import TIMEOUT_MS_MAX


def check_text(value: object, field: str) -> str:
    """Return ``value`` if it is text.

    Raises:
        InvalidParams: it is something else.
    """
    if isinstance(value, str):
        return value
    raise InvalidParams(
        f"{field} is {_shown(value)}, not text", field=field, hint=f'write {field}="…"'
    )


def check_texts(values: object, field: str) -> tuple[str, ...]:
    """Return ``values`` if it is a sequence of texts, and not one text.

    Raises:
        InvalidParams: it is something else.
    """
    parts = check_list(values, field)
    for part in parts:
        if not isinstance(part, str):
            raise InvalidParams(
                f"{field} holds {_shown(part)}, not text", field=field, hint=f'write {field}=["…"]'
            )
    return tuple(parts)


def check_list(values: object, field: str) -> Sequence[Any]:
    """Return ``values`` if it is a sequence, and not one text.

    Raises:
        InvalidParams: it is something else.
    """
    if isinstance(values, str):
        raise InvalidParams(f"{field} is one text", field=field, hint=f'write {field}=["{values}"]')
    if isinstance(values, Sequence) and not isinstance(values, bytes):
        return cast("Sequence[Any]", values)
    raise InvalidParams(
        f"{field} is {_shown(values)}, not a list", field=field, hint=f"write {field}=[…]"
    )


def check_whole(value: object, field: str, most: int | None, *, limit: str | None = None) -> int:
    """Return ``value`` if it is a whole number from 1 to ``most`` (None: any).

    Raises:
        InvalidParams: it is something else.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and (number := cast("int", value)) >= 1 and (most is None or number <= most):
        return number
    raise InvalidParams(
        f"{field} is {_shown(value)}",
        field=field,
        limit=limit,
        hint="use a whole number, 1 or more" if most is None else f"use 1 to {most}",
    )


def check_number(value: object, field: str) -> float:
    """Return ``value`` if it is a finite number.

    Raises:
        InvalidParams: it is something else.
    """
    if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
        return value
    raise InvalidParams(
        f"{field} is {_shown(value)}, not a finite number", field=field, hint="give a number"
    )


def check_seconds(value: object, field: str) -> float:
    """Return ``value`` if it is a time to wait, in seconds.

    Raises:
        InvalidParams: it is no number of seconds in the limits.
    """
    if not isinstance(value, int | float):
        raise InvalidParams(
            f"a {field} of {_shown(value)} is not a number", field=field, hint="give seconds"
        )
    if not 0 < value * 1000 <= TIMEOUT_MS_MAX:
        raise InvalidParams(
            f"a {field} of {_shown(value)} s is out of range",
            field=field,
            limit="timeout_ms_max",
            hint="give seconds, greater than 0",
        )
    return value


def check_function(value: object, field: str, shape: str) -> None:
    """Refuse what cannot be called.

    Raises:
        InvalidParams: it cannot.
    """
    if not callable(value):
        raise InvalidParams(
            f"{field} is {_shown(value)}, not a function", field=field, hint=f"write {shape}"
        )


def _shown(value: object) -> str:
    """Return a value as it can stand in a message, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_SHOWN = 80  # characters of a wrong value
