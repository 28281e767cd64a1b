from pathlib import Path
from typing import Any

import pytest

from loom.config import load
from loom.errors import InvalidParams
from tests.project.repo import spec

TABLES: dict[str, dict[str, Any]] = {
    name: keys for name, keys in spec("config.toml").items() if name != "environment"
}
KEYS = {f"{table}.{key}": rule for table, keys in TABLES.items() for key, rule in keys.items()}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home")}


def write(folder: Path, key: str, value: str) -> None:
    table, name = key.split(".")
    (folder / "loom.toml").write_text(f'[{table}]\n{name} = "{value}"\n', encoding="utf-8")


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
    write(tmp_path, key, "extractive")
    assert load(cwd=tmp_path, environment=home).origins[key] == str(tmp_path / "loom.toml")
    assert load(cwd=tmp_path, environment={**home, variable: "x"}).origins[key] == variable


@pytest.mark.requirement("CONFIG-KEYS")
@pytest.mark.parametrize("table", [name for name, keys in TABLES.items() if not keys])
def test_a_table_that_is_kept_for_later_is_read_over(
    table: str, tmp_path: Path, home: dict[str, str]
) -> None:
    write(tmp_path, f"{table}.anything", "x")
    load(cwd=tmp_path, environment=home)


@pytest.mark.requirement("CONFIG-KEYS")
@pytest.mark.parametrize("key", ["app.tarjet", "nowhere.target"])
def test_a_key_that_does_not_exist_is_refused_by_its_name(
    key: str, tmp_path: Path, home: dict[str, str]
) -> None:
    write(tmp_path, key, "x")
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
    assert load(cwd=tmp_path, environment={"LOOM_LOG__LATER": "x"}).target == ""
