"""``weather.get``: one day's weather at a place, with its source and its date.

Open-Meteo answers when it can be reached; otherwise real observations that are kept in this package
do. Where neither knows, it says so: no number here is made up.
"""

import asyncio
import csv
import datetime as dt
import functools
import re
import time
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Final, Literal, Protocol, TypeVar

from pydantic import BaseModel

import loom
from loom.errors import InvalidParams, NotFound, ProviderUnavailable
from loom.models.words import COMMON
from loom.tools.days import NAMED, read_day

GIVE_UP_SECONDS: Final = 2.0
"""How long a lookup may take before kept observations answer instead."""

UNREACHABLE_SECONDS: Final = 60.0
"""How long an online provider that did not answer is left alone."""

_PLACE_CHARACTERS: Final = 100
_QUESTION_CHARACTERS: Final = 1_000
_ARCHIVE_AFTER_DAYS: Final = 7
_REFUSED: Final = 400
_DAILY: Final = "temperature_2m_max,temperature_2m_min,precipitation_sum,wind_speed_10m_max"

app: loom.App = loom.App("weather")


class Weather(BaseModel):
    """One day's weather at one place. A figure that its source does not have is None."""

    place: str
    date: dt.date
    kind: Literal["live", "observation kept offline"]
    source: str
    ref: str
    precipitation_mm: float | None = None
    temperature_max_c: float | None = None
    temperature_min_c: float | None = None
    wind_mean_m_s: float | None = None
    wind_max_m_s: float | None = None
    note: str | None = None

    def describe(self) -> str:
        """Return the day as one English sentence, with the kind of the figures."""
        figures: list[str] = []
        if self.temperature_min_c is not None and self.temperature_max_c is not None:
            figures.append(
                f"temperatures between {self.temperature_min_c} and {self.temperature_max_c} °C"
            )
        if self.precipitation_mm is not None:
            rain = f"{self.precipitation_mm} mm of" if self.precipitation_mm else "no"
            figures.append(f"{rain} precipitation (rain or snow)")
        if self.wind_mean_m_s is not None:
            figures.append(f"an average wind of {self.wind_mean_m_s} m/s")
        if self.wind_max_m_s is not None:
            figures.append(f"wind of up to {self.wind_max_m_s} m/s")
        told = ", ".join(figures) or "no figures"
        kind = self.kind if self.note is None else f"{self.kind}; {self.note}"
        return f"The weather in {self.place} on {self.date}: {told} ({kind})."


class WeatherProvider(Protocol):
    """Whoever knows the weather."""

    async def get(self, place: str, day: dt.date | None) -> Weather:
        """Return the weather at ``place`` on ``day``, or of the latest day there is.

        Raises:
            ProviderUnavailable: it cannot be reached, or does not have this place or day.
            NotFound: there is no such place, or it has no figures of that day.
        """
        ...


class KeptObservations:
    """Daily observations in this package; ``data/seattle-weather.txt`` has source and licence."""

    async def get(self, place: str, day: dt.date | None) -> Weather:
        """Return the kept observation of ``day``, or of the last day kept."""
        name = re.sub(r"[\s,]+", " ", place).strip().casefold()
        if name not in _SEATTLE:
            raise ProviderUnavailable(
                f"nothing is kept of {place}, and no online provider can be reached",
                field="place",
                hint="places kept offline: Seattle",
                retry=False,
            )
        days = _observations()
        first, last = min(days), max(days)
        observed = days.get(last if day is None else day)
        if observed is None:
            raise ProviderUnavailable(
                f"nothing is kept of Seattle on {day}, and no online provider can be reached",
                field="date",
                hint=f"days kept offline: {first} to {last}",
                retry=False,
            )
        if day is None:
            note = "the last day kept, not today: no online provider can be reached"
            return observed.model_copy(update={"note": note})
        return observed


class OpenMeteo:
    """Open-Meteo's geocoding, forecast and archive, over HTTP and without a key.

    Args:
        geocoding: Base URL of its geocoding API.
        forecast: Base URL of its forecast API.
        archive: Base URL of its archive API, asked for days more than a week ago.
        today: The current day.
    """

    def __init__(
        self,
        *,
        geocoding: str = "https://geocoding-api.open-meteo.com",
        forecast: str = "https://api.open-meteo.com",
        archive: str = "https://archive-api.open-meteo.com",
        today: Callable[[], dt.date] = lambda: dt.datetime.now(dt.UTC).date(),
    ) -> None:
        self._geocoding = geocoding
        self._forecast = forecast
        self._archive = archive
        self._today = today

    async def get(self, place: str, day: dt.date | None) -> Weather:
        """Return the weather of ``day``, or of today."""
        wanted = day or self._today()
        query = {"name": place, "count": "1", "language": "en", "format": "json"}
        found = await _fetch(f"{self._geocoding}/v1/search", query, _Places)
        if not found.results:
            raise NotFound(
                f"Open-Meteo knows no place {place!r}", field="place", hint="name a city"
            )
        spot = found.results[0]
        past = wanted < self._today() - dt.timedelta(days=_ARCHIVE_AFTER_DAYS)
        url = f"{self._archive}/v1/archive" if past else f"{self._forecast}/v1/forecast"
        query = {
            "latitude": str(spot.latitude),
            "longitude": str(spot.longitude),
            "daily": _DAILY,
            "timezone": "auto",
            "wind_speed_unit": "ms",
            "start_date": wanted.isoformat(),
            "end_date": wanted.isoformat(),
        }
        answer = await _fetch(url, query, _Days)
        return _weather(spot, answer.daily, past=past)


class OnlineOrKept:
    """An online provider, and kept observations while it does not answer.

    Args:
        online: Asked first, for at most ``GIVE_UP_SECONDS``.
        kept: Answers when ``online`` cannot; ``online`` is then left alone for
            ``UNREACHABLE_SECONDS``.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        online: WeatherProvider,
        kept: WeatherProvider,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._online = online
        self._kept = kept
        self._clock = clock
        self._silent_until = clock()

    async def get(self, place: str, day: dt.date | None) -> Weather:
        """Return what the online provider says, else what is kept."""
        if self._clock() >= self._silent_until:
            try:
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    return await self._online.get(place, day)
            except (TimeoutError, ProviderUnavailable):
                self._silent_until = self._clock() + UNREACHABLE_SECONDS
        return await self._kept.get(place, day)


provider: WeatherProvider = OnlineOrKept(OpenMeteo(), KeptObservations())
"""Who answers ``weather.get``."""


@app.capability("weather.get", effect="pure", timeout=10)
async def get(place: str, date: str | None = None) -> Weather:
    """Get the weather at a place, on one day (YYYY-MM-DD) or of the latest day known.

    Raises:
        InvalidParams: ``place`` is empty or too long, or ``date`` is not one day.
        ProviderUnavailable: no provider that can be reached has this place and day.
        NotFound: there is no such place, or it has no figures of that day.
    """
    name = place.strip()
    if not 0 < len(name) <= _PLACE_CHARACTERS:
        raise InvalidParams(
            f"a place has 1 to {_PLACE_CHARACTERS} characters",
            field="place",
            hint="name a city, such as Seattle",
        )
    return await provider.get(name, None if date is None else _day(date))


def _day(text: str) -> dt.date:
    try:
        return read_day(text)
    except ValueError as error:
        raise InvalidParams(str(error), field="date", hint="write it as YYYY-MM-DD") from None


class Asked(BaseModel):
    """What a question wants ``weather.get`` to look up.

    Attributes:
        date: YYYY-MM-DD, or as it stands in the question where that is not one certain day, which
            ``weather.get`` then refuses; None where the question names none.
    """

    place: str
    date: str | None = None


def read_question(text: str) -> list[Asked]:
    """Return the places and days whose weather ``text`` asks for; none if it asks for none.

    Reads English, by rules, and of a long text only its first thousand characters.
    """
    text = text[:_QUESTION_CHARACTERS]
    text = text.lower() if text.isupper() else text
    dates = [_as_asked(named["day"]) for named in NAMED.finditer(text)]
    if not _WEATHER.search(text) or not (dates or _SURE.search(text)):
        return []
    places = _places(" ".join(NAMED.sub(" ", text).split()))
    return [Asked(place=place, date=date) for place in places for date in dates or [None]]


def _as_asked(date: str) -> str:
    try:
        return read_day(date).isoformat()
    except ValueError:
        return date


_WEATHER: Final = re.compile(
    r"\b(?:weather|rain(?:s|ed|ing|y|fall)?|snow(?:s|ed|ing|y|fall)?|precipitation|windy|sunny"
    r"|cloudy|stormy?|wet|dry|temperatures?|forecast|degrees|hot|cold|warm|wind)\b",
    re.IGNORECASE,
)
_SURE: Final = re.compile(  # a cache may be cold, and a path hot
    r"\b(?:weather|rain|snow|precipitation|windy|sunny|cloudy|storm|it\b"
    r"|(?:the|average|what) (?:temperature|wind|forecast)|how (?:wet|dry|hot|cold|warm)\b)",
    re.IGNORECASE,
)
_CAPITALS: Final = r"[A-ZÀ-Þ][\w'\u2019.-]*(?: [A-ZÀ-Þ][\w'\u2019.-]*)*(?:, [A-Z]\w+)?"
_SEVERAL: Final = re.compile(
    rf"\b(?:in|at|near|for|of) ({_CAPITALS}(?:,? (?:and|or) {_CAPITALS})*)"
)
_SMALL: Final = re.compile(r"\b(?:in|at|near|for) (?=((?:[^\W\d_][\w'\u2019.-]*\s?)+))")
_WORD: Final = r"[^\W\d_][\w'\u2019.-]*"
_BARE: Final = re.compile(
    rf"(?:the )?{_WEATHER.pattern} ({_WORD}(?: {_WORD}){{0,2}})"
    rf"|({_WORD}(?: {_WORD}){{0,2}}) {_WEATHER.pattern}",
    re.IGNORECASE,
)
_WITHIN: Final = re.compile(rf"(?<=\w ){_CAPITALS}")
_NO_PLACE: Final = frozenset(
    ["python", "today", "now", "currently", "during", "outside", "much", "get", "got", "here"]
)


def _places(text: str) -> list[str]:
    """Return the places of a question without its dates: "in Seattle and Oslo", "in seattle"."""
    text = text.strip(" ?!.,;")
    if found := _SEVERAL.search(text):
        named = re.split(r",? (?:and|or) ", found[1])
    elif small := [name for after in _SMALL.findall(text) if (name := _leading_name(after))]:
        named = small[-1:]
    elif (found := _BARE.fullmatch(text)) and (name := _leading_name(found[1] or found[2])):
        named = [name]
    else:
        named = [found[0] for found in _WITHIN.finditer(text)][:1]
    names = [re.sub(r"['\u2019]s$", "", name).strip(" .,") for name in named]
    return [name for name in names if name and name.casefold() not in _NO_PLACE]


def _leading_name(text: str) -> str:
    """Return the words at the start that may name a place, as names are written."""
    words: list[str] = []
    for word in text.split():
        if word.casefold() in COMMON | _NO_PLACE or _WEATHER.fullmatch(word):
            break
        words.append(word if word[0].isupper() else word.capitalize())
    return " ".join(words)


_SEATTLE: Final = frozenset(
    "seattle" + tail
    for tail in ("", " wa", " washington", " us", " usa", " wa us", " wa usa", " washington usa")
)


@functools.cache
def _observations() -> Mapping[dt.date, Weather]:
    kept = resources.files("loom.tools") / "data" / "seattle-weather.csv"
    rows = csv.DictReader(kept.read_text(encoding="utf-8").splitlines())
    return {(seen := _observation(row)).date: seen for row in rows}


def _observation(row: Mapping[str, str]) -> Weather:
    return Weather(
        place="Seattle",
        date=dt.date.fromisoformat(row["date"]),
        kind="observation kept offline",
        source="NOAA daily records, by way of vega-datasets",
        ref=f"weather:seattle/{row['date']}",
        precipitation_mm=float(row["precipitation_mm"]),
        temperature_max_c=float(row["temperature_max_c"]),
        temperature_min_c=float(row["temperature_min_c"]),
        wind_mean_m_s=float(row["wind_mean_m_s"]),
    )


class _Place(BaseModel):
    name: str
    latitude: float
    longitude: float
    country: str | None = None


class _Places(BaseModel):
    results: list[_Place] = []


class _Daily(BaseModel):
    time: list[dt.date]
    temperature_2m_max: list[float | None]
    temperature_2m_min: list[float | None]
    precipitation_sum: list[float | None]
    wind_speed_10m_max: list[float | None]


class _Days(BaseModel):
    daily: _Daily


class _Refusal(BaseModel):
    reason: str


_Shape = TypeVar("_Shape", bound=BaseModel)


def _weather(spot: _Place, daily: _Daily, *, past: bool) -> Weather:
    columns = (
        daily.time,
        daily.temperature_2m_max,
        daily.temperature_2m_min,
        daily.precipitation_sum,
        daily.wind_speed_10m_max,
    )
    rows = list(zip(*columns, strict=False))
    if not rows or rows[0][1:] == (None, None, None, None):
        raise NotFound(
            f"Open-Meteo has no figures of that day for {spot.name}",
            field="date",
            hint="ask for another day",
        )
    day, warmest, coldest, rain, wind = rows[0]
    return Weather(
        place=spot.name if spot.country is None else f"{spot.name}, {spot.country}",
        date=day,
        kind="live",
        source="Open-Meteo, historical reanalysis" if past else "Open-Meteo, forecast",
        ref=f"open-meteo:{spot.latitude},{spot.longitude}/{day}",
        precipitation_mm=rain,
        temperature_max_c=warmest,
        temperature_min_c=coldest,
        wind_max_m_s=wind,
    )


async def _fetch(url: str, query: Mapping[str, str], shape: type[_Shape]) -> _Shape:
    import httpx2

    try:
        async with httpx2.AsyncClient(timeout=GIVE_UP_SECONDS) as client:
            answer = await client.get(url, params=dict(query))
            if answer.status_code == _REFUSED:
                reason = _Refusal.model_validate_json(answer.content).reason
                raise NotFound(
                    f"Open-Meteo refused: {reason}", field="date", hint="ask for another day"
                )
            answer.raise_for_status()
            return shape.model_validate_json(answer.content)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError, ImportError) as error:
        # not only what the network does: proxy and certificate settings of this machine, too
        raise ProviderUnavailable(
            f"{httpx2.URL(url).host} gave no usable answer: {type(error).__name__}", retry=True
        ) from error
