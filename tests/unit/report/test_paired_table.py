from ssdistill.report.tables.paired import PAIRED, paired_table


def paired_with(reference, protocol, difference, verdict, p=0.2):
    reach = {"low": difference - 1, "high": difference + 1, "p_value": p, "margin": 1.0}
    return {"reference": reference, "protocol": protocol, "difference": difference} | {
        "verdict": verdict,
        **reach,
    }


def record(model, seed, *tests):
    return {"model": model, "seed": seed, "metrics": {}, PAIRED: list(tests)}


def test_a_model_is_held_against_the_last_of_its_references_by_the_first_protocol():
    table = paired_table(
        [
            {"model": "teacher", "seed": 0, "metrics": {}},
            record(
                "int8",
                0,
                paired_with("teacher", "linear", -9, "worse"),
                paired_with("distilled", "knn", -5, "worse"),
                paired_with("distilled", "linear", 0.5, "equivalent"),
            ),
        ]
    )
    assert [row[:3] for row in table.rows] == [("int8", "distilled", "linear")]
    assert table.rows[0][3:] == ("+0.50 (-0.50 to +1.50)", "0.200", "equivalent")


def test_seeds_are_averaged_and_disagreement_is_counted():
    table = paired_table(
        [
            record("int8", 0, paired_with("teacher", "knn", -1, "worse", 0.0004)),
            record("int8", 1, paired_with("teacher", "knn", -3, "worse", 0.03)),
            record("int8", 2, paired_with("teacher", "knn", 1, "undecided", 0.6)),
        ]
    )
    expected = ("int8", "teacher", "k-NN", "-1.00 (-4.00 to +2.00)", "0.600")
    assert table.rows[0][:5] == expected
    assert table.rows[0][5] == "worse (2), undecided (1)"


def test_without_paired_tests_there_is_no_table():
    assert paired_table([{"model": "teacher", "metrics": {}}]) is None


def test_the_caption_explains_every_column_and_verdict():
    table = paired_table([record("int8", 0, paired_with("teacher", "knn", -1, "worse"))])
    for word in ("Difference: ", "percentage points", "p: exact McNemar test", "equivalent if",
                 "within ± 1 points", "better or worse if p < 0.05", "undecided"):  # fmt: skip
        assert word in table.caption
