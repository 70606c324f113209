import math

import pytest
from scipy.stats import kendalltau

from ssdistill.report.charts.plots import label_free_side_by_side
from ssdistill.report.tables.models import results_table
from ssdistill.report.tables.rankings import kendall_tau, rankings_table


def record(model, rank, accuracy, seed=0, **more):
    metrics = {"collapse/effective_rank": rank, "collapse/std": 1.0, "probe/linear/top1": accuracy}
    return {"model": model, "seed": seed, "metrics": metrics | more}


RANKED = [record(name, i, 50 + i) for i, name in enumerate("abcde")]


def cells(table):
    return {row[0]: row[1] for row in table.rows}


def test_tau_is_scipys_and_signed():
    xs, ys = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]
    assert kendall_tau(xs, ys) == pytest.approx(kendalltau(xs, ys).statistic)
    assert kendall_tau(xs, [-x for x in xs]) == pytest.approx(-1)
    assert math.isnan(kendall_tau(xs, [1.0] * 4))


def test_a_metric_that_orders_models_as_the_probe_does_has_tau_one():
    assert cells(rankings_table(RANKED))["collapse/effective_rank"] == "+1.00 (10 of 10)"
    backwards = [record(name, -i, 50 + i) for i, name in enumerate("abcde")]
    assert cells(rankings_table(backwards))["collapse/effective_rank"] == "-1.00 (0 of 10)"


def test_pairs_within_their_spreads_are_not_held_against_a_metric():
    noisy = [record(n, -i, 50 + i, s) for i, n in enumerate("abcd") for s in (0, 1)]
    for number, line in enumerate(noisy):
        line["metrics"]["probe/linear/top1"] += 20 * (number % 2)
    assert cells(rankings_table(noisy))["collapse/effective_rank"] == "-1.00 (0 of 0)"


def test_untrained_encoders_and_pixels_are_no_method():
    extra = [record("untrained", 99, 10), record("pixels", 99, 10)]
    assert rankings_table(extra + RANKED).rows == rankings_table(RANKED).rows


def test_there_is_nothing_to_rank_in_a_distillation_or_among_few():
    assert rankings_table(RANKED[:3]) is None
    assert (
        rankings_table([record(n, i, i, **{"agree/cka": 0.5}) for i, n in enumerate("abcd")])
        is None
    )


def test_label_free_metrics_are_columns_where_nothing_is_meant_to_agree():
    assert "effective rank" in results_table(RANKED).header
    agreeing = [record(n, i, i, **{"agree/cka": 0.5}) for i, n in enumerate("abcd")]
    header = results_table(agreeing).header
    assert "CKA with teacher" in header and "effective rank" not in header


def test_a_chart_holds_the_curves_of_all_that_have_the_metric():
    lines = {
        "simclr": [{"step": s, "collapse/std": 0.5, "collapse/alignment": 0.1} for s in (0, 10)],
        "moco": [{"step": 0, "collapse/std": 0.4}, {"step": 10, "loss/total": 1.0}],
    }
    charts = {chart.title: chart for chart in label_free_side_by_side(lines)}
    assert list(charts) == ["Embedding std", "Alignment of two views"]
    spread = {series.label: series.points for series in charts["Embedding std"].series}
    assert spread == {"simclr": ((0, 0.5), (10, 0.5)), "moco": ((0, 0.4),)}
    assert [s.label for s in charts["Alignment of two views"].series] == ["simclr"]
