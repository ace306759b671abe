"""Settings: what is the same must be the same, however it is written."""

import pytest

from crypto_lake.config import collector_id, load


@pytest.mark.parametrize("spelling", ["tables/", "./tables", "tables//", "x/../tables"])
def test_spellings_of_one_root_have_one_journal(spelling: str) -> None:
    assert load(root=spelling).journals == load(root="tables").journals
    assert load(root=spelling).root == "tables"


def test_an_address_of_an_object_store_stays_as_it_is() -> None:
    assert load(root="s3://bucket/lake/").root == "s3://bucket/lake"


def test_two_lakes_with_one_state_are_two_collectors(tmp_path: object) -> None:
    one, other = (load(root=root, state=str(tmp_path)) for root in ("one", "other"))
    assert collector_id(one) == collector_id(one) != collector_id(other)
    assert one.journals != other.journals


def test_a_name_that_was_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_COLLECTOR_ID", "mine")
    assert collector_id(load()) == "mine"
