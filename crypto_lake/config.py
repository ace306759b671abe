"""Settings: the only reader of the environment and of `.env`."""

import difflib
import os
import re
import secrets
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# How much goes on side by side: one file after the other in small pieces, or in large ones, or several at once.
Mode = Literal["streaming", "batch", "parallel"]
ModeOrNone = Literal["streaming", "batch", "parallel", ""]
DepthSpeed = Literal["0ms", "100ms", "250ms", "500ms", "1000ms"]
SinkFormat = Literal["delta", "parquet", "jsonl"]
Timeframe = Literal["1m", "1d"]
LatePolicy = Literal["revise", "drop"]
CommaList = Annotated[tuple[str, ...], NoDecode]

ALL_SYMBOLS = "all"
FEW_WORDS = 20
LONGEST_NAME = 60
FUTURES, SPOT, COIN_M = "binance-futures", "binance", "binance-delivery"
US_STOCKS, US_OPTIONS, US_INDICES, CRYPTO, FOREX = "us-stocks", "us-options", "us-indices", "crypto", "forex"
OFFICIAL_DUMPS = "https://data.binance.vision"
OFFICIAL_LISTING = "https://s3-ap-northeast-1.amazonaws.com/data.binance.vision"


class ConfigError(Exception):
    """The user asked for something that cannot be; the text says which setting, and what would be right."""


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of a sentence about a word that is none of `words`: the one that was probably meant, or all there are."""
    known = sorted(words)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(known)}" if len(known) <= FEW_WORDS else ""


class Settings(BaseSettings):
    """What a collector is told; each field is the environment variable of its alias, see `.env.example`.

    Raises `ConfigError` through `load()`, never pydantic's own error.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", populate_by_name=True, frozen=True
    )

    root: str = Field("tables", alias="LAKE_ROOT", description="where the tables are: a path or an s3:// URL")
    state: Path = Field(Path("var"), alias="LAKE_STATE", description="journals and logs; always a local disk")
    sink: SinkFormat = Field("delta", alias="LAKE_SINK", description="delta, parquet or jsonl")

    datasets: CommaList = Field(
        ("liquidation", "depth", "agg_trade", "prices"), alias="LAKE_DATASETS", description="what to record"
    )
    symbols: CommaList = Field(
        ("BTCUSDT", "ETHUSDT"),
        alias="LAKE_SYMBOLS",
        description="USD-M symbols; another venue in front (binance:BTCUSDT); all = every trading perpetual",
    )
    depth_speed: DepthSpeed = Field("100ms", alias="LAKE_DEPTH_SPEED", description="how often the book is sent")
    book_every_s: float = Field(
        1800,
        ge=0,
        alias="LAKE_BOOK_EVERY_S",
        description="seconds between whole books of a symbol in `depth`; 0 = only at the begin and behind holes",
    )
    redundancy: int = Field(
        2, ge=1, le=4, alias="LAKE_REDUNDANCY", description="connections per stream; what comes twice is written once"
    )
    price_every_s: float = Field(60, gt=0, alias="LAKE_PRICE_EVERY_S", description="seconds between price snapshots")

    bars: CommaList = Field(
        ("1m", "5m", "15m", "1h", "4h", "1d"),
        alias="LAKE_BARS",
        description="bars made of trades while they come (also 1s), see docs/live_bars.md; empty = none",
    )
    late: LatePolicy = Field(
        "revise",
        alias="LAKE_LATE",
        description="a trade that comes when its bar is closed: revise the bar, or drop the trade from bars",
    )
    lateness_s: float = Field(
        5, ge=0, alias="LAKE_LATENESS_S", description="seconds by which trades may be late before their bar is closed"
    )

    collector_id: str = Field(
        "",
        alias="LAKE_COLLECTOR_ID",
        description="this collector's name in the tables; empty = one beside its journals",
    )
    commit_every_s: float = Field(10, gt=0, alias="LAKE_COMMIT_EVERY_S", description="seconds between commits")
    batch_messages: int = Field(
        50_000, ge=1, le=1_000_000, alias="LAKE_BATCH_MESSAGES", description="messages in one commit at the most"
    )
    journal_sync_s: float = Field(1, gt=0, alias="LAKE_JOURNAL_SYNC_S", description="seconds between fsyncs")
    journal_keep_h: float = Field(
        24, ge=0, alias="LAKE_JOURNAL_KEEP_H", description="hours a committed journal file is kept"
    )
    optimize_every_s: float = Field(
        3600, gt=0, alias="LAKE_OPTIMIZE_EVERY_S", description="seconds between maintenance runs"
    )
    retention_h: float = Field(
        168, ge=0, alias="LAKE_RETENTION_H", description="hours that replaced table files stay for open readers"
    )
    silence_s: float = Field(
        30, gt=0, alias="LAKE_SILENCE_S", description="a busy connection silent for so many seconds is dead"
    )
    metrics_port: int = Field(
        9464, ge=0, le=65535, alias="LAKE_METRICS_PORT", description="/metrics and /health; 0 = any free port"
    )

    futures_ws: str = Field(
        "wss://fstream.binance.com", alias="LAKE_BINANCE_FUTURES_WS", description="USD-M WebSocket address"
    )
    futures_rest: str = Field(
        "https://fapi.binance.com", alias="LAKE_BINANCE_FUTURES_REST", description="USD-M REST address"
    )
    spot_ws: str = Field(
        "wss://data-stream.binance.vision", alias="LAKE_BINANCE_WS", description="spot WebSocket address"
    )
    spot_rest: str = Field(
        "https://data-api.binance.vision", alias="LAKE_BINANCE_REST", description="spot REST address"
    )
    dumps: str = Field(OFFICIAL_DUMPS, alias="LAKE_BINANCE_DUMPS", description="address of the official data files")
    dumps_listing: str = Field(
        "",
        alias="LAKE_BINANCE_DUMPS_LISTING",
        description="address that lists these files; empty = the one that belongs to LAKE_BINANCE_DUMPS",
    )
    massive_s3: str = Field(
        "https://files.massive.com/flatfiles",
        alias="LAKE_MASSIVE_S3",
        description="S3 address of the flat files of Massive (Polygon.io); a path behind it names the bucket",
    )
    massive_key_id: str = Field(
        "", alias="LAKE_MASSIVE_KEY_ID", repr=False, description="S3 access key id of the flat files, not the REST key"
    )
    massive_secret: str = Field("", alias="LAKE_MASSIVE_SECRET", repr=False, description="the secret of that S3 key")
    yahoo: str = Field(
        "https://query2.finance.yahoo.com",
        alias="LAKE_YAHOO",
        description="address of Yahoo's charts, see docs/yahoo.md",
    )
    yahoo_every_s: float = Field(
        0,
        ge=0,
        alias="LAKE_YAHOO_EVERY_S",
        description="seconds from one question to Yahoo to the next, symbols in turns; 0 = Yahoo is not asked",
    )
    yahoo_timeframe: Timeframe = Field(
        "1m", alias="LAKE_YAHOO_TIMEFRAME", description="which bars Yahoo is asked for, 1m or 1d"
    )
    mode: ModeOrNone = Field(
        "",
        alias="LAKE_MODE",
        description="how a backfill uses this machine: streaming, batch or parallel; empty = by free memory and cores",
    )
    api_key: str = Field("", alias="API_KEY", repr=False, description="sent as X-MBX-APIKEY; market data needs none")

    log_to_terminal: bool = Field(True, alias="LOG_TO_TERMINAL", description="log on stderr, readable")
    log_to_file: bool = Field(False, alias="LOG_TO_FILE", description="log to LAKE_STATE/log as JSON lines, rotated")

    @field_validator("datasets", "symbols", "bars", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("root")
    @classmethod
    def _one_spelling(cls, value: str) -> str:
        # `tables/` and `./tables` are the same lake, and so must have the same journal.
        return value.rstrip("/") if "://" in value else os.path.normpath(value)

    @field_validator("futures_ws", "spot_ws")
    @classmethod
    def _websocket_address(cls, value: str) -> str:
        return _address(value, ("ws://", "wss://"))

    @field_validator("futures_rest", "spot_rest", "dumps", "massive_s3", "yahoo")
    @classmethod
    def _rest_address(cls, value: str) -> str:
        return _address(value, ("http://", "https://"))

    def ws_address(self, venue: str) -> str:
        """The WebSocket address of a venue, without a route."""
        return {FUTURES: self.futures_ws, SPOT: self.spot_ws}[venue]

    def rest_address(self, venue: str) -> str:
        """The REST address of a venue."""
        return {FUTURES: self.futures_rest, SPOT: self.spot_rest}[venue]

    @property
    def listing_address(self) -> str:
        """Where the official files are listed: S3's own address for Binance's bucket, the dumps' own for any other."""
        own = OFFICIAL_LISTING if self.dumps == OFFICIAL_DUMPS else self.dumps
        return (self.dumps_listing or own).rstrip("/")

    @property
    def landing(self) -> Path:
        """Where downloaded archives are until their rows are in the tables."""
        return self.state / "landing"

    @property
    def journals(self) -> Path:
        """The folder with one journal per dataset; each place for tables has its own.

        A journal holds what was recorded for one lake: pointing LAKE_ROOT elsewhere must not carry the old one's
        messages into the new one, nor forget those that still wait for the old one.
        """
        return self.state / "journal" / _folder_name(self.sink, self.root)


def _address(value: str, schemes: tuple[str, ...]) -> str:
    if not value.startswith(schemes):
        raise ValueError(f"must begin with {' or '.join(schemes)}")
    return value.rstrip("/")


def _folder_name(sink: str, root: str) -> str:
    """`delta-tables`; a root that is more than a word is told apart by a checksum too."""
    plain = re.sub(r"[^\w.]+", "-", root).strip("-.")[-LONGEST_NAME:]
    return f"{sink}-{plain}" if plain == root else f"{sink}-{plain}-{zlib.crc32(root.encode()):08x}"


def load(**overrides: Any) -> Settings:
    """Settings from the environment and `.env`; keyword arguments that are not None win.

    Raises `ConfigError` naming every setting that is wrong, its value and the reason.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("; ".join(_complaint(each) for each in error.errors())) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f".env is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _complaint(error: Any) -> str:
    field = str(error["loc"][0]) if error["loc"] else "settings"
    alias = next((f.alias for name, f in Settings.model_fields.items() if field in (name, f.alias)), field)
    reason = error["msg"].removeprefix("Value error, ")
    return f"{alias}={error['input']!r}: {reason[:1].lower()}{reason[1:]}"


def collector_id(settings: Settings) -> str:
    """The name under which this collector's positions stand in the tables.

    Unless set it is drawn once and kept beside the journals: a new journal is a new collector, so that
    positions of a journal that was thrown away are never taken for positions of the new one.
    Raises `ConfigError` when LAKE_STATE cannot be written.
    """
    if settings.collector_id:
        return settings.collector_id
    kept = settings.journals / "collector_id"
    try:
        if not kept.exists():
            settings.journals.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=settings.journals, delete=False) as fresh:
                fresh.write(secrets.token_hex(4))
            Path(fresh.name).rename(kept)
        return kept.read_text().strip()
    except OSError as error:
        raise ConfigError(f"LAKE_STATE={settings.state}: cannot be written: {error.strerror}") from None


def child_environment(**more: str) -> dict[str, str]:
    """The environment for a process of ours: the same one, for PATH and for the object store's credentials."""
    return {**os.environ, **more}


def origin(name: str) -> str:
    """Where the value of a setting comes from: environment, .env or default."""
    if name in os.environ:
        return "environment"
    return ".env" if name in _dotenv() else "default"


def unknown_names() -> list[str]:
    """`LAKE_` names in the environment and `.env` that are no setting: a slip of the pen changes nothing silently."""
    known = {field.alias for field in Settings.model_fields.values()}
    return sorted(name for name in {*os.environ, *_dotenv()} if name.startswith("LAKE_") and name not in known)


def _dotenv() -> dict[str, str | None]:
    return dotenv_values(".env") if Path(".env").exists() else {}


def example() -> str:
    """The text of `.env.example`: every setting with its meaning and its default."""
    lines = ["# Settings of crypto_lake. Copy to .env and uncomment what you change; the environment wins over .env."]
    for name, setting in Settings.model_fields.items():
        lines += ["", f"# {setting.description}", f"#{setting.alias}={_as_text(Settings.model_fields[name].default)}"]
    return "\n".join(lines) + "\n"


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
