"""Data against declared types: what Pydantic says, as errors of ours."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from loom.capabilities import EFFECT_ID
from loom.codec import decode
from loom.envelope import Envelope
from loom.errors import CapabilityError, InvalidParams

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from loom.capabilities import Capability

_NOTHING: Final = (b"", b"{}")  # arguments of a call that gives none


@lru_cache(maxsize=256)
def adapter_of(type_: Any) -> "TypeAdapter[Any]":
    """Return what checks values of a type, made once for the types used last."""
    from pydantic import TypeAdapter

    return TypeAdapter(type_)


def check_returns(returns: Any) -> None:
    """Refuse what an answer cannot be checked against, before anything is asked.

    Raises:
        InvalidParams: ``returns`` is not a type, or one without a schema.
    """
    if returns is None:
        return
    from pydantic.errors import PydanticUserError

    why: object = "it is text" if isinstance(returns, str) else None
    if why is None:
        try:
            adapter_of(returns)
        except (TypeError, PydanticUserError) as error:
            why = str(error).splitlines()[0]
    if why is not None:
        raise InvalidParams(
            f"returns is not a type to check against: {why}",
            field="returns",
            hint="give a builtin type, a dataclass or a Pydantic model",
        )


def validated(type_: Any, envelope: Envelope, field: str) -> Any:
    """Return the envelope's data as ``type_``.

    Raises:
        InvalidParams: it is something else.
    """
    from pydantic import ValidationError

    if type_ is bytes:
        return envelope.payload
    try:
        return adapter_of(type_).validate_json(envelope.payload)
    except ValidationError as error:
        what = f"the {field} is not a {getattr(type_, '__name__', type_)}"
        raise invalid(error, field, what, expected_of(type_)) from None


def keywords_of(
    capability: "Capability[..., Any]", payload: bytes, effect_id: str | None
) -> dict[str, Any]:
    """Return what to call the capability's function with.

    Raises:
        InvalidParams: the arguments are not what it declares.
    """
    if payload in _NOTHING and capability.takes_nothing:
        return {EFFECT_ID: effect_id} if capability.wants_effect_id else {}
    try:
        arguments = capability.arguments.model_validate_json(payload or b"{}")
    except ValueError as error:  # Pydantic's own, which is imported where it is needed only
        from pydantic import ValidationError

        if not isinstance(error, ValidationError):
            raise
        what = f"{capability.name} cannot take these arguments"
        raise invalid(error, "args", what, capability.usage) from None
    return capability.keywords(arguments, effect_id)


def checked(adapter: "TypeAdapter[Any]", payload: bytes, name: str, *, many: bool = False) -> Any:
    """Return a result as what the capability declares.

    Raises:
        CapabilityError: it is something else.
    """
    from pydantic import ValidationError

    try:
        if many:
            return [adapter.validate_python(part) for part in decode(payload)]
        return adapter.validate_json(payload or b"null")
    except ValidationError as error:
        told = invalid(error, "result", f"{name} returned what it does not declare")
        raise CapabilityError(told.message, field=told.field, who=name) from None


def invalid(error: Any, field: str, what: str, expected: str | None = None) -> InvalidParams:
    """Return the first of a Pydantic ValidationError's complaints as InvalidParams."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    more = error.error_count() - 1
    text = f"{what}: {place + ': ' if place else ''}{first['msg']}"
    return InvalidParams(
        text + (f" (and {more} more)" if more else ""),
        field=f"{field}.{place}" if place else field,
        hint=expected,
    )


def expected_of(type_: Any) -> str:
    """Return what a type takes, for people."""
    fields: dict[str, Any] = getattr(type_, "model_fields", {})
    name = getattr(type_, "__name__", str(type_))
    if not fields:
        return f"it takes {name}"
    shown = (f"{key}{'' if value.is_required() else '?'}" for key, value in fields.items())
    return f"{name} has the fields {', '.join(shown)}"
