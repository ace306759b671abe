"""Numbers out of text, eight digits at a time: a reader compiled for the fields of one kind of line.

It needs `llvmlite` (the extra `fast`) and a little-endian machine. The loop is written down as instructions, once per
kind of line, so that nothing is asked per field that is known before; LLVM makes machine code of it in a moment. It
takes lines with nothing unusual in them, and stops in front of the first that has.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, Literal, NamedTuple

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from llvmlite import ir

if sys.byteorder != "little":
    raise ImportError("eight digits are read as one little-endian number")

# What is made of a field: nothing, Int64, Float64, a byte that is 1 or 0, Int64 microseconds, or a text. With "maybe"
# there may be nothing in it, which becomes `NO_WHOLE` or a NaN.
Kind = Literal["skip", "whole", "number", "flag", "time", "text", "maybe whole", "maybe number"]
Text = bytes | bytearray | memoryview
# `read(outs, position, limit, row, capacity, least, most, scale)`: see `reader`.
Read = Callable[[int, int, int, int, int, int, int, int], int]

# A longer field is unusual; nothing is looked at that is farther from a field's begin.
REACH_BYTES: Final = 80
SKIPPED_WORDS: Final = 8
SAMPLE_BYTES: Final = 1 << 16
# More digits may not fit into 64 bits.
MOST_DIGITS: Final = 19
# Whole numbers up to here are exact as doubles, and so are the powers of ten up to 22: the one divided by the other is
# the double that is nearest to the decimal.
EXACT: Final = 2**53
ENGINES: Final[list[Any]] = []

# In place of a number that is not there.
NO_WHOLE: Final = -(2**63)
NO_NUMBER: Final = 0x7FF8 << 48

I8, I64, F64 = ir.IntType(8), ir.IntType(64), ir.DoubleType()
# A value (its bits), and where the next field begins; 0 if something is unusual.
FOUND: Final = ir.LiteralStructType([I64, I64])
COMMA, NEWLINE, RETURN, POINT, MINUS, ZERO, QUOTE = b',\n\r.-0"'
# Eight bytes that are the same.
ONES: Final = 0x0101010101010101
ZEROS: Final = ZERO * ONES
TOPS: Final = 0x80 * ONES
LOWER: Final = 0x20 * ONES
TRUE: Final = int.from_bytes(b"true", "little")
FALSE: Final = int.from_bytes(b"false", "little")


class Texts(NamedTuple):
    """A column of texts: row by row the place of its text in `distinct`; neighbours that are equal share one."""

    places: npt.NDArray[np.int32]
    distinct: pa.Array


class Unusual(Exception):
    """There is a line that is not for this reader; no row of its text is read."""


def read_columns(
    text: Text, kinds: tuple[Kind, ...], *, least: int, most: int, scale: int
) -> list[npt.NDArray[np.generic] | Texts]:
    """The columns of the lines in `text`, one for each kind but "skip"; of flags eight are in a byte, lowest first.

    Times must be from `least` to `most`, and are multiplied by `scale`, or divided by 1000 if it is 0. The first
    column says how many rows there are, if it is no flag. Raises `Unusual`.
    """
    assert text, "there are no columns in nothing"
    margin = len(kinds) * REACH_BYTES
    cells = _Cells(kinds, (least, most, scale), _rows_in(text))
    read = cells.fill(text, len(text) - margin) if len(text) > margin else 0
    rest = bytes(text[read:])
    rest += b"" if rest.endswith(b"\n") else b"\n"
    cells.fill(rest + bytes(margin), len(rest))
    return list(cells.columns())


def _rows_in(text: Text) -> int:
    """How many lines there may be, judged by the first ones."""
    sample = bytes(text[:SAMPLE_BYTES])
    return (sample.count(b"\n") + 1) * len(text) * 11 // (len(sample) * 10) + 16


class _Cells:
    """The columns while they are filled."""

    def __init__(self, kinds: tuple[Kind, ...], unit: tuple[int, int, int], capacity: int) -> None:
        self._read, self._unit = reader(kinds), unit
        self._kinds = [kind for kind in kinds if kind != "skip"]
        self._cells = np.empty((len(self._kinds), capacity), np.int64)
        self._rows = 0
        self._texts: dict[int, list[Texts]] = {at: [] for at, kind in enumerate(self._kinds) if kind == "text"}

    def fill(self, text: Text, limit: int) -> int:
        """Reads the lines that begin before `limit`, and returns where the one behind them begins."""
        letters = np.frombuffer(text, np.uint8)
        first, before = letters.ctypes.data, self._rows
        position = np.array([first], np.int64)
        while True:
            capacity = self._cells.shape[1]
            outs = self._cells.ctypes.data + np.arange(len(self._kinds)) * self._cells.strides[0]
            self._rows = self._read(
                outs.ctypes.data, position.ctypes.data, first + limit, self._rows, capacity, *self._unit
            )
            if position[0] >= first + limit:
                for at, texts in self._texts.items():
                    # As long as it is the same text in front of us.
                    texts.append(_texts(letters, self._cells[at, before : self._rows]))
                return int(position[0] - first)
            if self._rows < capacity:
                raise Unusual
            self._cells = np.concatenate([self._cells, np.empty_like(self._cells)], axis=1)

    def columns(self) -> Iterator[npt.NDArray[np.generic] | Texts]:
        """What is filled."""
        for at, (kind, column) in enumerate(zip(self._kinds, self._cells, strict=True)):
            if kind == "text":
                yield _joined(self._texts[at])
            elif kind == "flag":
                yield np.packbits(column.view(np.uint8)[: self._rows], bitorder="little")
            else:
                yield column[: self._rows].view(np.float64 if kind.endswith("number") else np.int64)


def _texts(letters: npt.NDArray[np.uint8], cells: npt.NDArray[np.int64]) -> Texts:
    """The texts at the addresses in cells (with the length in the lowest byte), as they stand in `letters`."""
    changes = np.flatnonzero(cells[1:] != cells[:-1]) + 1
    firsts = np.concatenate([np.zeros(min(1, len(cells)), np.int64), changes])
    places = np.repeat(np.arange(len(firsts), dtype=np.int32), np.diff(np.append(firsts, len(cells))))
    found = cells[firsts]
    begins, lengths = (found >> 8) - letters.ctypes.data, found & 0xFF
    ends = np.cumsum(lengths)
    # Where in `letters` each letter of the texts, one behind the other, comes from.
    heap = letters[np.repeat(begins - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)]
    offsets = np.concatenate([np.zeros(1, np.int32), ends.astype(np.int32)])
    return Texts(places, pa.StringArray.from_buffers(len(found), pa.py_buffer(offsets), pa.py_buffer(heap)))


def _joined(parts: list[Texts]) -> Texts:
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.distinct) for part in parts[:-1])])
    places = [part.places + np.int32(start) for part, start in zip(parts, starts, strict=True)]
    return Texts(np.concatenate(places), pa.concat_arrays([part.distinct for part in parts]))


@cache
def reader(kinds: tuple[Kind, ...]) -> Read:
    """The compiled reader of lines whose fields are of these kinds.

    `read(outs, position, limit, row, capacity, least, most, scale)`: reads lines from the address that is at the
    address `position` on, as long as a line begins before `limit` and `row` is below `capacity`; the bytes
    `len(kinds) * REACH_BYTES` behind `limit` must be readable. Values go to the row's place in the columns whose
    addresses are at `outs`, one for each kind but "skip". Times must be from `least` to `most` and are multiplied by
    `scale`, or divided by 1000 if it is 0. Returns the row behind the last one read, and has put the address of the
    line behind it to `position`: if that is below `limit` and the row below `capacity`, the line is unusual.
    """
    module = ir.Module()
    _write_tables(module)
    _write_digits(module)
    _write_whole(module)
    _write_number(module)
    _write_skip(module)
    _write_text(module)
    _write_same(module)
    _write_read(module, kinds)
    return _compiled(module)


def _compiled(module: Any) -> Read:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    processor, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple().create_target_machine(opt=2, cpu=processor, features=features)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), target)
    engine.finalize_object()
    ENGINES.append(engine)  # the code is there as long as this is
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 8)(engine.get_function_address("read"))


def _instruction(name: str) -> Callable[["_Word", "_Word | int"], "_Word"]:
    def write(left: "_Word", right: "_Word | int") -> "_Word":
        return _Word(left.build, getattr(left.build, name)(left.value, left.like(right)))

    return write


def _comparison(sign: str) -> Callable[["_Word", "_Word | int"], "_Word"]:
    def write(left: "_Word", right: "_Word | int") -> "_Word":
        return _Word(left.build, left.build.icmp_unsigned(sign, left.value, left.like(right)))

    return write


class _Word:
    """64 bits, or a truth, in the code that is written; an operator writes an instruction. Nothing has a sign."""

    def __init__(self, build: Any, value: Any) -> None:
        self.build, self.value = build, value

    def like(self, other: "_Word | int") -> Any:
        """What LLVM calls `other`, in the same type as this one."""
        return other.value if isinstance(other, _Word) else self.value.type(other)

    __add__ = _instruction("add")
    __sub__ = _instruction("sub")
    __mul__ = _instruction("mul")
    __floordiv__ = _instruction("udiv")
    __mod__ = _instruction("urem")
    __and__ = _instruction("and_")
    __or__ = _instruction("or_")
    __xor__ = _instruction("xor")
    __lshift__ = _instruction("shl")
    __rshift__ = _instruction("lshr")
    __lt__ = _comparison("<")
    __le__ = _comparison("<=")
    __gt__ = _comparison(">")
    __ge__ = _comparison(">=")
    equals = _comparison("==")
    differs = _comparison("!=")

    def chosen(self, yes: "_Word", no: "_Word") -> "_Word":
        """One of two, by a truth."""
        return _Word(self.build, self.build.select(self.value, yes.value, no.value))


class _Variable:
    """A number that may change."""

    def __init__(self, build: Any, place: Any) -> None:
        self.build, self.place = build, place

    def get(self) -> _Word:
        return _Word(self.build, self.build.load(self.place))

    def set(self, value: _Word) -> None:
        self.build.store(value.value, self.place)


class _Function:
    """A function that is written, all of its arguments words."""

    def __init__(self, module: Any, name: str, arguments: int, returns: Any) -> None:
        self.llvm = ir.Function(module, ir.FunctionType(returns, [I64] * arguments), name)
        self.build = ir.IRBuilder(self.llvm.append_basic_block("entry"))
        self.arguments = [_Word(self.build, each) for each in self.llvm.args]

    def word(self, value: int) -> _Word:
        return _Word(self.build, I64(value))

    def variable(self, first: _Word) -> _Variable:
        with self.build.goto_entry_block():
            variable = _Variable(self.build, self.build.alloca(I64))
        variable.set(first)
        return variable

    def constant_at_first(self, first: int) -> _Variable:
        """A variable that is set before anything else happens, wherever this is called."""
        with self.build.goto_entry_block():
            variable = _Variable(self.build, self.build.alloca(I64))
            variable.set(self.word(first))
        return variable

    def load(self, address: _Word) -> _Word:
        """The eight bytes at an address, even or not; the first is the lowest."""
        return _Word(self.build, self.build.load(self.build.inttoptr(address.value, I64.as_pointer()), align=1))

    def byte(self, address: _Word) -> _Word:
        found = self.build.load(self.build.inttoptr(address.value, I8.as_pointer()))
        return _Word(self.build, self.build.zext(found, I64))

    def store(self, value: _Word, address: _Word, type_: Any) -> None:
        given = self.build.trunc(value.value, type_) if type_ == I8 else value.value
        self.build.store(given, self.build.inttoptr(address.value, type_.as_pointer()))

    def first_of(self, marks: _Word) -> _Word:
        """Eight times the place of the first byte whose highest bit is set; 64 if there is none."""
        return _Word(self.build, self.build.cttz(marks.value, ir.IntType(1)(0))) & 0x78

    def of_table(self, name: str, place: _Word) -> Any:
        return self.build.load(self.build.gep(self.llvm.module.get_global(name), [I64(0), place.value]))

    def power_of_ten(self, places: _Word) -> _Word:
        return _Word(self.build, self.of_table("powers", places))

    def quotient(self, digits: _Word, places: _Word) -> _Word:
        """The bits of the double nearest to `digits / 10**places`, if both are exact."""
        number = self.build.fdiv(self.build.uitofp(digits.value, F64), self.of_table("doubles", places))
        return _Word(self.build, self.build.bitcast(number, I64))

    def call(self, name: str, *given: _Word) -> tuple[_Word, _Word]:
        found = self.build.call(self.llvm.module.get_global(name), [each.value for each in given])
        value, position = (_Word(self.build, self.build.extract_value(found, place)) for place in (0, 1))
        return value, position

    def give(self, value: _Word, position: _Word) -> None:
        found = self.build.insert_value(FOUND(ir.Undefined), value.value, 0)
        self.build.ret(self.build.insert_value(found, position.value, 1))

    def give_up_unless(self, truth: _Word) -> None:
        with self.build.if_then(self.build.not_(truth.value)):
            self.give(self.word(0), self.word(0))

    def blocks(self, count: int) -> list[Any]:
        return [self.llvm.append_basic_block() for _ in range(count)]

    def go(self, truth: _Word, yes: Any, no: Any) -> None:
        """Goes to one of two blocks, and goes on writing the first."""
        self.build.cbranch(truth.value, yes, no)
        self.build.position_at_end(yes)

    @contextmanager
    def repeat_while(self, condition: Callable[[], _Word]) -> Iterator[None]:
        head, body, behind = self.blocks(3)
        self.build.branch(head)
        self.build.position_at_end(head)
        self.go(condition(), body, behind)
        yield
        self.build.branch(head)
        self.build.position_at_end(behind)


def _write_tables(module: Any) -> None:
    for name, type_, powers in (("powers", I64, range(20)), ("doubles", F64, range(23))):
        array = ir.ArrayType(type_, len(powers))
        table = ir.GlobalVariable(module, array, name)
        table.global_constant = True
        table.initializer = array([type_(10**power if type_ == I64 else float(10**power)) for power in powers])


def _other_than_digits(digits: _Word) -> _Word:
    """The highest bit of the first byte that is above 9 (and of some behind it)."""
    return ((digits + 0x76 * ONES) | digits) & TOPS


def _eight(digits: _Word) -> _Word:
    """The number that eight digits are, bytes of 0 to 9."""
    pairs = (digits * 2561) >> 8
    fours = ((pairs & 0x00FF00FF00FF00FF) * 6553601) >> 16
    return ((fours & 0x0000FFFF0000FFFF) * 42949672960001) >> 32


def _some(digits: _Word, bits: _Word) -> _Word:
    """The number that the first digits are, as many as `bits / 8`."""
    half = (bits * -1 + 64) >> 1
    return _eight((digits << half) << half)  # by halves, for a shift by 64 means nothing


def _write_digits(module: Any) -> None:
    """`digits(position, value)`: the value with the digits there behind it, and where they end; 24 at the most."""
    function = _Function(module, "digits", 2, FOUND)
    position, value = function.arguments
    for _ in range(3):
        digits = function.load(position) ^ ZEROS
        bits = function.first_of(_other_than_digits(digits))
        with function.build.if_then(bits.differs(64).value):
            count = bits >> 3
            function.give(value * function.power_of_ten(count) + _some(digits, bits), position + count)
        value, position = value * 10**8 + _eight(digits), position + 8
    function.give(value, position)


def _write_whole(module: Any) -> None:
    """`whole(position, end)`: the whole number in front of the byte `end`."""
    function = _Function(module, "whole", 2, FOUND)
    position, end = function.arguments
    value, behind = function.call("digits", position, function.word(0))
    function.give_up_unless(behind.differs(position) & (behind <= position + MOST_DIGITS) & (value < 2**63))
    function.give_up_unless(function.byte(behind).equals(end))
    function.give(value, behind + 1)


def _write_number(module: Any) -> None:
    """`number(position, end)`: the decimal in front of the byte `end`, as the bits of a double."""
    function = _Function(module, "number", 2, FOUND)
    position, end = function.arguments
    is_negative = function.byte(position).equals(MINUS)
    first = is_negative.chosen(position + 1, position)
    value, point = function.call("digits", first, function.word(0))
    function.give_up_unless(point.differs(first))
    has_point = function.byte(point).equals(POINT)
    longer, behind = function.call("digits", point + 1, value)
    digits = function.variable(has_point.chosen(longer, value))
    places = function.variable(has_point.chosen(behind - point - 1, function.word(0)))
    behind = has_point.chosen(behind, point)
    most = has_point.chosen(first + MOST_DIGITS + 1, first + MOST_DIGITS)
    function.give_up_unless((behind <= most) & function.byte(behind).equals(end))
    with function.repeat_while(
        lambda: (digits.get() > EXACT) & places.get().differs(0) & (digits.get() % 10).equals(0)
    ):
        digits.set(digits.get() // 10)
        places.set(places.get() - 1)
    function.give_up_unless(digits.get() <= EXACT)
    sign = is_negative.chosen(function.word(1 << 63), function.word(0))
    function.give(function.quotient(digits.get(), places.get()) | sign, behind + 1)


def _write_skip(module: Any) -> None:
    """`skip(position, end)`: over whatever is in front of the byte `end`, if it is plain text."""
    function = _Function(module, "skip", 2, FOUND)
    position, end = function.arguments
    for _ in range(SKIPPED_WORDS):
        marks = _marks(function.load(position), COMMA, NEWLINE, QUOTE)
        with function.build.if_then(marks.differs(0).value):
            found = position + (function.first_of(marks) >> 3)
            function.give_up_unless(function.byte(found).equals(end))
            function.give(function.word(0), found + 1)
        position = position + 8
    function.give(function.word(0), function.word(0))


def _write_text(module: Any) -> None:
    """`text(position, end)`: address x 256 + length of the plain text in front of the byte `end`, or between quotes."""
    function = _Function(module, "text", 2, FOUND)
    position, end = function.arguments
    is_quoted = function.byte(position).equals(QUOTE)
    quoted, bare = function.blocks(2)
    function.go(is_quoted, quoted, bare)
    first = position + 1
    at = first
    for _ in range(SKIPPED_WORDS):
        marks = _marks(function.load(at), NEWLINE, QUOTE)
        with function.build.if_then(marks.differs(0).value):
            behind = at + (function.first_of(marks) >> 3)
            is_closed = function.byte(behind).equals(QUOTE) & function.byte(behind + 1).equals(end)
            function.give_up_unless(is_closed)
            function.give((first << 8) | (behind - first), behind + 2)
        at = at + 8
    function.give(function.word(0), function.word(0))
    function.build.position_at_end(bare)
    _, behind = function.call("skip", position, end)
    function.give_up_unless(behind.differs(0))
    function.give((position << 8) | (behind - position - 1), behind)


def _write_same(module: Any) -> None:
    """`same(position, other, length)`: whether so many bytes are the same in both places; then what is behind them."""
    function = _Function(module, "same", 3, FOUND)
    position, other, length = function.arguments
    left = function.variable(length)
    at = function.variable(function.word(0))
    with function.repeat_while(lambda: left.get() > 8):
        function.give_up_unless(function.load(position + at.get()).equals(function.load(other + at.get())))
        at.set(at.get() + 8)
        left.set(left.get() - 8)
    unlike = function.load(position + at.get()) ^ function.load(other + at.get())
    shift = (left.get() * -1 + 8) << 2  # by halves, for a shift by 64 means nothing
    function.give_up_unless(((unlike << shift) << shift).equals(0))
    function.give(function.word(1), position + length)


def _marks(word: _Word, *bytes_: int) -> _Word:
    """The highest bit of the first byte that is one of these, or no ASCII (and of some behind it)."""
    marks = word & TOPS
    for each in bytes_:
        unlike = word ^ (each * ONES)
        marks = marks | ((unlike - ONES) & (unlike ^ (2**64 - 1)) & TOPS)
    return marks


class _Seen:
    """The text that a column had last: where the field was, how long with its quotes, and what was made of it."""

    def __init__(self, function: _Function, position: _Variable) -> None:
        self.begin = function.variable(position.get())
        self.length = function.variable(function.word(0))
        self.value = function.variable(position.get() << 8)


class _Line:
    """The loop's body, field by field: where it is in the line, and what is there."""

    def __init__(self, function: _Function, position: _Variable, unusual: Any) -> None:
        self.function, self.position, self.unusual = function, position, unusual
        self.value = function.variable(function.word(0))

    def go_on_if(self, truth: _Word) -> None:
        """The line is unusual if it is not true."""
        (more,) = self.function.blocks(1)
        self.function.go(truth, more, self.unusual)

    def found(self, value: _Word, position: _Word) -> None:
        self.value.set(value)
        self.position.set(position)

    def call(self, name: str, end: int) -> None:
        """Reads the field by a function that takes nearly everything."""
        value, position = self.function.call(name, self.position.get(), self.function.word(end))
        self.go_on_if(position.differs(0))
        self.found(value, position)

    def skip(self, end: int) -> None:
        self.call("skip", end)

    def whole(self, end: int) -> None:
        """Long ones are mostly as long as the one before: then where the field ends need not be waited for."""
        function, position = self.function, self.position.get()
        long, short, same, other, done = function.blocks(5)
        length = function.constant_at_first(16)
        digits = function.load(position) ^ ZEROS
        marks = _other_than_digits(digits)
        function.go(marks.equals(0), long, short)
        behind = position + length.get()
        last = function.load(behind - 8) ^ ZEROS
        function.go(_other_than_digits(last).equals(0) & function.byte(behind).equals(end), same, other)
        first = _some(digits, (length.get() << 3) - 64)
        self.found(first * 10**8 + _eight(last), behind + 1)
        function.build.branch(done)
        function.build.position_at_end(other)
        self.call("whole", end)
        new = self.position.get() - position - 1
        length.set((new <= 16).chosen(new, function.word(16)))
        function.build.branch(done)
        function.build.position_at_end(short)
        bits = function.first_of(marks)
        self.go_on_if(bits.differs(0) & ((digits >> bits) & 0xFF).equals(end ^ ZERO))
        self.found(_some(digits, bits), position + (bits >> 3) + 1)
        function.build.branch(done)
        function.build.position_at_end(done)

    def number(self, end: int) -> None:
        """In one word with its point, in two words around it, or by the function."""
        function, position = self.function, self.position.get()
        pointed, one, two, both, other, done = function.blocks(6)
        digits = function.load(position) ^ ZEROS
        marks = _other_than_digits(digits)
        point, behind = function.first_of(marks) & 56, function.first_of(marks & (marks - 1)) & 56
        function.go(point.differs(0) & ((digits >> point) & 0xFF).equals(POINT ^ ZERO), pointed, other)
        function.go(((digits >> behind) & 0xFF).equals(end ^ ZERO), one, two)
        above = (digits >> point >> 8) << point << 8
        below = (digits ^ (digits >> point << point)) << 8
        places = (behind - point - 8) >> 3
        value = _some(below | above, behind)
        self.found(function.quotient(value, places), position + (behind >> 3) + 1)
        function.build.branch(done)
        function.build.position_at_end(two)
        fraction = position + (point >> 3) + 1
        more = function.load(fraction) ^ ZEROS
        bits = function.first_of(_other_than_digits(more))
        places = bits >> 3
        function.go(function.byte(fraction + places).equals(end), both, other)
        value = _some(digits, point) * function.power_of_ten(places) + _some(more, bits)
        self.found(function.quotient(value, places), fraction + places + 1)
        function.build.branch(done)
        function.build.position_at_end(other)
        self.call("number", end)
        function.build.branch(done)
        function.build.position_at_end(done)

    def flag(self, end: int) -> None:
        function, position = self.function, self.position.get()
        word = function.load(position) | LOWER
        yes, no = (word & 0xFFFFFFFF).equals(TRUE), (word & 0xFFFFFFFFFF).equals(FALSE)
        behind = position + yes.chosen(function.word(4), function.word(5))
        self.go_on_if((yes | no) & function.byte(behind).equals(end))
        self.found(yes.chosen(function.word(1), function.word(0)), behind + 1)

    def maybe(self, kind: str, end: int) -> None:
        """A number, or nothing."""
        function, position = self.function, self.position.get()
        nothing, some, done = function.blocks(3)
        function.go(function.byte(position).equals(end), nothing, some)
        self.found(function.word(NO_NUMBER if kind == "number" else NO_WHOLE), position + 1)
        function.build.branch(done)
        function.build.position_at_end(some)
        getattr(self, kind)(end)
        function.build.branch(done)
        function.build.position_at_end(done)

    def text(self, end: int, seen: _Seen) -> None:
        """Mostly the text that was there in the line before."""
        function, position = self.function, self.position.get()
        same, other, new, done = function.blocks(4)
        is_same, behind = function.call("same", position, seen.begin.get(), seen.length.get())
        function.go(is_same.equals(1), same, other)
        function.go(function.byte(behind).equals(end), new, other)
        self.found(seen.value.get(), behind + 1)
        function.build.branch(done)
        function.build.position_at_end(other)
        self.call("text", end)
        if end == NEWLINE:  # of a line's end with two letters the first one is no part of the text
            self.go_on_if(function.byte(self.position.get() - 2).differs(RETURN))
        seen.begin.set(position)
        seen.length.set(self.position.get() - position - 1)
        seen.value.set(self.value.get())
        function.build.branch(done)
        function.build.position_at_end(done)

    def time(self, end: int, least: _Word, most: _Word, scale: _Word) -> None:
        self.whole(end)
        value = self.value.get()
        self.go_on_if((value >= least) & (value <= most))
        self.value.set(scale.equals(0).chosen(value // 1000, value * scale))


def _write_read(module: Any, kinds: Sequence[Kind]) -> None:
    function = _Function(module, "read", 8, I64)
    outs, place, limit, first_row, capacity, *unit = function.arguments
    columns = [function.load(outs + 8 * number) for number in range(sum(kind != "skip" for kind in kinds))]
    (unusual,) = function.blocks(1)
    position, begin = function.variable(function.load(place)), function.variable(limit)
    row = function.variable(first_row)
    line = _Line(function, position, unusual)
    seen = {number: _Seen(function, position) for number, kind in enumerate(kinds, 1) if kind == "text"}
    with function.repeat_while(lambda: (position.get() < limit) & (row.get() < capacity)):
        begin.set(position.get())
        free = iter(columns)
        for number, kind in enumerate(kinds, 1):
            end = COMMA if number < len(kinds) else NEWLINE
            if kind == "text":
                line.text(end, seen[number])
            elif kind.startswith("maybe "):
                line.maybe(kind.removeprefix("maybe "), end)
            else:
                getattr(line, kind)(end, *(unit if kind == "time" else ()))
            if kind == "flag":
                function.store(line.value.get(), next(free) + row.get(), I8)
            elif kind != "skip":
                function.store(line.value.get(), next(free) + (row.get() << 3), I64)
        row.set(row.get() + 1)
    function.store(position.get(), place, I64)
    function.build.ret(row.get().value)
    function.build.position_at_end(unusual)
    function.store(begin.get(), place, I64)
    function.build.ret(row.get().value)
