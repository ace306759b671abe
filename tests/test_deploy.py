"""The systemd unit: systemd itself finds no fault with it, and it holds few rights."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from crypto_lake.config import Settings

UNIT = Path(__file__).parents[1] / "deploy" / "crypto-lake.service"
EXPOSURE_BELOW = 2.0  # of 10; systemd calls a unit without any hardening 9.6

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists on every machine: systemd insists on finding it."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNIT.read_text()))
    return copy


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


@needs_systemd
def test_systemd_has_nothing_to_say_against_the_unit(unit: Path) -> None:
    verified = analyze("verify", "--man=no", unit)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@needs_systemd
def test_the_unit_holds_few_rights(unit: Path) -> None:
    rated = analyze("security", "--offline=true", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", rated.stdout)
    assert found, rated.stdout + rated.stderr
    assert float(found[1]) < EXPOSURE_BELOW


def test_every_setting_in_the_unit_is_one_of_ours() -> None:
    named = set(re.findall(r"(?m)^Environment=(LAKE_\w+)=", UNIT.read_text()))
    assert named == {"LAKE_ROOT", "LAKE_STATE"}
    assert named <= {field.alias for field in Settings.model_fields.values()}
