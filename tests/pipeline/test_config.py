"""Settings from files, the environment and flags."""

import tomllib
from pathlib import Path

import pytest

from cryoseg_dist.errors import BadInputError, SettingsError
from cryoseg_dist.pipeline.config import (
    RunSettings,
    build_settings,
    commented_toml,
    from_assignments,
    from_environment,
    from_toml,
    parse_value,
)

DATA = {"data": {"pixel_size": 1.5, "voltage": 300, "spherical_aberration": 2.7}}


def test_later_layers_win() -> None:
    file = {"data": {"pixel_size": 1.0, "voltage": 300, "spherical_aberration": 2.7}, "particle": {"symmetry": "C4"}}
    environment = from_environment({"CRYOSEG_DATA__PIXEL_SIZE": "1.25", "CRYOSEG_OTHER": "x", "PATH": "/bin"})
    flags = from_assignments([("particle.symmetry", "d2")])
    settings = build_settings(file, environment, flags)
    assert settings.data.pixel_size == 1.25
    assert settings.data.voltage == 300
    assert settings.particle.symmetry == "D2"


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        build_settings(
            {
                "data": {"pixel_size": -1, "voltage": 300},
                "particle": {"symmetry": "Q7", "diametre": 130},
                "ctf": {"tile_size": 511},
                "nonsense": {},
            }
        )
    text = str(error.value)
    for part in (
        "data.pixel_size",
        "data.spherical_aberration",
        "Q7",
        "particle.diametre: unknown",
        "ctf.tile_size",
        "nonsense",
    ):
        assert part in text
    assert len(error.value.faults) == 6


def test_the_commented_file_is_valid_and_names_every_setting() -> None:
    text = commented_toml(DATA)
    assert tomllib.loads(text)["data"] == DATA["data"]
    settings = build_settings(tomllib.loads(text))
    assert settings == build_settings(DATA)
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line and line.startswith("# ") and not line.endswith("]") else line
        for line in text.splitlines()
    )
    assert build_settings(DATA, tomllib.loads(uncommented)) == settings
    for section, field in RunSettings.model_fields.items():
        assert f"[{section}]" in text
        for name in field.annotation.model_fields:
            assert f"{name} =" in text
            assert field.annotation.meanings()[name], f"{section}.{name} has no description"


def test_values_read_as_toml_or_text() -> None:
    assert parse_value("3") == 3
    assert parse_value("true") is True
    assert parse_value("[1, 2]") == [1, 2]
    assert parse_value("O") == "O"


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        from_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe=")
    with pytest.raises(BadInputError, match="a TOML file"):
        from_toml(tmp_path / "bad.toml")
