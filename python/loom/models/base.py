"""What providers of models share.

The seam itself (``Model``, ``Answer``, ``Usage``) is in ``loom.protocols``.
A context document is text whose first line is its title. Every provider cites the same way: ``[n]``
in a text is the n-th context document, and ``Answer.sources`` has the indices (from 0) of those
that are cited.
"""

import re
from collections.abc import Sequence
from typing import Final

from loom.protocols import Answer, Model, Usage

__all__ = ["Answer", "Model", "Usage", "cited", "title_and_body"]

_MARKER: Final = re.compile(r"\[(\d{1,4})\]")


def title_and_body(document: str) -> tuple[str, str]:
    """Return the title of a context document and the rest; a document of one line has no title."""
    title, newline, body = document.strip().partition("\n")
    return (title.strip(), body.strip()) if newline else ("", title.strip())


def cited(text: str, context: Sequence[str]) -> list[int]:
    """Return the indices of the documents that ``text`` cites as ``[n]``, first cited first."""
    numbers = (int(found) for found in _MARKER.findall(text))
    return list(dict.fromkeys(number - 1 for number in numbers if 0 < number <= len(context)))
