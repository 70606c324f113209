"""Columns of the results table: metrics and their headings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """A metric as a column.

    ``scale`` writes a number of this metric: ``plain``, ``count``, ``bytes``, or ``times`` for
    a ratio, whose interval is read from ``<metric>_low`` and ``<metric>_high``.
    """

    metric: str
    header: str
    scale: str = "plain"
    decimals: int = 2


COST_COLUMNS = (
    Column("compress/params", "parameters", "count"),
    Column("compress/macs", "MACs", "count"),
    Column("compress/bytes", "size", "bytes"),
    Column("compress/latency_ms", "latency (ms)", decimals=3),
    Column("compress/smaller", "smaller", "times"),
    Column("compress/speedup", "speed-up", "times"),
    Column("compress/speedup_batch64", "speed-up, batch 64", "times"),
    Column("compress/runtime_gain", "speed-up over PyTorch", "times"),
    Column("compress/memory", "peak memory", "bytes"),
)
COSTS_SHOWN_FIRST = ("compress/bytes", "compress/latency_ms", "compress/speedup")
"""Costs that stand beside the accuracy where a terminal is too narrow for all columns."""
AGREEMENT_COLUMNS = (Column("agree/cka", "CKA with teacher", decimals=3),)
LABEL_FREE_COLUMNS = (
    Column("collapse/effective_rank", "effective rank", decimals=1),
    Column("collapse/std", "std", decimals=3),
    Column("collapse/alignment", "alignment", decimals=3),
    Column("collapse/uniformity", "uniformity"),
    Column("train/steps", "steps", decimals=0),
)
"""In the place of agreement and costs, where encoders were pretrained and none was distilled."""

PROBE = "probe/"
FIRST = ("linear", "knn", "low_shot")
"""Protocols with a column of their own; of others there is a table (see ``protocols_table``)."""
MEASURES = {
    "top1": "top-1 (%)",
    "map": "mAP (%)",
    "recall_at_1": "recall@1 (%)",
    "nmi": "NMI (%)",
    "purity": "purity (%)",
}
"""What is shown of a protocol, with the words for it."""
WORDS = {"knn": "k-NN", "sgd": "SGD", "low": "low-shot", "shot": "", "1pct": "1 %", "10pct": "10 %"}


def columns_for(records: Sequence[dict[str, Any]]) -> tuple[Column, ...]:
    """Columns that these records have values for."""
    shown = shown_measures(records)
    probes = [
        Column(f"{PROBE}{name}/{measure}", f"{protocol_words(name)} {MEASURES[measure]}")
        for name, measure in [pair for pair in shown if pair[0] in FIRST] or shown
    ]
    agreed = any("agree/cka" in record.get("metrics", record) for record in records)
    if agreed or not any("collapse/std" in record.get("metrics", {}) for record in records):
        return (*probes, *AGREEMENT_COLUMNS, *COST_COLUMNS)
    return (*probes, *LABEL_FREE_COLUMNS)


def shown_measures(records: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Every (protocol, measure) that is shown, those of :data:`FIRST` before the others."""
    names = dict.fromkeys(name for r in records for name in {**r, **r.get("metrics", {})})
    parts = [name.split("/") for name in names if name.startswith(PROBE)]
    shown = [(p[1], p[2]) for p in parts if len(p) == 3 and p[2] in MEASURES]
    order = {name: position for position, name in enumerate(FIRST)}
    return sorted(shown, key=lambda pair: (order.get(pair[0], len(order)), pair))


def protocol_words(protocol: str) -> str:
    """A protocol's name in a table: ``low_shot_10pct`` as ``low-shot 10 %``."""
    return " ".join(filter(None, (WORDS.get(word, word) for word in protocol.split("_"))))
