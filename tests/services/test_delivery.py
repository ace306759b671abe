"""Who heard what when: what is proven between frames of one connection, and the holes that nobody can vouch for."""

from crypto_lake.models.gap import DISCONNECT, RESTART, SILENCE
from crypto_lake.services.delivery import DARK_US, MOST_PENDING, Delivery, Hole, Line

S = 1_000_000


def hear(delivery: Delivery, line: Line, *times_us: int) -> list[Hole]:
    """What a connection does per frame."""
    holes: list[Hole] = []
    for time_us in times_us:
        line.last_us = time_us
        if line.is_joined:
            delivery.proven_us = time_us
        else:
            holes += delivery.join(line)
    return holes


def started(*lines: Line, at_us: int = 10 * S) -> Delivery:
    """Lines that all hear at `at_us`."""
    delivery = Delivery(5 * S, started_us=9 * S)
    for line in lines:
        hear(delivery, line, at_us)
    return delivery


def test_a_start_leaves_a_hole_from_what_the_journal_heard_last() -> None:
    delivery = Delivery(5 * S, started_us=9 * S)
    assert not delivery.has_begun
    assert hear(delivery, Line(), 10 * S, 11 * S) == [Hole(5 * S, 10 * S, RESTART)]
    assert delivery.has_begun


def test_the_very_first_start_has_a_hole_without_a_begin() -> None:
    assert hear(Delivery(None, started_us=9 * S), Line(), 10 * S) == [Hole(None, 10 * S, RESTART)]


def test_a_clock_that_was_set_back_does_not_hide_a_restart() -> None:
    assert hear(Delivery(20 * S, started_us=9 * S), Line(), 9 * S) == [Hole(9 * S, 9 * S, RESTART)]


def test_one_connection_that_is_cut_leaves_a_hole_to_the_first_frame_of_the_next() -> None:
    first = Line()
    delivery = started(first)
    hear(delivery, first, 12 * S)
    assert delivery.ended(first, DISCONNECT) == []
    assert delivery.is_dark
    assert hear(delivery, Line(), 15 * S) == [Hole(12 * S, 15 * S, DISCONNECT)]
    assert not delivery.is_dark


def test_a_cut_while_another_one_listens_is_no_hole() -> None:
    one, other = Line(), Line()
    delivery = started(one, other)
    hear(delivery, one, 11 * S)
    assert delivery.ended(one, DISCONNECT) == []
    again = Line()
    assert hear(delivery, again, 13 * S) == []
    assert not again.is_joined  # nobody has proven yet that the other one still hears
    assert hear(delivery, other, 14 * S) == []
    assert hear(delivery, again, 15 * S) == []
    assert again.is_joined
    assert delivery.ended(other, DISCONNECT) == []
    assert hear(delivery, again, 20 * S) == []


def test_a_sibling_that_is_only_half_open_proves_nothing() -> None:
    mute, cut = Line(), Line()
    delivery = started(mute, cut)
    hear(delivery, cut, 12 * S)
    delivery.ended(cut, DISCONNECT)
    again = Line()
    assert hear(delivery, again, 15 * S, 16 * S, 20 * S) == []
    assert delivery.ended(mute, SILENCE) == [Hole(12 * S, 15 * S, DISCONNECT)]
    assert again.is_joined
    assert delivery.proven_us == 20 * S


def test_a_sibling_that_was_slow_only_proves_all_of_it() -> None:
    slow, cut = Line(), Line()
    delivery = started(slow, cut)
    delivery.ended(cut, DISCONNECT)
    again = Line()
    hear(delivery, again, 15 * S, 16 * S)
    assert hear(delivery, slow, 17 * S) == []
    assert hear(delivery, again, 18 * S) == []
    assert delivery.ended(slow, DISCONNECT) == []


def test_connections_that_were_mute_leave_silence() -> None:
    one = Line()
    delivery = started(one)
    delivery.ended(one, SILENCE)
    assert hear(delivery, Line(), 60 * S) == [Hole(10 * S, 60 * S, SILENCE)]


def test_stretches_of_connections_that_came_and_went_are_believed_one_by_one() -> None:
    mute, cut = Line(), Line()
    delivery = started(mute, cut)
    delivery.ended(cut, DISCONNECT)
    short, long = Line(), Line()
    hear(delivery, short, 12 * S, 13 * S)
    delivery.ended(short, DISCONNECT)
    hear(delivery, long, 15 * S, 30 * S)
    assert delivery.ended(mute, SILENCE) == [Hole(10 * S, 12 * S, SILENCE), Hole(13 * S, 15 * S, DISCONNECT)]
    assert delivery.proven_us == 30 * S


def test_stretches_that_overlap_are_one() -> None:
    mute, cut = Line(), Line()
    delivery = started(mute, cut)
    delivery.ended(cut, DISCONNECT)
    short, long = Line(), Line()
    hear(delivery, short, 12 * S, 13 * S)
    hear(delivery, long, 14 * S)
    hear(delivery, short, 15 * S)
    delivery.ended(short, DISCONNECT)
    hear(delivery, long, 16 * S)
    assert delivery.ended(mute, SILENCE) == [Hole(10 * S, 12 * S, SILENCE)]
    assert long.is_joined


def test_a_hole_that_lasts_is_told_once_and_ends_under_the_same_begin() -> None:
    line = Line()
    delivery = started(line)
    assert delivery.lasting(10 * S + 5 * DARK_US) is None
    delivery.ended(line, DISCONNECT)
    assert delivery.lasting(10 * S + DARK_US - 1) is None
    assert delivery.lasting(10 * S + DARK_US) == Hole(10 * S, None, DISCONNECT)
    assert delivery.lasting(10 * S + 9 * DARK_US) is None
    again = Line()
    assert hear(delivery, again, 60 * S) == [Hole(10 * S, 60 * S, DISCONNECT)]
    delivery.ended(again, DISCONNECT)
    assert delivery.lasting(70 * S) == Hole(60 * S, None, DISCONNECT)


def test_a_start_that_reaches_nobody_is_told_too() -> None:
    delivery = Delivery(5 * S, started_us=9 * S)
    assert delivery.lasting(10 * S) is None
    assert delivery.lasting(12 * S) == Hole(5 * S, None, RESTART)
    assert hear(delivery, Line(), 20 * S) == [Hole(5 * S, 20 * S, RESTART)]


def test_a_connection_that_never_spoke_leaves_nothing() -> None:
    line, dumb = Line(), Line()
    delivery = started(line)
    assert delivery.ended(dumb, SILENCE) == []
    assert hear(delivery, line, 11 * S) == []


def test_what_waits_for_a_mute_sibling_is_bounded() -> None:
    mute = Line()
    delivery = started(mute)
    holes: list[Hole] = []
    for number in range(3 * MOST_PENDING):
        line = Line()
        holes += hear(delivery, line, (20 + number) * S)
        delivery.ended(line, DISCONNECT)
    assert holes
    assert holes[0] == Hole(10 * S, 20 * S, RESTART)


def test_what_waited_in_the_socket_is_no_proof_that_it_was_delivered_until_it_was_read() -> None:
    line = Line()
    delivery = started(line)
    line.doubt_us = 12 * S  # the sockets rested from then on
    hear(delivery, line, 60 * S)
    assert delivery.ended(line, DISCONNECT) == []
    assert hear(delivery, Line(), 61 * S) == [Hole(12 * S, 61 * S, DISCONNECT)]


def test_a_clock_that_is_set_back_in_the_dark_does_not_hide_its_end() -> None:
    line = Line()
    delivery = started(line)
    delivery.ended(line, DISCONNECT)
    assert delivery.lasting(10 * S + DARK_US) == Hole(10 * S, None, DISCONNECT)
    assert hear(delivery, Line(), 4 * S) == [Hole(4 * S, 4 * S, DISCONNECT)]
    assert not delivery.is_dark
