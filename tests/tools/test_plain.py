"""Markup to prose: what is kept, and what is left out."""

import pytest

from loom.tools.plain import paragraphs


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("A [link](https://x.org) to **bold** `code` here.", ["A link to bold code here."]),
        ("A :class:`~asyncio.Queue` and ``await``.", ["A asyncio.Queue and await."]),
        ("See `the docs <https://x.org>`_ for more.", ["See the docs for more."]),
        (
            "- one item is here\n- another item is there",
            ["one item is here", "another item is there"],
        ),
        ("Two lines\nof one paragraph.", ["Two lines of one paragraph."]),
        ("The __init__() of a _private_ thing.", ["The __init__() of a private thing."]),
        ('The "async with" form of "await".', ['The "async with" form of await.']),
        (r"Splits at \n \r \t and \f only.", [r"Splits at \n \r \t and \f only."]),
        (r"A \*star\* of markup is one.", ["A *star* of markup is one."]),
        ("<p>Tags &amp; entities go away.</p>", ["Tags & entities go away."]),
    ],
)
def test_markup_is_taken_off(text: str, prose: list[str]) -> None:
    assert paragraphs(text) == prose


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint('a b c d e')\n```",
        "   x = compute(a, b, c)",
        ">>> one + two + three",
        "[![a badge of this](https://x.org/b.svg)](https://x.org)",
        "A Heading Of Words\n==================",
        "# A heading of words",
        ".. code-block:: python\n\n   not prose at all\n",
        'assert_stmt ::= "assert" expression ["," expression]',
        "| one | two | three |\n|-----|-----|-------|",
        "<!-- a comment with words -->",
        "Changed in version 3.12: it does more now.",
    ],
)
def test_what_is_no_prose_is_left_out(text: str) -> None:
    assert paragraphs(text) == []


def test_a_literal_block_is_left_out_with_all_of_its_paragraphs() -> None:
    text = (
        "It is used so::\n\n    first block of code\n\n    second block of code\n\nAnd on it goes."
    )
    assert paragraphs(text) == ["It is used so", "And on it goes."]
