"""Every number that `/metrics` shows; a leaf, so that any module can count."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

# Our own registry: importing a library that counts too must not change what we show.
REGISTRY = CollectorRegistry()
PREFIX = "crypto_lake"

ProcessCollector(namespace=PREFIX, registry=REGISTRY)


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(name, meaning, labels, namespace=PREFIX, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(name, meaning, labels, namespace=PREFIX, registry=REGISTRY)


# What comes in.
frames_total = _counter("frames_total", "Messages received and written to the journal (messages)", "dataset", "venue")
repeats_total = _counter(
    "repeats_total", "Messages that another connection had delivered already (messages)", "dataset", "venue"
)
shed_total = _counter("shed_total", "Messages received and given up under load (messages)", "dataset", "venue")
load_level = _gauge("load_level", "What is given up under load: 0 nothing, 1 book_ticker, 2 depth too (level)")
lapses_total = _counter("lapses_total", "Times without delivery that ended (lapses)", "dataset", "venue", "reason")
streams_silent = _gauge("streams_silent", "Streams that should speak and do not (streams)", "dataset", "venue")
frame_bytes_total = _counter("frame_bytes_total", "Payload received (bytes)", "dataset", "venue")
last_frame_time_seconds = _gauge(
    "last_frame_time_seconds", "When the newest message came (unix seconds)", "dataset", "venue"
)
connections_open = _gauge("connections_open", "WebSocket connections that are open (connections)", "dataset", "venue")
reconnects_total = _counter("reconnects_total", "Connections made anew (connections)", "dataset", "venue", "reason")
receive_delay_seconds = Histogram(
    "receive_delay_seconds",
    "How late the event loop woke up, and so how late a receive time may be (seconds)",
    namespace=PREFIX,
    registry=REGISTRY,
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)

# The journal.
journal_end_position = _gauge("journal_end_position", "Where the journal ends (bytes from its beginning)", "dataset")
committed_position = _gauge(
    "committed_position", "Up to where the journal is in the tables (bytes from its beginning)", "dataset"
)
journal_backlog_bytes = _gauge("journal_backlog_bytes", "Journal not yet in the tables (bytes)", "dataset")
journal_cut_bytes_total = _counter(
    "journal_cut_bytes_total", "Torn ends cut off when the journal was opened (bytes)", "dataset"
)
journal_full = _gauge("journal_full", "1 while the disk of the journal is full and nothing is recorded, else 0")

# The tables.
rows_committed_total = _counter("rows_committed_total", "Rows committed (rows)", "table")
rejected_total = _counter("rejected_total", "Messages and rows set aside in the table rejected (rows)", "dataset")
duplicates_total = _counter("duplicates_total", "Rows dropped because their key is already held (rows)", "dataset")
holes_total = _counter("holes_total", "Stretches of missing ids found (holes)", "dataset")
holes_open = _gauge("holes_open", "Stretches of missing ids that are still to be had (holes)", "dataset")
repair_rows_total = _counter("repair_rows_total", "Rows fetched to fill holes (rows)", "dataset", "venue")
findings_total = _counter("findings_total", "Findings of the quality checks (findings)", "dataset")
commits_total = _counter("commits_total", "Batches committed (commits)", "dataset")
commit_failures_total = _counter("commit_failures_total", "Batches that the store refused (commits)", "dataset")
commit_seconds = Histogram(
    "commit_seconds",
    "From reading a batch to its last commit (seconds)",
    ("dataset",),
    namespace=PREFIX,
    registry=REGISTRY,
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
last_commit_time_seconds = _gauge("last_commit_time_seconds", "When the newest commit ended (unix seconds)", "dataset")
drain_rss_bytes = _gauge("drain_rss_bytes", "Resident memory after a drain (bytes)")
maintenance_runs_total = _counter("maintenance_runs_total", "Maintenance runs (runs)", "verb", "result")

# Live bars.
live_bars_total = _counter("live_bars_total", "Bars closed or revised while trades came in (bars)", "timeframe", "what")
late_trades_dropped_total = _counter(
    "late_trades_dropped_total", "Trades that came after their bar was closed and are in none (trades)", "venue"
)
live_bar_delay_seconds = Histogram(
    "live_bar_delay_seconds",
    "From the arrival of the trade that closed a bar to the bar on the page /bars (seconds)",
    namespace=PREFIX,
    registry=REGISTRY,
    buckets=(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5),
)
table_bars_total = _counter("table_bars_total", "Bars written into the table bar (rows)", "what")
table_bars_failures_total = _counter(
    "table_bars_failures_total", "Times the table bar could not be brought up to date (builds)"
)

# REST.
rest_requests_total = _counter(
    "rest_requests_total", "Requests by HTTP status; none = no answer (requests)", "venue", "status"
)
rest_used_weight = _gauge(
    "rest_used_weight", "Request weight of this IP address in the minute of the newest answer (weight)", "venue"
)
rest_stopped_until_seconds = _gauge(
    "rest_stopped_until_seconds", "Until when no request leaves, 0 = never stopped (unix seconds)"
)

# Files over HTTP.
download_requests_total = _counter(
    "download_requests_total", "Requests for files and listings by HTTP status; none = no answer (requests)", "status"
)
download_bytes_total = _counter("download_bytes_total", "Payload of files and listings received (bytes)")
