"""The benchmarks run, lose nothing, and say what they found. No test asserts a time."""

import json
import math
import subprocess
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import measure, report, sample
from benchmarks.cases import core, overload
from benchmarks.model import TOGETHER, Case, NotInstalledError, Side, Target
from benchmarks.peers import criterion, javascript, publishers, servers
from benchmarks.registry import CASES, load

ROOT = Path(__file__).resolve().parents[2]

# installed for `make bench` only
ALONE = ("AutoGen", "NATS", "Redis Streams", "ZeroMQ", "grpc.aio")
OPTIMISED = {"core", "log", "log_tail"}  # build the engine for speed: for `make bench`, too
BUILT = {"link_js"}  # take the SDK for JavaScript as it is built
TINY = {  # others: 300
    "start": 1,
    "help": 1,
    "idle": 300,
    "fanout": 20,
    "slow": 150,
    "overload": 1,
    "durable_one": 40,
    "durable_many": 2_000,
    "durable_realtime": 500,
    "recording": 40,
    "view": 1,
    "link_idle": 100,
}
LOADED = [load(name) for name in CASES]
RUNS = [
    (case.name, side.name)
    for case in LOADED
    if case.name not in OPTIMISED | BUILT
    for side in ([Side(name=TOGETHER)] if case.together is not None else case.sides)
    if not side.name.startswith(ALONE)
]


def case_of(own: dict[str, float], other: dict[str, float] | None) -> measure.Results:
    case = Case(
        name="made-up",
        title="a made-up case",
        sides=(
            Side(name="Loom", run=lambda _: {"rate": 1.0}, count=1),
            Side(name="peer", run=lambda _: {"rate": 1.0}, count=1),
        ),
        targets=(
            Target(
                name="made-up-peer",
                promise="as fast",
                metric="rate",
                of="Loom",
                against="peer",
                at_least=1,
            ),
        ),
    )
    samples: dict[str, dict[str, float] | None] = {"Loom": own, "peer": other}
    return measure.Results(case=case, rounds=[samples])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("name", "side"), RUNS)
def test_each_side_does_all_of_its_work(name: str, side: str) -> None:
    case = load(name)
    told = sample.figures(case, side, TINY.get(name, 300))
    assert list(told) == ([side] if side != TOGETHER else [side.name for side in case.sides])
    for figures in told.values():
        assert figures
        # What other tests have freed is taken again first: the process may even shrink.
        sized = {metric: value for metric, value in figures.items() if metric != "memory"}
        assert all(float(value) > 0 for value in sized.values())


@pytest.mark.js
def test_a_publisher_in_javascript_does_all_of_its_work() -> None:
    tool = ROOT / "node_modules" / ".bin" / "tsdown"
    subprocess.run([tool, "--logLevel", "error"], cwd=ROOT / "js" / "sdk", check=True)
    for side in load("link_js").sides:
        if not side.name.startswith(ALONE):
            assert "rate" in sample.figures(load("link_js"), side.name, 300)[side.name]


def test_a_peer_in_javascript_that_is_not_there_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotInstalledError):
        javascript.publish_nats(1)


def test_the_benches_of_the_engine_alone_are_those_it_has() -> None:
    suite = (ROOT / "crates" / "loom-core" / "benches" / f"{criterion.SUITE}.rs").read_text("utf-8")
    for bench in core.BENCHES:
        group, _, name = bench.partition("/")
        assert f'"{group}"' in suite
        assert (f"{int(name):_}" if name.isdecimal() else f'"{name}"') in suite


def test_the_median_of_a_bench_is_read_from_what_it_leaves(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    told = {"mean": {"point_estimate": 9.0}, "median": {"point_estimate": 412.5}}
    (tmp_path / "new" / "estimates.json").write_text(json.dumps(told), encoding="utf-8")
    assert criterion.read(tmp_path) == 412.5


def test_a_bench_without_cargo_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotInstalledError):
        criterion.nanoseconds(1, core.PUBLISH)
    with pytest.raises(NotInstalledError):
        publishers.publish(1, "loom")


def test_a_server_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(servers, "SERVERS", ROOT / "nowhere")
    with pytest.raises(NotInstalledError):
        servers.jetstream(1, 1)
    with pytest.raises(NotInstalledError):
        servers.redis_synced(1, 1)


@pytest.mark.parametrize(
    ("windows", "seconds"),
    [
        ("ggggg", 0.25),
        ("bgggg", 0.5),
        ("gbggg", 0.75),
        ("bgbgg", 1.0),
        ("ggggb", math.inf),
        ("bbbbb", math.inf),
    ],
)
def test_goodput_is_back_when_it_stays(windows: str, seconds: float) -> None:
    good = [window == "g" for window in windows for _ in range(100)]
    assert overload.seconds_until_back(good, 400, 1.0) == seconds


def test_goodput_is_back_at_95_of_100_that_were_good_before() -> None:
    almost = [number >= 5 for number in range(100)] * 4
    assert overload.seconds_until_back(almost, 400, 1.0) == 0.25
    assert overload.seconds_until_back([False, *almost[1:]], 400, 0.9) == 0.25
    fewer = [number >= 6 for number in range(100)] * 4
    assert overload.seconds_until_back(fewer, 400, 1.0) == math.inf


def test_every_target_compares_sides_of_its_own_case() -> None:
    for name in CASES:
        case = load(name)
        sides = {side.name for side in case.sides}
        for target in case.targets:
            assert {target.of, target.against or target.of} <= sides
            assert (target.at_least is None) != (target.at_most is None)


def test_a_run_prints_every_sample_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--quick", "--json", "--case", "suspending"])
    told = json.loads(capsys.readouterr().out)
    assert [case["case"] for case in told["cases"]] == ["suspending"]
    assert told["cases"][0]["targets"][0]["median"] > 0


def test_a_ratio_is_made_of_the_samples_of_one_round() -> None:
    results = case_of({"rate": 30.0}, {"rate": 20.0})
    outcome = results.outcome(results.case.targets[0])
    assert outcome is not None
    assert outcome.median == 1.5


def test_a_missed_promise_is_named_until_somebody_says_why() -> None:
    results = case_of({"rate": 10.0}, {"rate": 20.0})
    assert report.without_reason([results]) == ["made-up-peer"]
    page = report.as_page([results], {"system": "a machine"}, 1)
    assert "- **as fast**: not looked into yet." in page


def test_a_peer_that_is_not_installed_is_left_out() -> None:
    results = case_of({"rate": 10.0}, None)
    assert report.without_reason([results]) == []
    assert "not measured" in report.as_table([results])
    assert issubclass(NotInstalledError, Exception)
