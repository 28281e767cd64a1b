"""Days as people write them: where a question names one, and which it is, if that can be told.

Nothing is guessed: what may be two days, or depends on which day it is today, is no day here.
"""

import datetime as dt
import re
from typing import Final

_MONTHS: Final = (
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
)
_MONTH: Final = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_WEEKDAY: Final = r"(?:mon|tues|wednes|thurs|fri|satur|sun)day"
_NUMBER: Final = r"\d{1,2}(?:st|nd|rd|th)?\b"
_SPAN: Final = (
    r"(?:days?|weeks?|weekends?|months?|years?|decades?|night|morning|afternoon|evening"
    rf"|spring|summer|autumn|fall|winter|{_WEEKDAY}|{_MONTH})"
)

NAMED: Final = re.compile(
    rf"""\b(?:(?:on|in|at|of|during|for|since|from|between)\ )?(?P<day>
      (?:{_WEEKDAY},?\ )? (?:the\ )? (?:
          \d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}\b
        | \d{{1,2}}[-/.]\d{{1,2}}[-/.]\d{{2,4}}\b
        | {_MONTH}\ {_NUMBER}(?:,?\ \d{{4}}\b)?
        | {_NUMBER}(?:\ of)?\ {_MONTH}(?:,?\ \d{{4}}\b)?
        | {_MONTH},?\ \d{{4}}\b
        | (?:christmas|xmas|easter|halloween|thanksgiving|new\ year(?:'?s)?)
          (?:\ (?:day|eve))?(?:,?\ \d{{4}}\b)?
        | (?:day\ (?:before|after)\ )?(?:yesterday|tomorrow|tonight)
        | (?:last|next|past|previous|this|coming|these)\ (?:(?:few|couple\ of|\w+)\ )?{_SPAN}
        | (?:\w+\ )?{_SPAN}\ ago
        | (?:spring|summer|autumn|winter)(?:\ (?:of\ )?\d{{4}}\b)?
        | (?:19|20)\d\ds?\b | the\ \w+ties\b
      )
      | {_WEEKDAY}
      | (?<=in\ ){_MONTH} | (?<=during\ ){_MONTH}
      | (?<=on\ )[^,.;?]+?(?=\ (?:in|at|near)\b|[,.;?]|$)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""Where a text names a day or a time, understood or not; ``day`` is it without what leads it."""

_YEAR_FIRST: Final = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})")
_YEAR_LAST: Final = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})")
_MONTH_FIRST: Final = re.compile(rf"({_MONTH}) (\d{{1,2}})(?:st|nd|rd|th)?,? (\d{{4}})")
_DAY_FIRST: Final = re.compile(rf"(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH}),? (\d{{4}})")
_LEADING: Final = re.compile(rf"^(?:{_WEEKDAY},? )?(?:the )?")


def read_day(text: str) -> dt.date:
    """Return the day that ``text`` is: 2014-07-04, July 4, 2014, 4 July 2014, 12/25/2014.

    Raises:
        ValueError: it is no day, may be two, or is not understood; says which.
    """
    plain = _LEADING.sub("", " ".join(text.casefold().split()))
    if found := _YEAR_FIRST.fullmatch(plain):
        return _day(text, *found.groups())
    if found := _MONTH_FIRST.fullmatch(plain):
        month, day, year = found.groups()
        return _day(text, year, _number(month), day)
    if found := _DAY_FIRST.fullmatch(plain):
        day, month, year = found.groups()
        return _day(text, year, _number(month), day)
    if found := _YEAR_LAST.fullmatch(plain):
        first, separator, second, year = found.groups()
        return _either(text, first, second, year, day_first=separator == ".")
    raise ValueError(f"the date {text!r} is not understood")


def _either(text: str, first: str, second: str, year: str, *, day_first: bool) -> dt.date:
    """Return the one day that two numbers and a year can be, whichever comes first."""
    if day_first or int(first) > len(_MONTHS):
        return _day(text, year, second, first)
    if int(second) > len(_MONTHS) or int(first) == int(second):
        return _day(text, year, first, second)
    one, other = _day(text, year, first, second), _day(text, year, second, first)
    raise ValueError(f"the date {text!r} may be {one} or {other}")


def _day(text: str, year: str, month: str, day: str) -> dt.date:
    try:
        return dt.date(int(year), int(month), int(day))
    except ValueError:
        raise ValueError(f"there is no day {text}") from None


def _number(month: str) -> str:
    return str(1 + _MONTHS.index(month[:3]))
