"""Features: numbers about a bar, known when it closes. One registry; the table and its page are made from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from crypto_lake.models.dataset import market, price, text

Group = Literal["A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "K"]

GROUPS: Final[dict[Group, str]] = {
    "A": "Returns",
    "B": "Volatility",
    "C": "Candle",
    "D": "Trend",
    "E": "Volume and flow",
    "F": "Liquidity and impact",
    "G": "Book",
    "H": "Derivatives",
    "I": "Liquidations",
    "J": "Time",
    "K": "Cross symbol",
}


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of a bar, whose row is t.

    `inputs` are columns as table.column (`reference` are the bars of the reference symbol). `first` is the first row
    that can have a value; `is_guarded`: it may be null later too, where a guard of its formula says so. `lookback` is
    how many bars before row t the formula may look at.
    """

    name: str
    group: Group
    inputs: tuple[str, ...]
    first: int
    formula: str
    source: str = ""
    is_guarded: bool = False
    lookback: int = 0

    def reads(self, table: str) -> bool:
        """Whether it needs the table."""
        return any(each.partition(".")[0] == table for each in self.inputs)


# The letters of formulas, and the column that each is.
LETTERS: Final = {
    "o": "bar.open",
    "h": "bar.high",
    "l": "bar.low",
    "c": "bar.close",
    "v": "bar.volume",
    "q": "bar.quote_volume",
    "n": "bar.count",
    "bv": "bar.taker_buy_volume",
    "bq": "bar.taker_buy_quote_volume",
    "t": "bar.time",
    "ec": "reference.close",
    "mp": "mark_price.mark_price",
    "ip": "mark_price.index_price",
    "fr": "mark_price.funding_rate",
    "ft": "mark_price.next_funding_time",
    "mt": "mark_price.time",
    "oi": "open_interest.open_interest",
    "bids": "book_snapshot.bids",
    "asks": "book_snapshot.asks",
    "bt": "book_snapshot.time",
    "lt": "liquidation.time",
    "ls": "liquidation.side",
    "lp": "liquidation.average_price",
    "lq": "liquidation.filled_quantity",
}
LIQUIDATED: Final = "lt ls lp lq"


def _of(group: Group, *rows: tuple[str, str, str, str] | tuple[str, str, str, str, str]) -> tuple[Feature, ...]:
    """Features of a group from (name, letters of its inputs, first row, formula, source).

    A first row such as "60*" may be null later too; "60*+1" looks one row further back than its first row says.
    """
    return tuple(_feature(group, *row) for row in rows)


def _feature(group: Group, name: str, letters: str, first: str, formula: str, source: str = "") -> Feature:
    row, _, more = first.partition("+")
    number = int(row.removesuffix("*"))
    inputs = tuple(LETTERS[letter] for letter in letters.split())
    return Feature(name, group, inputs, number, formula, source, row.endswith("*"), number + int(more or 0))


FEATURES: Final[tuple[Feature, ...]] = (
    *_of(
        "A",
        ("ret_1", "c", "1", "c/c' - 1"),
        *((f"logret_{k}", "c", f"{k}", f"ln(c_t/c_(t-{k}))") for k in (1, 5, 15, 30, 60, 240)),
        ("gap_open", "o c", "1", "ln(o/c')"),
        ("logret_oc", "o c", "0", "ln(c/o)"),
    ),
    *_of(
        "B",
        *((f"rv_{k}", "c", f"{k}", f"sqrt(S_{k}(r²))", "Andersen-Bollerslev 1998") for k in (15, 60, 240)),
        ("std_30", "c", "30", "SD_30(r)"),
        ("skew_60", "c", "60*", "m3 // m2^1.5, mk = (1/60)*sum of (r_j - M_60(r))^k"),
        ("kurt_60", "c", "60*", "m4 // m2² (not excess)"),
        ("bipower_60", "c", "61", "(pi/2)*S_60(abs(r)*abs(r'))", "Barndorff-Nielsen-Shephard 2004"),
        (
            "jump_share_60",
            "c",
            "60*+1",
            "max(0, RV - BV) // RV, RV = S_60(r²), BV = bipower_60; the numerator is 0 where BV is null but RV is not",
            "Barndorff-Nielsen-Shephard 2004",
        ),
        (
            "semivar_down_60",
            "c",
            "60",
            "sum of r² over the window's rows with r < 0",
            "Barndorff-Nielsen-Shephard 2010",
        ),
        ("semivar_up_60", "c", "60", "sum of r² over the window's rows with r > 0", "Barndorff-Nielsen-Shephard 2010"),
        ("parkinson_30", "h l", "29", "sqrt(S_30(hl²)/(4 ln2 * 30))", "Parkinson 1980"),
        (
            "garman_klass_30",
            "o h l c",
            "29",
            "sqrt(max(0, M_30(0.5*hl² - (2 ln2 - 1)*co²)))",
            "Garman-Klass 1980",
        ),
        (
            "rogers_satchell_30",
            "o h l c",
            "29",
            "sqrt(max(0, M_30(rs))), rs = ln(h/c)*ln(h/o) + ln(l/c)*ln(l/o)",
            "Rogers-Satchell 1991",
        ),
        (
            "yang_zhang_30",
            "o h l c",
            "30",
            "sqrt(max(0, VAR_30(gap_open) + k*VAR_30(co) + (1-k)*M_30(rs))), k = 0.34/(1.34 + 31/29)",
            "Yang-Zhang 2000",
        ),
        ("vol_ratio_15_60", "c", "60*", "(rv_15/sqrt 15) // (rv_60/sqrt 60)"),
        ("vol_of_vol_60", "c", "74", "SD_60(rv_15)"),
    ),
    *_of(
        "C",
        *(
            (name, inputs, "0", formula, "Qlib Alpha158 KBAR")
            for name, inputs, formula in (
                ("kmid", "o c", "(c-o)/o"),
                ("klen", "o h l", "(h-l)/o"),
                ("kmid2", "o h l c", "(c-o)/(h-l+e)"),
                ("kup", "o h c", "(h - max(o,c))/o"),
                ("kup2", "o h l c", "(h - max(o,c))/(h-l+e)"),
                ("klow", "o l c", "(min(o,c) - l)/o"),
                ("klow2", "o h l c", "(min(o,c) - l)/(h-l+e)"),
                ("ksft", "o h l c", "(2c-h-l)/o"),
                ("ksft2", "h l c", "(2c-h-l)/(h-l+e)"),
            )
        ),
    ),
    *_of(
        "D",
        ("ma_ratio_20", "c", "19", "c/M_20(c) - 1"),
        ("ma_ratio_60", "c", "59", "c/M_60(c) - 1"),
        ("zclose_60", "c", "59*", "z_60(c)"),
        ("slope_20", "c", "19", "least-squares slope of c on 0..19, divided by c_t", "Alpha158"),
        (
            "rsqr_20",
            "c",
            "19*",
            "R² of that fit: Sxy²/(Sxx*Syy) with centred sums; null if Syy <= 1e-18*max(1, M²), M = M_20(c)",
            "Alpha158",
        ),
        ("rsv_20", "h l c", "19*", "(c - MIN_20(l)) // (MAX_20(h) - MIN_20(l))", "Alpha158"),
        ("dist_high_60", "h c", "59", "c/MAX_60(h) - 1"),
        ("dist_low_60", "l c", "59", "c/MIN_60(l) - 1"),
        ("bars_since_high_60", "h", "59", "rows back to the window's last row where h = MAX_60(h)", "Alpha158 IMAX"),
        ("bars_since_low_60", "l", "59", "rows back to the window's last row where l = MIN_60(l)", "Alpha158 IMIN"),
        (
            "rank_20",
            "c",
            "19",
            "(rows with c_j < c_t + (rows with c_j = c_t, itself included, + 1)/2)/20",
            "Alpha158",
        ),
        ("up_share_20", "c", "20", "share of the 20 rows with r > 0", "Alpha158 CNTP"),
        ("sumd_20", "c", "20*", "S_20(dc) // S_20(abs(dc))", "Alpha158 SUMD"),
        ("autocorr1_60", "c", "61*", "corr_60(r, r')"),
        ("var_ratio_5_60", "c", "64*", "VAR_60(logret_5) // (5*VAR_60(r))", "Lo-MacKinlay 1988"),
        ("efficiency_20", "c", "20*", "abs(c_t - c_(t-20)) // S_20(abs(dc))", "Kaufman"),
    ),
    *_of(
        "E",
        ("log_volume", "v", "0", "ln(1 + v)"),
        ("volume_z_60", "v", "59*", "z_60(v)"),
        ("count_z_60", "n", "59*", "z_60(n)"),
        ("rel_volume_60", "v", "59*", "v // M_60(v)"),
        ("avg_trade_size", "v n", "0*", "v // n"),
        ("taker_buy_ratio", "v bv", "0*", "bv // v"),
        ("flow_imb", "v bv", "0*", "sv // v"),
        ("cvd_60", "v bv", "59", "S_60(sv)"),
        ("flow_imb_60", "v bv", "59*", "S_60(sv) // S_60(v)"),
        ("dollar_imb_15", "q bq", "14*", "S_15(sq) // S_15(q)"),
        ("vwap_dev", "c v q", "0*", "c*v // q - 1"),
        ("vwap_dev_60", "c v q", "59*", "c*S_60(v) // S_60(q) - 1"),
        ("corr_r_vol_30", "c v", "30*", "corr_30(r, log_volume)"),
        (
            "vpin_50",
            "v bv",
            "49*",
            "S_50(abs(sv)) // S_50(v) (bar form of VPIN)",
            "Easley-Lopez de Prado-O'Hara 2012",
        ),
        ("trade_intensity_15", "n", "14", "S_15(n)/900 (trades per second on bars of 1m)"),
        ("empty_share_60", "n", "59", "share of the 60 rows with n = 0"),
    ),
    *_of(
        "F",
        (
            "amihud_30",
            "c q",
            "30*",
            "mean of abs(r)/q over those of the 30 rows with q > 0; null if there is none",
            "Amihud 2002",
        ),
        ("roll_spread_60", "c", "61", "2*sqrt(max(0, -COV_60(dc, dc')))", "Roll 1984"),
        ("kyle_lambda_60", "c v bv", "60*", "slope_60(dc on sv)", "Kyle 1985"),
        ("hasbrouck_lambda_60", "c q bq", "60*", "slope_60(r on sign(sq)*sqrt(abs(sq)))", "Hasbrouck 2009"),
        (
            "corwin_schultz_30",
            "h l",
            "30",
            "M_30(s), s_t = max(0, 2*(e^a - 1)/(1 + e^a)), a = (sqrt(2B) - sqrt(B))/d - sqrt(G/d), d = 3 - 2*sqrt 2, "
            "B = hl² + hl'², G = ln²(max(h,h')/min(l,l'))",
            "Corwin-Schultz 2012",
        ),
        ("zero_ret_share_30", "c", "30", "share of the 30 rows with r = 0 (c = c')", "Lesmond 1999"),
        ("illiq_hl_30", "h l q", "29*", "S_30(hl) // S_30(q)"),
    ),
    *_of(
        "G",
        ("spread_bps", "t bt bids asks", "0*", "(Pa - Pb)/mid*1e4"),
        ("microprice_dev_bps", "t bt bids asks", "0*", "((Pa*Qb + Pb*Qa)/(Qa+Qb)/mid - 1)*1e4"),
        ("imb_l1", "t bt bids asks", "0*", "(Qb - Qa)/(Qb + Qa)"),
        ("imb_l5", "t bt bids asks", "0*", "the same with sizes summed over 5 levels"),
        ("imb_w5", "t bt bids asks", "0*", "the same with sizes weighted 1/i (1, 1/2, 1/3, 1/4, 1/5)"),
        ("depth5_quote", "t bt bids asks", "0*", "sum over 5 levels of bid price*size + ask price*size"),
        ("bid_slope5", "t bt bids asks", "0*", "sum of 5 bid sizes / ((bid price 1 - bid price 5)/mid*1e4)"),
        ("ask_slope5", "t bt bids asks", "0*", "sum of 5 ask sizes / ((ask price 5 - ask price 1)/mid*1e4)"),
        (
            "ofi_l1",
            "t bt bids asks",
            "0*",
            "sum over the snapshots of the bar of e_1, each against the snapshot directly before it (for the bar's "
            "first: the last one before the bar); null without one",
            "Cont-Kukanov-Stoikov 2014",
        ),
        (
            "ofi_l5",
            "t bt bids asks",
            "0*",
            "the same with e_1 + e_2 + e_3 + e_4 + e_5",
            "Cont-Kukanov-Stoikov 2014",
        ),
        (
            "spread_mean_bps",
            "t bt bids asks",
            "0*",
            "mean of spread_bps (each with its own mid) over the snapshots of the bar; null without one",
        ),
        ("book_age_ms", "t bt", "0*", "close_time - time of the snapshot"),
    ),
    *_of(
        "H",
        ("basis_bps", "t mt mp ip", "0*", "(mp/ip - 1)*1e4"),
        ("mark_dev_bps", "c t mt mp", "0*", "(c/mp - 1)*1e4"),
        ("funding_rate", "t mt fr", "0*", "fr"),
        ("basis_z_60", "t mt mp ip", "59*", "z_60(basis_bps)"),
        ("minutes_to_funding", "t mt ft", "0*", "(next_funding_time - (close_time + 1))/60000"),
        ("oi_change_60", "t mt oi", "60*", "oi_t/oi_(t-60) - 1"),
        ("funding_chg_60", "t mt fr", "60*", "fr_t - fr_(t-60)"),
    ),
    *_of(
        "I",
        ("liq_count_15", "t lt ls", "14", "S_15(LN)"),
        ("liq_long_usd_15", f"t {LIQUIDATED}", "14", "S_15(LS) (SELL closes a long)"),
        ("liq_short_usd_15", f"t {LIQUIDATED}", "14", "S_15(LB)"),
        ("liq_imb_60", f"t {LIQUIDATED}", "59*", "(S_60(LB) - S_60(LS)) // (S_60(LB) + S_60(LS))"),
        ("liq_intensity_60", f"t {LIQUIDATED} q", "59*", "(S_60(LB) + S_60(LS)) // S_60(q)"),
        ("secs_since_liq", "t lt", "0*", "(close_time + 1 - time of the last liquidation)/1000; null before the first"),
    ),
    *_of(
        "J",
        ("tod_sin", "t", "0", "sin(2 pi m/1440)"),
        ("tod_cos", "t", "0", "cos(2 pi m/1440)"),
        ("dow_sin", "t", "0", "sin(2 pi d/7)"),
        ("dow_cos", "t", "0", "cos(2 pi d/7)"),
        ("is_weekend", "t", "0", "1 if d >= 5 else 0"),
        ("minute_of_hour", "t", "0", "m mod 60"),
        ("session_us", "t", "0", "1 if d < 5 and 810 <= m < 1200 else 0 (13:30-20:00 UTC, no summer time)"),
    ),
    *_of(
        "K",
        ("eth_logret_1", "t ec", "1*", "er"),
        ("eth_logret_5", "t ec", "5*", "ln(ec_t/ec_(t-5))"),
        ("corr_eth_60", "c t ec", "60*", "corr_60(r, er)"),
        ("beta_eth_60", "c t ec", "60*", "slope_60(r on er)"),
        ("lead_eth_60", "c t ec", "61*", "corr_60(r, er')"),
        ("ratio_z_60", "c t ec", "59*", "z_60(c/ec)"),
    ),
)
NAMES: Final = tuple(feature.name for feature in FEATURES)
# So many bars before the first one wanted make every feature of it what it is in the whole series.
LOOKBACK: Final = max(feature.lookback for feature in FEATURES)


def reach(tables: Iterable[str]) -> int:
    """How many bars after it a change in one of these tables can still be seen."""
    wanted = set(tables)
    return max(feature.lookback for feature in FEATURES if any(feature.reads(table) for table in wanted))


FEATURE = market(
    "feature",
    "features of bars; `time` is the open of the bar, and a row may be used from its close on",
    text("timeframe", "of the bar: 1m, 5m, 15m, 1h, 4h or 1d"),
    *(price(each.name, each.formula, nullable=True) for each in FEATURES),
    text("origin", "of the bars: trades, kline, flatfile or yahoo", nullable=True),
    text("reference", "the other symbol of group K; null: there is none", nullable=True),
    key=("venue", "symbol", "timeframe", "time"),
    order="time",
    within=("venue", "symbol", "timeframe"),
    layer="silver",
)

_NOTATION: Final = """\
# Features

The table `feature` has {count} numbers for each bar; `crypto-lake build features` makes it. This page is made from the
registry in `crypto_lake/models/feature.py`, and a test keeps it equal:
`python -c "from crypto_lake.models.feature import page; print(page(), end='')" > docs/features.md`

Row t may be used from the close of its bar on, and depends only on what had happened by then: no window is centred,
nothing is filled backwards, no mean is taken over the whole sample. A row never changes when later data arrive; when
a bar is revised, its row and those whose windows hold it are written again.

## Notation

- o h l c v q n bv bq = open, high, low, close, volume, quote_volume, count, taker_buy_volume and
  taker_buy_quote_volume of the bar. x' = x one row earlier. ln = natural logarithm.
- r = ln(c/c'). dc = c - c'. sv = 2*bv - v. sq = 2*bq - q. hl = ln(h/l). co = ln(c/o). e = 1e-12.
- Window n at row t is rows t-n+1 .. t of the series without gaps (an interval without trades is a row: the old close,
  sums 0). If the series starts later, or any value in the window is null, the result is null.
- S_n, M_n, MAX_n, MIN_n = sum, mean, maximum, minimum over window n. SD_n, VAR_n, COV_n = sample statistics (divided
  by n-1).
- corr_n(x,y) = COV_n(x,y)/(SD_n x * SD_n y), null if the product of the SDs <= 1e-14.
- slope_n(y on x) = COV_n(x,y)/VAR_n(x), null if VAR_n(x) <= 1e-18.
- z_n(x) = (x_t - M_n)/SD_n, null if SD_n <= 1e-12*max(1, abs(M_n)).
- a // b = a/b, null if b = 0. NaN and infinity are null.
- Times are in milliseconds; close_time = open + length of the bar - 1.
- Book: the last snapshot with time <= close_time, none that is older than 60,000 ms; Pb, Qb, Pa, Qa = best bid price
  and size, best ask price and size; mid = (Pb+Pa)/2. A null level makes the features that use it null.
  e_i (level i; 0 = snapshot before): + qb if pb >= pb0; - qb0 if pb <= pb0; - qa if pa <= pa0; + qa0 if pa >= pa0.
- Mark record: the last with time <= close_time, of any age: mp, ip, fr = mark price, index price, funding rate; oi =
  open interest as of the time of the mark record.
- Liquidations of the bar: LB, LS = sum of average_price*filled_quantity with side BUY, SELL; LN = number of both. The
  venue sends at most one a second, so these are lower bounds.
- m = minute of the UTC day of the bar's open (0..1439); d = its weekday, Monday = 0.
- ec = close of the reference symbol's bar with the same open, null if there is none; er = ln(ec/ec'). The names keep
  `eth_` whatever the reference symbol is.

`first` is the first row that can have a value; with * it may be null later too, where a guard applies. `bars before`
is how many bars before its own a feature looks at. An input that is missing makes its features null.
"""


def page() -> str:
    """docs/features.md."""
    parts = [_NOTATION.format(count=len(FEATURES))]
    for letter, title in GROUPS.items():
        rows = [feature for feature in FEATURES if feature.group == letter]
        parts.append(f"\n## {letter}. {title} ({len(rows)})\n\n")
        parts.append("| feature | first | bars before | formula | inputs | source |\n|---|---|---|---|---|---|\n")
        parts.extend(_line(feature) for feature in rows)
    return "".join(parts)


def _line(feature: Feature) -> str:
    first = f"{feature.first}{'*' if feature.is_guarded else ''}"
    inputs = ", ".join(f"`{each}`" for each in feature.inputs)
    cells = (f"`{feature.name}`", first, str(feature.lookback), feature.formula, inputs, feature.source)
    return f"| {' | '.join(cells)} |\n"
