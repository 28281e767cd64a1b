"""What providers of models share.

The seam itself (``Model``, ``Answer``, ``Usage``) is in ``loom.protocols``.
A context document is text whose first line is its title. Every provider cites the same way: ``[n]``
in a text is the n-th context document, and ``Answer.sources`` has the indices (from 0) of those
that are cited.
"""

import re
from collections.abc import Sequence
from typing import Final, cast

from loom.errors import InvalidParams
from loom.protocols import Answer, Model, Usage

__all__ = ["Answer", "Model", "Usage", "check_texts", "cited", "title_and_body"]

_MARKER: Final = re.compile(r"\[(\d{1,4})\]")


def check_texts(prompt: object, context: object) -> None:
    """Refuse a prompt that is no text, and a context that is no sequence of texts.

    Raises:
        InvalidParams: names which of the two, and what it should be.
    """
    if not isinstance(prompt, str):
        raise InvalidParams(
            f"a prompt is text, not {type(prompt).__name__}",
            field="prompt",
            hint="give what the model is to answer, as one text",
        )
    told = "one text" if isinstance(context, str) else type(context).__name__
    if isinstance(context, str | bytes) or not isinstance(context, Sequence):
        raise InvalidParams(
            f"a context is a list of texts, not {told}",
            field="context",
            hint="put the documents into a list: context=[document]",
        )
    for number, document in enumerate(cast("Sequence[object]", context)):
        if not isinstance(document, str):
            raise InvalidParams(
                f"a document of a context is text, not {type(document).__name__}",
                field=f"context.{number}",
                hint="write it as text, its title on the first line",
            )


def title_and_body(document: str) -> tuple[str, str]:
    """Return the title of a context document and the rest; a document of one line has no title."""
    title, newline, body = document.strip().partition("\n")
    return (title.strip(), body.strip()) if newline else ("", title.strip())


def cited(text: str, context: Sequence[str]) -> list[int]:
    """Return the indices of the documents that ``text`` cites as ``[n]``, first cited first."""
    numbers = (int(found) for found in _MARKER.findall(text))
    return list(dict.fromkeys(number - 1 for number in numbers if 0 < number <= len(context)))
