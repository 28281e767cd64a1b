from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loom.config import load
from loom.errors import InvalidParams
from tests.project.repo import spec

TABLES: dict[str, dict[str, Any]] = {
    name: keys for name, keys in spec("config.toml").items() if name != "environment"
}
PATHS = ("log.dir", "bridge.unix", "bridge.tls_cert", "bridge.tls_key", "bridge.tls_client_ca")
KEYS = {f"{table}.{key}": rule for table, keys in TABLES.items() for key, rule in keys.items()}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home")}


def write(folder: Path, key: str, value: str) -> None:
    table, name = key.split(".")
    (folder / "loom.toml").write_text(f"[{table}]\n{name} = {value}\n", encoding="utf-8")


def sound(key: str) -> tuple[str, str]:
    """A value other than the default, as TOML and as the text of a variable."""
    match KEYS[key]:
        case {"kind": "flag"}:
            return "true", "true"
        case {"default": [str(first)]} if ":" in first:
            return '["127.0.0.1:0", "[::1]:7421"]', "127.0.0.1:0, [::1]:7421"
        case {"kind": "strings"} if key == "bridge.hosts":
            return '["node.example.org", "[::1]:7421"]', "node.example.org, [::1]:7421"
        case {"kind": "strings"}:
            return '["order.>", "invoice.*"]', "order.>, invoice.*"
        case {"kind": "whole"}:
            return "7", "7"
        case {"choices": [_, other, *_]}:
            return f'"{other}"', other
        case _:
            return '"other"', "other"


@pytest.mark.requirement("CONFIG-KEYS")
def test_every_key_of_the_specification_exists_and_no_other(
    tmp_path: Path, home: dict[str, str]
) -> None:
    assert set(load(cwd=tmp_path, environment=home).origins) == set(KEYS)


@pytest.mark.requirement("CONFIG-KEYS")
@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_read_from_the_file_and_the_environment_wins(
    key: str, tmp_path: Path, home: dict[str, str]
) -> None:
    variable = "LOOM_" + key.upper().replace(".", "__")
    in_toml, in_text = sound(key)
    write(tmp_path, key, in_toml)
    from_file = load(cwd=tmp_path, environment=home)
    assert from_file.origins[key] == str(tmp_path / "loom.toml")
    from_variable = load(cwd=tmp_path, environment={**home, variable: in_text})
    assert from_variable.origins[key] == variable
    if key not in PATHS:  # which are relative to the file that names them
        assert replace(from_file, environment={}, origins={}) == replace(
            from_variable, environment={}, origins={}
        )


@pytest.mark.requirement("CONFIG-KEYS")
def test_the_defaults_are_those_of_the_specification(tmp_path: Path, home: dict[str, str]) -> None:
    written = load(cwd=tmp_path, environment=home)
    for key, rule in KEYS.items():
        default = rule["default"]
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        write(tmp_path, key, f'"{default}"' if isinstance(default, str) else shown)
        same = load(cwd=tmp_path, environment=home)
        if key != "app.target":  # says where it was found
            assert replace(same, origins={}) == replace(written, origins={}), key


@pytest.mark.requirement("CONFIG-KEYS")
def test_a_data_directory_is_relative_to_the_file_that_names_it(
    tmp_path: Path, home: dict[str, str]
) -> None:
    write(tmp_path, "log.dir", '"data"')
    below = tmp_path / "below"
    below.mkdir()
    assert load(cwd=below, environment=home).log.dir == tmp_path / "data"
    named = load(cwd=below, environment={**home, "LOOM_LOG__DIR": "data"})
    assert named.log.dir == Path("data")


@pytest.mark.requirement("CONFIG-KEYS")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("log.dir", "3"),
        ("log.durable", '"order.>"'),
        ("log.durable", "[1]"),
        ("log.durable", '["order..x"]'),
        ("log.ack", '"accepted"'),
        ("log.ack", "1"),
        ("log.ack", "[]"),
        ("log.record", '"turns"'),
        ("log.record", "true"),
        ("log.retention_bytes", "-1"),
        ("log.retention_bytes", "true"),
        ("log.retention_bytes", "1.5"),
        ("log.retention_age", '"7d"'),
        ("log.retention_idle", "0"),
        ("log.retention_idle", "31_536_001"),
        ("bridge.bind", '"127.0.0.1:7420"'),
        ("bridge.bind", '["7420"]'),
        ("bridge.bind", '["localhost:65536"]'),
        ("bridge.origins", "[1]"),
        ("bridge.hosts", '["https://node.example.org"]'),
        ("bridge.hosts", '["node.example.org:0"]'),
        ("bridge.insecure", '"yes"'),
    ],
)
def test_a_value_that_is_none_of_its_kind_is_refused_by_its_key(
    key: str, value: str, tmp_path: Path, home: dict[str, str]
) -> None:
    write(tmp_path, key, value)
    with pytest.raises(InvalidParams) as refused:
        load(cwd=tmp_path, environment=home)
    assert refused.value.field == key


@pytest.mark.requirement("CONFIG-KEYS")
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("log.durable", "order.."),
        ("log.ack", "accepted"),
        ("log.record", "everything"),
        ("log.retention_bytes", "-1"),
        ("log.retention_age", "a week"),
        ("log.retention_idle", "0"),
        ("bridge.bind", "localhost"),
        ("bridge.insecure", "1"),
    ],
)
def test_a_variable_that_is_none_of_its_kind_is_refused_by_its_key(
    key: str, text: str, tmp_path: Path, home: dict[str, str]
) -> None:
    variable = "LOOM_" + key.upper().replace(".", "__")
    with pytest.raises(InvalidParams) as refused:
        load(cwd=tmp_path, environment={**home, variable: text})
    assert refused.value.field == key


@pytest.mark.requirement("CONFIG-KEYS")
@pytest.mark.parametrize("table", [name for name, keys in TABLES.items() if not keys])
def test_a_table_that_is_kept_for_later_is_read_over(
    table: str, tmp_path: Path, home: dict[str, str]
) -> None:
    write(tmp_path, f"{table}.anything", '"x"')
    load(cwd=tmp_path, environment=home)


@pytest.mark.requirement("CONFIG-KEYS")
@pytest.mark.parametrize("key", ["app.tarjet", "nowhere.target"])
def test_a_key_that_does_not_exist_is_refused_by_its_name(
    key: str, tmp_path: Path, home: dict[str, str]
) -> None:
    write(tmp_path, key, '"x"')
    with pytest.raises(InvalidParams) as refused:
        load(cwd=tmp_path, environment=home)
    assert refused.value.field is not None
    assert key.startswith(refused.value.field)


@pytest.mark.requirement("CONFIG-KEYS")
@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[app\n", "loom.toml"),
        ("[nothing]\n", "nothing"),
        ("app = 3\n", "app"),
        ("[app]\ntraget = 'a'\n", "app.traget"),
        ("[app]\ntarget = 3\n", "app.target"),
    ],
)
def test_a_wrong_file_is_refused_by_the_place(
    tmp_path: Path, home: dict[str, str], text: str, field: str
) -> None:
    (tmp_path / "loom.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidParams) as caught:
        load(cwd=tmp_path, environment=home)
    assert str(caught.value.field).endswith(field)


@pytest.mark.requirement("CONFIG-KEYS")
def test_a_misspelt_variable_is_refused(tmp_path: Path, home: dict[str, str]) -> None:
    with pytest.raises(InvalidParams) as caught:
        load(cwd=tmp_path, environment={**home, "LOOM_MODELS__DEFALT": "x"})
    assert caught.value.field == "LOOM_MODELS__DEFALT"
    assert load(cwd=tmp_path, environment={"LOOM_CONTROL__LATER": "x"}).target == ""
