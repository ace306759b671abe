"""The notebook runs from its first cell to its last, and what it ends with is fit for a model."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from crypto_lake.models.feature import NAMES

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "features.ipynb"
LOOK = """
import json
print(json.dumps({
    "columns": frame.columns,
    "rows": frame.height,
    "nulls": sum(frame.null_count().row(0)),
    "infinite": int((~np.isfinite(frame.select(INPUTS + ["target"]).to_numpy())).sum()),
    "latest": (frame["close_time"].max() - bar["close_time"].max()).total_seconds(),
    "overlap": int((train["time"].max() - valid["time"].min()).total_seconds()),
    "scores": scores.to_dicts(),
}))
"""


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_committed_without_what_it_printed(notebook: nbformat.NotebookNode) -> None:
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


async def test_the_notebook_makes_a_frame_for_a_model(
    notebook: nbformat.NotebookNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = nbformat.from_dict({**notebook, "cells": [*notebook.cells, nbformat.v4.new_code_cell(LOOK)]})
    monkeypatch.delenv("LAKE_ROOT", raising=False)
    client = NotebookClient(run, timeout=60, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    await client.async_execute()
    found: dict[str, Any] = json.loads(run.cells[-1].outputs[0].text)
    assert found["columns"][:4] == ["time", "close_time", "close", "target"]
    assert set(NAMES) < set(found["columns"])
    assert {"rsi_14", "run_return", "run_side", "run_age_min"} < set(found["columns"])
    assert (found["nulls"], found["infinite"]) == (0, 0)
    assert found["rows"] > 2_000
    assert found["latest"] == -15 * 60  # the last rows have no target
    assert found["overlap"] == -16 * 60  # no target of a training row reaches into the validation
    assert found["scores"][1]["correlation"] > 0.05
    said = [output for cell in run.cells for output in cell.get("outputs", ())]
    assert len([output for output in said if "image/png" in output.get("data", ())]) == 3
    assert not [output for output in said if output.get("name") == "stderr"]
