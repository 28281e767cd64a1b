"""Topics and filters as the Python side needs them.

Checked at definition, matched when a handler is chosen.

The engine has the last word on every topic (``crates/loom-core/src/topic.rs``); this is the same
grammar, so that a wrong filter fails where it is written and not when the app starts.
"""

import re
from typing import Final

from loom.checks import check_text
from loom.errors import InvalidParams
from loom.limits import NAME_BYTES, TOPIC_BYTES, TOPIC_TOKENS

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+")
_NAME: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_QUALIFIED: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*(:[A-Za-z0-9_.-]+)?")


def check_filter(text: str, *, field: str = "filter") -> str:
    """Return ``text`` if it is a filter.

    Dotted tokens, ``*`` for one token, ``>`` at the end for one or more.

    Raises:
        InvalidParams: names the token or the limit that is wrong.
    """
    check_text(text, field)
    if len(text.encode(errors="surrogatepass")) > TOPIC_BYTES:
        raise InvalidParams(
            f"the filter is longer than {TOPIC_BYTES} bytes", field=field, limit="topic_bytes"
        )
    tokens = text.split(".")
    if len(tokens) > TOPIC_TOKENS:
        raise InvalidParams(
            f"the filter has {len(tokens)} tokens, {TOPIC_TOKENS} are allowed",
            field=field,
            limit="topic_tokens",
        )
    for index, token in enumerate(tokens):
        if token == "*" or (token == ">" and index == len(tokens) - 1):
            continue
        if not _TOKEN.fullmatch(token):
            raise InvalidParams(
                f"{text!r} is not a filter: token {token!r} is wrong",
                field=field,
                hint="use letters, digits, '_' and '-' between dots; '*' stands for one token, "
                "'>' only at the end for one or more",
            )
    return text


def check_name(text: str, *, field: str = "name") -> str:
    r"""Return ``text`` if it can name an agent, an app or a namespace.

    Raises:
        InvalidParams: the name does not match ``[a-z0-9_-]+(\.[a-z0-9_-]+)*`` or is too long.
    """
    return _check(
        text, _NAME, field, "lower-case letters, digits, '_' and '-', in parts joined by dots"
    )


def check_capability_name(text: str, *, field: str = "name") -> str:
    """Return ``text`` if it can name a capability: a name, or ``server:tool``.

    Raises:
        InvalidParams: the name has another shape or is too long.
    """
    return _check(text, _QUALIFIED, field, "a name such as 'web.search', or 'server:tool'")


def matches(pattern: str, topic: str) -> bool:
    """Tell whether ``pattern``, a filter, takes ``topic``. Both must be valid."""
    wanted = pattern.split(".")
    tokens = topic.split(".")
    for index, want in enumerate(wanted):
        if want == ">":
            return len(tokens) > index
        if index >= len(tokens) or (want != "*" and want != tokens[index]):
            return False
    return len(wanted) == len(tokens)


def _check(text: str, pattern: re.Pattern[str], field: str, shape: str) -> str:
    check_text(text, field)
    if len(text.encode(errors="surrogatepass")) > NAME_BYTES:
        raise InvalidParams(
            f"the name is longer than {NAME_BYTES} bytes", field=field, limit="name_bytes"
        )
    if not pattern.fullmatch(text):
        raise InvalidParams(f"{text!r} is not a name", field=field, hint=f"use {shape}")
    return text
