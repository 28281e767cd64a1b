"""weather.get: what is kept, what is live, and what it does when it knows nothing."""

import csv
import datetime as dt
from importlib import resources

import pytest

from loom.errors import InvalidParams, NotFound, ProviderUnavailable
from loom.tools import weather
from loom.tools.weather import (
    UNREACHABLE_SECONDS,
    KeptObservations,
    OnlineOrKept,
    OpenMeteo,
    Weather,
)
from tests.tools.local_http import Request, Response, as_json, serving

DAY = dt.date(2015, 6, 1)
TODAY = dt.date(2026, 11, 23)


@pytest.mark.requirement("WEATHER-REAL")
async def test_a_kept_day_carries_its_figures_its_source_and_its_date() -> None:
    seen = await KeptObservations().get("Seattle", DAY)
    assert (seen.precipitation_mm, seen.temperature_max_c, seen.temperature_min_c) == (
        4.6,
        16.1,
        11.7,
    )
    assert seen.wind_mean_m_s == 3.4
    assert (seen.date, seen.kind) == (DAY, "observation kept offline")
    assert "NOAA" in seen.source
    assert seen.ref == "weather:seattle/2015-06-01"


async def test_every_day_of_four_years_is_kept() -> None:
    rows = (resources.files("loom.tools") / "data" / "seattle-weather.csv").read_text("utf-8")
    days = [dt.date.fromisoformat(row["date"]) for row in csv.DictReader(rows.splitlines())]
    first = dt.date(2012, 1, 1)
    assert days == [first + dt.timedelta(days=n) for n in range(1461)]
    assert days[-1] == dt.date(2015, 12, 31)


def test_source_and_licence_stand_beside_the_data() -> None:
    told = (resources.files("loom.tools") / "data" / "seattle-weather.txt").read_text("utf-8")
    assert "Public domain" in told
    assert "NOAA" in told


@pytest.mark.parametrize(
    "place", ["seattle", " Seattle, WA", "SEATTLE, Washington", "Seattle, USA"]
)
async def test_a_place_is_known_by_its_usual_names(place: str) -> None:
    assert (await KeptObservations().get(place, DAY)).place == "Seattle"


@pytest.mark.requirement("WEATHER-REAL")
@pytest.mark.parametrize(
    ("place", "day", "field"),
    [("Berlin", DAY, "place"), ("Seattle", dt.date(2020, 1, 1), "date")],
)
async def test_what_is_not_kept_is_refused_with_what_is(
    place: str, day: dt.date, field: str
) -> None:
    with pytest.raises(ProviderUnavailable) as refused:
        await KeptObservations().get(place, day)
    assert refused.value.field == field
    assert refused.value.hint is not None


async def test_without_a_day_the_last_kept_one_says_that_it_is_not_today() -> None:
    seen = await KeptObservations().get("Seattle", None)
    assert seen.date == dt.date(2015, 12, 31)
    assert seen.note is not None
    assert seen.note in seen.describe()


async def test_a_description_tells_every_figure_and_its_kind() -> None:
    told = (await KeptObservations().get("Seattle", DAY)).describe()
    assert told == (
        "The weather in Seattle on 2015-06-01: temperatures between 11.7 and 16.1 °C, 4.6 mm of "
        "precipitation (rain or snow), an average wind of 3.4 m/s (observation kept offline)."
    )


@pytest.mark.parametrize(
    ("place", "date", "field"),
    [
        ("", None, "place"),
        ("x" * 101, None, "place"),
        ("Seattle", "yesterday", "date"),
        ("Seattle", "2014-02-30", "date"),
    ],
)
async def test_bad_arguments_are_refused_by_name(place: str, date: str | None, field: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        await weather.get(place, date)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("How much did it rain in Seattle on 2012-01-02?", [("Seattle", "2012-01-02")]),
        ("How was the weather in Seattle on July 4, 2014?", [("Seattle", "2014-07-04")]),
        ("On Friday, the 4th of July 2014, was it hot in Oslo?", [("Oslo", "2014-07-04")]),
        ("Did it snow in new york city on 4 July 2014?", [("New York City", "2014-07-04")]),
        ("Was it windy in Seattle on 12/25/2014?", [("Seattle", "2014-12-25")]),
        ("Was it windy in Seattle on 25.12.2014?", [("Seattle", "2014-12-25")]),
        ("Was it windy in Seattle on 03/04/2014?", [("Seattle", "03/04/2014")]),
        ("Did it rain in Seattle at Christmas 2014?", [("Seattle", "Christmas 2014")]),
        ("Did it rain in Seattle on Independence Day?", [("Seattle", "Independence Day")]),
        ("Did it rain in Seattle last week?", [("Seattle", "last week")]),
        ("Did it rain in Seattle 3 days ago?", [("Seattle", "3 days ago")]),
        ("Did it rain yesterday in Seattle?", [("Seattle", "yesterday")]),
        ("How hot was Seattle in July 2014?", [("Seattle", "July 2014")]),
        ("How cold was it in Seattle on 2014-02-30?", [("Seattle", "2014-02-30")]),
        ("weather Seattle 2012-01-01", [("Seattle", "2012-01-01")]),
        ("seattle weather", [("Seattle", None)]),
        ("How is Seattle's weather today?", [("Seattle", None)]),
        ("Weather in Seattle, WA", [("Seattle, WA", None)]),
        ("Weather in Seattle and New York", [("Seattle", None), ("New York", None)]),
        ("WEATHER IN SEATTLE", [("Seattle", None)]),
        ("Weather in Seattle, Washington", [("Seattle, Washington", None)]),
        ("Did it rain at Christmas in seattle?", [("Seattle", "Christmas")]),
        ("Did it rain in the morning in seattle?", [("Seattle", None)]),
        ("How do I keep a cache warm in Redis?", []),
        ("Does a pool run cold at startup?", []),
        ("How is the weather?", []),
        ("What is a hot path in Python?", []),
        ("What is a window in Tkinter?", []),
        ("Who lives in Seattle?", []),
    ],
)
def test_a_question_is_read_for_its_places_and_days(
    question: str, asked: list[tuple[str, str | None]]
) -> None:
    assert [(one.place, one.date) for one in weather.read_question(question)] == asked


@pytest.mark.parametrize(
    ("date", "told"),
    [
        ("Christmas 2014", "the date 'Christmas 2014' is not understood"),
        ("July 4", "the date 'July 4' is not understood"),
        ("2014-02-30", "there is no day 2014-02-30"),
        ("13/13/2014", "there is no day 13/13/2014"),
        ("03/04/2014", "the date '03/04/2014' may be 2014-03-04 or 2014-04-03"),
    ],
)
async def test_what_is_not_one_certain_day_is_refused_with_the_reason(date: str, told: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        await weather.get("Seattle", date)
    assert (refused.value.message, refused.value.hint) == (told, "write it as YYYY-MM-DD")


# -- Open-Meteo -----


def open_meteo(request: Request) -> Response:
    if request.path == "/v1/search":
        if request.query["name"] == "Nowhere":
            return as_json({"generationtime_ms": 0.2})
        place = {"name": "Berlin", "latitude": 52.5, "longitude": 13.4, "country": "Germany"}
        return as_json({"results": [{**place, "id": 2950159, "timezone": "Europe/Berlin"}]})
    return as_json(
        {
            "latitude": 52.52,
            "longitude": 13.42,
            "daily_units": {"time": "iso8601", "temperature_2m_max": "°C"},
            "daily": {
                "time": [request.query["start_date"]],
                "temperature_2m_max": [7.5],
                "temperature_2m_min": [1.0],
                "precipitation_sum": [0.0],
                "wind_speed_10m_max": [4.2],
            },
        }
    )


def provider_at(url: str) -> OpenMeteo:
    return OpenMeteo(geocoding=url, forecast=url, archive=url, today=lambda: TODAY)


@pytest.mark.requirement("WEATHER-REAL")
async def test_a_local_server_that_speaks_open_meteo_is_asked_for_place_and_day() -> None:
    async with serving(open_meteo) as server:
        seen = await provider_at(server.url).get("Berlin", None)
    assert (seen.place, seen.date, seen.kind) == ("Berlin, Germany", TODAY, "live")
    assert (seen.temperature_max_c, seen.precipitation_mm, seen.wind_max_m_s) == (7.5, 0.0, 4.2)
    assert "no precipitation" in seen.describe()
    search, days = server.requests
    assert search.query["name"] == "Berlin"
    assert days.path == "/v1/forecast"
    assert (days.query["latitude"], days.query["wind_speed_unit"]) == ("52.5", "ms")


async def test_a_local_server_that_speaks_open_meteo_is_asked_its_archive_for_the_past() -> None:
    async with serving(open_meteo) as server:
        seen = await provider_at(server.url).get("Berlin", DAY)
    assert server.requests[1].path == "/v1/archive"
    assert (seen.date, "reanalysis" in seen.source) == (DAY, True)


async def test_a_place_that_a_local_open_meteo_does_not_know_is_not_found() -> None:
    async with serving(open_meteo) as server:
        with pytest.raises(NotFound):
            await provider_at(server.url).get("Nowhere", None)


@pytest.mark.parametrize(
    "answer",
    [
        as_json({"error": True}, 503),
        Response(b"<html>log in</html>", content_type="text/html"),
        as_json({"results": [{"name": "Berlin"}]}),
    ],
    ids=["an error", "a captive portal", "another shape"],
)
async def test_a_local_server_without_a_usable_answer_is_unavailable(answer: Response) -> None:
    async with serving(lambda _: answer) as server:
        with pytest.raises(ProviderUnavailable):
            await provider_at(server.url).get("Berlin", None)


async def test_a_day_that_a_local_open_meteo_refuses_is_not_found() -> None:
    def answer(request: Request) -> Response:
        if request.path == "/v1/search":
            return open_meteo(request)
        return as_json({"error": True, "reason": "'start_date' is out of allowed range"}, 400)

    async with serving(answer) as server:
        with pytest.raises(NotFound) as refused:
            await provider_at(server.url).get("Berlin", dt.date(1800, 1, 1))
    assert refused.value.field == "date"


# -- one or the other ------------------------------------------------------------------------------


class Counted:
    """Raises what it was given, and counts how often it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked = 0
        self.error = error

    async def get(self, place: str, day: dt.date | None) -> Weather:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return Weather(place=place, date=TODAY, kind="live", source="test", ref="test")


async def test_a_live_answer_comes_before_a_kept_one() -> None:
    kept = Counted()
    seen = await OnlineOrKept(Counted(), kept).get("Seattle", None)
    assert (seen.kind, kept.asked) == ("live", 0)


async def test_an_unreachable_provider_is_left_alone_for_a_minute() -> None:
    now = 1_000.0
    online = Counted(ProviderUnavailable("cannot be reached"))
    both = OnlineOrKept(online, KeptObservations(), clock=lambda: now)
    assert (await both.get("Seattle", DAY)).kind == "observation kept offline"
    await both.get("Seattle", DAY)
    assert online.asked == 1
    now += UNREACHABLE_SECONDS
    await both.get("Seattle", DAY)
    assert online.asked == 2


async def test_a_place_that_does_not_exist_is_not_looked_for_in_what_is_kept() -> None:
    kept = Counted()
    with pytest.raises(NotFound):
        await OnlineOrKept(Counted(NotFound("no such place")), kept).get("Nowhere", None)
    assert kept.asked == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "socks5://127.0.0.1:9"), ("ALL_PROXY", "no url"), ("SSL_CERT_FILE", "/none")],
)
async def test_network_settings_that_cannot_be_used_leave_what_is_kept(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    async with serving(lambda _: Response(b"", 503)) as server:
        both = OnlineOrKept(provider_at(server.url), KeptObservations())
        assert (await both.get("Seattle", DAY)).kind == "observation kept offline"


async def test_nothing_listens_so_what_is_kept_answers() -> None:
    async with serving(open_meteo) as server:
        pass  # its port is free again
    both = OnlineOrKept(provider_at(server.url), KeptObservations())
    assert (await both.get("Seattle", DAY)).kind == "observation kept offline"
