"""What a run found: lines with their targets, on the terminal and in benchmarks/results/latest.json."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

RESULTS: Final = Path(__file__).parent / "results" / "latest.json"
LIBRARIES: Final = ("deltalake", "polars", "pyarrow", "msgspec", "websockets", "uvloop", "aiohttp")


@dataclass(frozen=True, slots=True)
class Line:
    """One figure; `ok` is None where there is no target."""

    what: str
    value: str
    target: str = ""
    ok: bool | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """What one benchmark found, to be read and to be kept."""

    title: str
    lines: list[Line]
    figures: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def show(findings: Findings) -> None:
    """Prints the table of one benchmark."""
    table = Table(title=findings.title, title_justify="left", title_style="bold")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    for line in findings.lines:
        verdict = {None: "", True: "[green]ok[/]", False: "[bold red]MISSED[/]"}[line.ok]
        table.add_row(line.what, line.value, line.target, verdict)
    console = Console(width=None if os.isatty(1) else 110)
    console.print(table)
    for note in findings.notes:
        console.print(f"  {note}", style="dim", highlight=False)
    console.print()


def keep(facts: Mapping[str, Any], found: Mapping[str, Findings]) -> None:
    """Writes the figures; benchmarks that were not run keep what stands there from before."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    entries = {name: {"machine": facts, "targets": _targets(each), **each.figures} for name, each in found.items()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**before, "machine": facts, **entries}, indent=2) + "\n")


def _targets(findings: Findings) -> list[dict[str, Any]]:
    return [
        {"what": line.what, "value": line.value, "target": line.target, "ok": line.ok}
        for line in findings.lines
        if line.ok is not None
    ]
