"""Write the table of the record into the README.

python experiments/robustness/table.py
"""

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
BEGIN, END = "<!-- table of records.jsonl -->", "<!-- end of the table -->"


def table(records: list[dict]) -> str:
    """One row per line of the record."""
    rows = [
        "| family | seed | cases | fine | exit statuses | not fine | minutes | commit |",
        "| :--- | ---: | ---: | ---: | :--- | :--- | ---: | :--- |",
    ]
    for record in records:
        verdicts = dict(record["verdicts"])
        fine = verdicts.pop("fine", 0)
        numbers = record["first"], record["first"] + record["cases"] - 1
        cells = (
            f"`{record['family']}`",
            f"{record['seed']}",
            f"{record['cases']:,} ({numbers[0]}–{numbers[1]})",
            f"{fine:,}",
            _counted(record["statuses"]) + _signals(record),
            _counted(verdicts) or "none",
            f"{record['seconds'] / 60:.0f}",
            f"`{record['commit']}`",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _counted(counts: dict[str, int]) -> str:
    words = {"None": "by signal"}
    return ", ".join(f"{words.get(name, name)}: {n:,}" for name, n in sorted(counts.items()))


def _signals(record: dict) -> str:
    return f"; sent: {_counted(record['signals'])}" if record.get("signals") else ""


def with_table(readme: str, records: str) -> str:
    """The README with the table of ``records``, lines of JSON, in its place."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [json.loads(line) for line in records.splitlines()]
    return f"{before}{BEGIN}\n{table(lines)}\n{END}{after}"


if __name__ == "__main__":
    path = FOLDER / "README.md"
    path.write_text(with_table(path.read_text(), (FOLDER / "records.jsonl").read_text()))
