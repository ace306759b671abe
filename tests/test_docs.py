"""What is written must be true: settings, datasets, examples."""

import json
import re
from pathlib import Path

import msgspec
import polars as pl

from crypto_lake.config import Settings, example
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.frame import FRAME, Records
from crypto_lake.processors.decode import decode
from crypto_lake.processors.shape import shape
from crypto_lake.services.markets import recordable

HOME = Path(__file__).parents[1]


def blocks(path: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (HOME / path).read_text(), re.DOTALL)


def test_env_example_has_every_setting_with_its_default() -> None:
    assert (HOME / ".env.example").read_text() == example()
    lines = re.findall(r"^#([A-Z0-9_]+)=(.*)$", example(), re.MULTILINE)
    assert [name for name, _ in lines] == [field.alias for field in Settings.model_fields.values()]
    assert Settings(_env_file=None, **dict(lines)) == Settings(_env_file=None)


def test_the_readme_lists_every_dataset_that_can_be_recorded() -> None:
    readme = (HOME / "README.md").read_text()
    for name in [*recordable(), "rejected"]:
        assert re.search(rf"^\|.*`{name}`.*\|", readme, re.MULTILINE), name


def test_every_column_says_what_stands_in_it() -> None:
    for dataset in DATASETS.values():
        names = [column.name for column in dataset.columns]
        assert len(names) == len(set(names))
        assert set(dataset.key) <= set(names)
        assert set(dataset.z_order) <= set(names)
        assert dataset.partition in names
        assert dataset.order is None or dataset.order in dataset.key
        assert set(dataset.within) <= set(dataset.key) or dataset.order is None
        assert all(column.meaning for column in dataset.columns)


def test_every_field_of_an_event_is_a_column_or_has_a_use() -> None:
    used_elsewhere = {"market_type", "event", "fill", "order"}
    for dataset in DATASETS.values():
        for road in (dataset.live and dataset.live.event, dataset.poll and dataset.poll.body):
            if road:
                fields = {field.name for field in msgspec.structs.fields(road)}
                assert fields <= set(dataset.schema) | used_elsewhere, dataset.name


def test_the_example_of_a_new_dataset_records() -> None:
    (code,) = blocks("docs/add_a_dataset.md", "python")
    made: dict[str, Dataset] = {}
    exec(compile(code, "add_a_dataset.md", "exec"), made)
    kline = {"e": "kline", "E": 1_790_000_000_000, "s": "BTCUSDT",
             "k": {"t": 1_790_000_000_000, "s": "BTCUSDT", "o": "1.5", "c": "1.6", "n": 3}}  # fmt: skip
    payload = json.dumps({"stream": "btcusdt@kline_1m", "data": kline}).encode()
    records = Records(1, [FRAME], [b"binance-futures x"], [1_790_000_000_000_000], [payload])
    rows = shape(made["KLINE"], decode(made["KLINE"], records).frame)
    assert rows.select("symbol", "open", "close", "trade_count").row(0) == ("BTCUSDT", 1.5, 1.6, 3)


def test_the_readmes_reading_example_runs(tmp_path: Path, monkeypatch: object) -> None:
    (code,) = blocks("README.md", "python")
    dataset = DATASETS["agg_trade"]
    pl.DataFrame(schema=dataset.schema).write_delta(str(tmp_path / "agg_trade"))
    monkeypatch.setenv("LAKE_ROOT", str(tmp_path))  # type: ignore[attr-defined]
    found: dict[str, pl.DataFrame] = {}
    exec(compile(code, "README.md", "exec"), found)
    assert found["bars"].columns == ["time", "price", "quantity"]
