"""A connection that hears nothing while its sibling hears plenty is found, and no other one."""

from crypto_lake.services.mute import PLENTY, Mute


def test_the_one_that_hears_nothing_beside_a_busy_one_is_mute() -> None:
    mute: Mute[str] = Mute(8.0)
    found = [mute.look({"half open": 5, "busy": 10 * second}, second) for second in range(10)]
    assert found[:8] == [[]] * 8
    assert found[8] == ["half open"]


def test_two_quiet_ones_are_not_mute() -> None:
    mute: Mute[str] = Mute(8.0)
    assert not any(mute.look({"a": second // 30, "b": second // 20}, second) for second in range(300))


def test_a_few_messages_on_the_other_one_are_no_proof() -> None:
    mute: Mute[str] = Mute(8.0)
    assert not any(mute.look({"a": 5, "b": min(second, PLENTY - 1)}, second) for second in range(60))


def test_a_new_one_has_its_time() -> None:
    mute: Mute[str] = Mute(8.0)
    for second in range(20):
        mute.look({"busy": 10 * second}, second)
    assert not any(mute.look({"busy": 10 * second, "new": 0}, second) for second in range(20, 28))
    assert mute.look({"busy": 280, "new": 0}, 28) == ["new"]


def test_a_sibling_that_took_the_place_of_a_busy_one_counts_from_nothing() -> None:
    mute: Mute[str] = Mute(8.0)
    mute.look({"a": 5, "old": 1000}, 0)
    assert not any(mute.look({"a": 5, "new": 2}, second) for second in range(1, 20))
