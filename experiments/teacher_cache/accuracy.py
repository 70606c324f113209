"""Accuracy of students after V recorded passes, V = 1, 2, 4, 8, 16, and of the live teacher's.

    python experiments/teacher_cache/accuracy.py [key=value …] [--views strong] [--out file.jsonl]

Runs accuracy.yaml, which takes hours on two cores, and makes a table of its records.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from ssdistill.chain.plan import evaluations_of
from ssdistill.chain.run import run
from ssdistill.chain.workspace import open_workspace
from ssdistill.experiment.reading import load_experiment

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import publish

CONFIG = Path(__file__).with_name("accuracy.yaml")
METRICS = {"linear, %": "probe/linear/top1", "k-NN, %": "probe/knn/top1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of accuracy.yaml")
    parser.add_argument("--views", choices=("weak", "strong"), default="weak")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    views = f"distill.views=[{args.views}, {args.views}]"
    experiment, _ = load_experiment(CONFIG, [views, *args.overrides])
    run(experiment, args.runs)
    workspace = open_workspace(experiment, args.runs)
    values = defaultdict(lambda: defaultdict(list))
    for seed in experiment.seeds:
        for role, stage in evaluations_of(workspace, seed).items():
            for column, metric in METRICS.items():
                values[role][column].append(stage.written(args.runs).metrics[metric])
    live = values["distilled"]
    rows = [row_of(role, values[role], live) for role in values if role in ("distilled", "teacher")]
    rows += [row_of(role, found, live) for role, found in values.items() if "views_" in role]
    distill = experiment.distill
    note = (
        f"{len(experiment.seeds)} seeds, ± is their standard deviation; differences are taken "
        f"within a seed; {distill.num_steps(len(workspace.train) // distill.batch_size)} steps of "
        f"{distill.batch_size} images, {len(workspace.train):,} images"
    )
    title = f"{args.views.capitalize()} views that repeat after V passes"
    publish(args.out, f"accuracy_{args.views}", title, note=note, rows=rows)


def row_of(role: str, found: dict[str, list[float]], live: dict[str, list[float]]) -> dict:
    """One row: values over seeds, and their differences to the live teacher's student."""
    names = {"distilled": "live", "teacher": "the teacher itself"}
    row = {"model": names.get(role, role.replace("views_", "V = "))}
    for column, values in found.items():
        row[column] = spread(values)
        if role.startswith("views_"):
            pairs = zip(values, live[column], strict=True)
            row[f"{column} - live"] = spread([a - b for a, b in pairs])
        else:
            row[f"{column} - live"] = "–"
    return row


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
