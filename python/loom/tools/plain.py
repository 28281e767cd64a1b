"""Markdown, reStructuredText and docstrings to paragraphs of plain prose.

Not a renderer: code, tables, badges and signatures are left out, because what comes out is searched
and quoted.
"""

import html
import re
from collections.abc import Iterator
from typing import Final

_FENCE: Final = re.compile(r"^(```|~~~).*?^\1[^\S\n]*$", re.MULTILINE | re.DOTALL)
_COMMENT: Final = re.compile(r"<!--.*?-->", re.DOTALL)
_DROPPED_ELEMENT: Final = re.compile(
    r"<(script|style|table|pre)\b.*?</\1>", re.DOTALL | re.IGNORECASE
)
_TAG: Final = re.compile(r"</?[a-zA-Z][^<>]*>")
_DIRECTIVE: Final = re.compile(r"^([^\S\n]*)\.\. .*\n(?:\1[^\S\n]+.*\n|[^\S\n]*\n)*", re.MULTILINE)
_INLINE: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])"), ""),  # image
    (re.compile(r"\[([^\[\]]*)\](?:\([^)]*\)|\[[^\]]*\])"), r"\1"),  # link
    (re.compile(r"\[\^?\d+\]_?"), ""),  # footnote
    (re.compile(r"\[!\w+\]\s*>?"), ""),  # admonition
    (re.compile(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`"), r"\1"),  # role
    (re.compile(r"`([^`<]+?)\s*<[^`>]+>`__?"), r"\1"),  # named link
    (re.compile(r"\|[^|\n]{1,60}\|_{0,2}"), ""),  # substitution, or what is left of a table
    (re.compile(r"``?([^`\n]+)``?_{0,2}"), r"\1"),  # literal
    (
        re.compile(r"(?<![\w*\\])\*{1,3}(?=\S)([^*\n]+?)(?<=[^\s\\])\*{1,3}(?![\w*])"),
        r"\1",
    ),  # emphasis
    (re.compile(r"(?<!\w)_(?=[^\W_])([^_\n]+?)_(?!\w)"), r"\1"),
    (re.compile(r'"([\w.()*\[\]]+)"'), r"\1"),  # how pydoc's topics show code
)
_BULLET: Final = re.compile(r"^\s*(?:[*+•-]|\d{1,2}[.)]|#\.)\s+")
_UNDERLINE: Final = re.compile(r"^\s*([=*~^\"'+#.:_-])\1{2,}[=*~^\"'+#.:_\s-]*$")
_CODE: Final = re.compile(
    r"^(>>>|\.\.\. |\$ |%|#!|@|def |class \w+[:(]|return |pip install)"
    r"|^(from \w[\w.]* import |import [\w.]+$)"
    r"|^(if|for|while|with|try|async|elif|else)\b.*:( |$)(?!.*[.!?]$)"
    r"|::=|>>> | -> |[{};]$|^[\w.]+\(.*\)( ->.*)?:?$|^\w[\w.\[\]]* [-+*/]?= |==|<=|&&|=>"
    r"|^(Changed in|New in|Deprecated since) version|^PEP \d+ -"
    r"|^\S+ = |^\(.*\) = |\bby @\w+ in\b|^((?i:usage|ref|see also|note|availability|cpython)):?$"
)
_ESCAPE: Final = re.compile(r"\\([^\w\s\\])")  # of markup; "\n" in a docstring stands for itself
_LETTERS: Final = 0.6
_INDENT: Final = re.compile(r"^\s*")


def paragraphs(text: str) -> list[str]:
    """Return the prose of ``text``: a string for each paragraph or list item, without markup."""
    if "<" in text:
        text = _TAG.sub("", _DROPPED_ELEMENT.sub("", _COMMENT.sub("", text)))
    text = _DIRECTIVE.sub("\n", _FENCE.sub("\n", text.expandtabs()))
    return [prose for block in _blocks(text) if (prose := _prose(block))]


def _blocks(text: str) -> Iterator[str]:
    """Yield paragraphs and list items, each as one line; skip the indented block after ``::``."""
    literal_above: int | None = None
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if line.strip()]
        if not lines:
            continue
        indent = _indent(lines[0])
        if literal_above is not None and indent > literal_above:
            continue
        literal_above = indent if lines[-1].rstrip().endswith("::") else None
        yield from _items(lines)


def _items(lines: list[str]) -> Iterator[str]:
    held: list[str] = []
    for line in lines:
        heading = line.lstrip().startswith("#")
        starts = bool(_BULLET.match(line)) or heading or bool(_UNDERLINE.match(line))
        if starts and held:
            if not _UNDERLINE.match(line):  # the line above an underline is a heading: no prose
                yield " ".join(held)
            held = []
        if not heading and not _UNDERLINE.match(line):
            held.append(_BULLET.sub("", line).strip().removeprefix("> "))
    if held:
        yield " ".join(held)


def _prose(block: str) -> str:
    for pattern, replacement in _INLINE:
        block = pattern.sub(replacement, block)
    block = html.unescape(block)
    block = re.sub(r"\s+", " ", _ESCAPE.sub(r"\1", block)).strip().removesuffix("::").strip()
    if len(block.split()) < 3 or _CODE.search(block):
        return ""
    letters = sum(character.isalpha() or character == " " for character in block)
    return block if letters >= _LETTERS * len(block) and "http" not in block[:8] else ""


def _indent(line: str) -> int:
    found = _INDENT.match(line)
    return 0 if found is None else found.end()
