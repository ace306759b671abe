"""What `/metrics` promises to those who built dashboards on it."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from crypto_lake.monitoring import metrics

OURS = {name: metric for name, metric in vars(metrics).items() if isinstance(metric, MetricWrapperBase)}


def test_the_page_can_be_read_and_every_name_is_ours_and_explained() -> None:
    families = list(text_string_to_metric_families(generate_latest(metrics.REGISTRY).decode()))
    assert len(families) >= len(OURS)
    for family in families:
        assert family.name.startswith("crypto_lake_")
        assert family.documentation


@pytest.mark.parametrize("name", OURS)
def test_a_metric_is_called_in_the_code_as_on_the_page(name: str) -> None:
    (described,) = OURS[name].describe()
    assert f"crypto_lake_{name.removesuffix('_total')}" == described.name
    assert name.endswith("_total") == (described.type == "counter")


@pytest.mark.parametrize("name", OURS)
def test_a_metric_says_its_unit(name: str) -> None:
    (described,) = OURS[name].describe()
    assert described.documentation.endswith(")") or "1 while" in described.documentation
