"""Try to break ssdistill: mutated configs, wrong inputs, damaged runs folders, kills.

    python experiments/robustness/campaign.py --out experiments/robustness/records.jsonl

One process imports everything and forks a child for each case. A case is a family, a number and a
seed, and nothing else: ``--family configs --only 4711`` repeats one. What a family finds is
made smaller where it can be, printed, and written to the record.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import damages
import mutations
import tiny
import wrong_inputs
from forked import Outcome, copy_tree, quiet_cli, run_batch, run_case
from shared import import_everything, share_exports

COUNTS = {"configs": 10_000, "inputs": 500, "runs": 300, "kills": 100}
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BATCH = 100
"""Configs that one child loads."""
MUTANT = ".mutant-"
PLANNED_OF = 10
"""One config of so many is planned, if it loads; those of the quickstart always."""
PROGRESS = 50
"""Cases between two lines that say how far it is."""
LOAD_SECONDS, PLAN_SECONDS, RUN_SECONDS = 20, 120, 300
SCRATCH = "/dev/shm" if os.path.isdir("/dev/shm") and "TMPDIR" not in os.environ else None
"""In memory, where fsync waits for no disk."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

Case = tuple[str, Outcome]
"""What was tried, in words, and how it ended."""


def try_configs(numbers: range, seed: int, scratch: Path) -> Iterator[Case]:
    """Mutated configs are loaded; of those that can be, some are planned."""
    folder = scratch / "configs"
    if not folder.exists():
        # A mutant lies beside its original: most configs extend others by a relative path.
        shutil.copytree(CONFIGS, folder)
        tiny.write_experiment(scratch)

    def load(number: int) -> tuple[int, str]:
        return _load(_write_mutant(*_drawn(folder, number, seed)))

    for start in range(numbers.start, numbers.stop, BATCH):
        batch = range(start, min(start + BATCH, numbers.stop))
        for number, outcome in run_batch(load, batch, LOAD_SECONDS):
            file, drawn = _drawn(folder, number, seed)
            if outcome.status == 0 and _is_planned(file, number):
                outcome = _try_alone(file, drawn, plan=True)
            if outcome.verdict != "fine":
                drawn, outcome = _fewest(file, drawn, outcome)
            yield f"{file.relative_to(folder)} {drawn}", outcome


def _drawn(folder: Path, number: int, seed: int) -> tuple[Path, list[mutations.Mutation]]:
    files = [f for f in mutations.configs(folder) if not f.name.startswith(MUTANT)]
    return files[number % len(files)], mutations.draw(random.Random(f"configs {seed} {number}"))


def _is_planned(file: Path, number: int) -> bool:
    """Whether a config that loads is also tried as ``--dry-run``, which takes seconds."""
    return file.name == "quickstart.yaml" or number % PLANNED_OF == 0


def _write_mutant(file: Path, drawn: list[mutations.Mutation]) -> Path:
    config = file.with_name(f"{MUTANT}{os.getpid()}.yaml")
    config.write_bytes(mutations.mutate(file.read_text(), drawn))
    return config


def _load(config: Path) -> tuple[int, str]:
    from ssdistill.errors import UserError
    from ssdistill.experiment.reading import load_experiment

    try:
        load_experiment(config)
    except UserError as error:
        return 2, f"error: {error}"
    finally:
        config.unlink()
    return 0, ""


def _try_alone(file: Path, drawn: list[mutations.Mutation], plan: bool) -> Outcome:
    """One mutant in a child of its own; planned on a few images where its own are not at hand."""
    scratch = next(p for p in file.parents if p.name == "configs").parent
    config = _write_mutant(file, drawn)
    own = "kind: digits" in config.read_text("utf-8", "replace")
    data = [] if own else [f"data={{kind: npz, path: {scratch / 'data.npz'}}}"]
    words = ["run", str(config), "--dry-run", "--runs", str(scratch / "runs"), *data]

    def load() -> int:
        status, text = _load(config)
        print(text)
        return status

    try:
        return run_case((lambda: quiet_cli(words)) if plan else load, PLAN_SECONDS)
    finally:
        config.unlink(missing_ok=True)


def _fewest(
    file: Path, drawn: list[mutations.Mutation], outcome: Outcome
) -> tuple[list[mutations.Mutation], Outcome]:
    """Without the mutations that a failure does not need."""
    for mutation in list(drawn):
        fewer = [m for m in drawn if m != mutation]
        again = _try_alone(file, fewer, plan=True)
        if again.verdict == outcome.verdict:
            drawn, outcome = fewer, again
    return drawn, outcome


def try_input(number: int, seed: int, scratch: Path) -> Case:
    """A command line with something wrong in it."""
    rng = random.Random(f"inputs {seed} {number}")
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        config = tiny.write_experiment(folder)
        words = wrong_inputs.draw(config, folder, rng)
        outcome = run_case(lambda: quiet_cli(words), PLAN_SECONDS)
        return " ".join(words).replace(str(folder), "…")[:300], outcome
    finally:
        shutil.rmtree(folder)


def try_damage(number: int, seed: int, scratch: Path) -> Case:
    """After a damage the same command ends well, or says what to move; then it ends well."""
    rng = random.Random(f"runs {seed} {number}")
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        root = copy_tree(_finished(scratch), folder / "runs")
        config, expected = scratch / "tiny.yaml", tiny.results(root)
        file, way = damages.damage(root, rng)
        intact = tiny.contents(root / "stages")
        words = ["run", str(config), "--runs", str(root)]
        outcome = run_case(lambda: quiet_cli(words), RUN_SECONDS)
        if outcome.verdict == "fine" and outcome.status == 2:
            place = _follow_the_advice(outcome.text, root)
            again = run_case(lambda: quiet_cli(words), RUN_SECONDS)
            if again.verdict != "fine" or again.status != 0:
                wrong = again.verdict if again.verdict != "fine" else "wrong"
                outcome = replace(
                    again, verdict=wrong, text=f"{outcome.text}\nmoved {place}\n{again.text}"
                )
        outcome = _checked(outcome, root, expected, intact)
        return f"{file}: {way}", outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _finished(scratch: Path) -> Path:
    """A finished run of the tiny experiment, made once."""
    root = scratch / "finished"
    if not root.exists():
        config = tiny.write_experiment(scratch)
        outcome = run_case(
            lambda: quiet_cli(["run", str(config), "--runs", str(root)]), 2 * RUN_SECONDS
        )
        if outcome.status != 0:
            raise SystemExit(f"the tiny experiment does not run: {outcome}")
    return root


def _follow_the_advice(text: str, root: Path) -> str:
    """Move away what the message names, as it says."""
    line = next((line for line in text.splitlines() if line.startswith("error: ")), "")
    start = line.find(str(root))
    if start < 0:
        return "nothing: no path in the message"
    path = Path(line[start:].split(": ")[0].split("'")[0].split(" ")[0].rstrip(":;,)"))
    if path.parent.name == "model" or path.name == "model":
        path = path if path.name == "model" else path.parent
    stage = next((p for p in (path, *path.parents) if p.parent.parent.name == "stages"), path)
    # A checkpoint or a lock alone is what the message asks for.
    chosen = path if path.suffix in (".pt", ".lock") else stage
    chosen.rename(chosen.with_name(f"old-{chosen.name}"))
    return str(chosen)


def _checked(outcome: Outcome, root: Path, expected: dict, intact: set[str]) -> Outcome:
    """The results are those of the undamaged run, and nothing that was whole is gone."""
    if outcome.verdict != "fine":
        return outcome
    found = tiny.results(root)
    differing = [
        f"{model}/{name}: {value} became {found.get(model, {}).get(name)}"
        for model, metrics in expected.items()
        for name, value in metrics.items()
        if found.get(model, {}).get(name) != value
    ]
    lost = intact - tiny.contents(root)
    if differing:
        return replace(outcome, verdict="wrong", text=f"{differing[:5]}\n{outcome.text}")
    if lost:
        return replace(outcome, verdict="wrong", text=f"{len(lost)} files lost\n{outcome.text}")
    return outcome


def try_kill(number: int, seed: int, scratch: Path) -> Case:
    """Killed up to three times at any moment, a run ends at the weights of one never killed."""
    rng = random.Random(f"kills {seed} {number}")
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        expected, seconds = _uninterrupted(scratch)
        root = folder / "runs"
        words = ["run", str(scratch / "tiny.yaml"), *tiny.TRAINING, "--runs", str(root)]
        done = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            kill = rng.uniform(0.01, 0.98) * seconds, rng.choice(SIGNALS)
            outcome = run_case(lambda: quiet_cli(words), RUN_SECONDS, kill)
            if outcome.verdict == "fine" and outcome.status == 0:
                break  # what earlier kills had left to do was complete by then
            done.append(f"{kill[1].name} after {kill[0]:.2f} s")
            if outcome.verdict != "fine":
                return "; ".join(done), outcome
        outcome = run_case(lambda: quiet_cli(words), RUN_SECONDS)
        if outcome.verdict == "fine" and outcome.status != 0:
            outcome = replace(outcome, verdict="wrong")
        elif outcome.verdict == "fine" and tiny.weights(root) != expected:
            outcome = replace(outcome, verdict="wrong", text=f"other weights\n{outcome.text}")
        return "; ".join(done), outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _uninterrupted(scratch: Path) -> tuple[dict[str, str], float]:
    """Weights of a run that nothing interrupts, and the seconds it computes; made once."""
    root, kept = scratch / "uninterrupted", scratch / "uninterrupted.json"
    if not kept.exists():
        config = tiny.write_experiment(scratch)
        words = ["run", str(config), *tiny.TRAINING, "--runs", str(root)]
        outcome = run_case(lambda: quiet_cli(words), 2 * RUN_SECONDS)
        # The first run of all writes what later ones find: exports, and files in memory.
        again, took = [*words[:-1], str(scratch / "uninterrupted again")], scratch / "seconds"

        def timed() -> int:
            began = time.process_time()
            status = quiet_cli(again)
            took.write_text(str(time.process_time() - began))
            return status

        outcome = run_case(timed, 2 * RUN_SECONDS)
        if outcome.status != 0:
            raise SystemExit(f"the tiny experiment does not run: {outcome}")
        kept.write_text(json.dumps([tiny.weights(root), float(took.read_text())]))
    expected, seconds = json.loads(kept.read_text())
    return expected, seconds


FAMILIES: dict[str, Callable[[int, int, Path], Case]] = {
    "inputs": try_input,
    "runs": try_damage,
    "kills": try_kill,
}


def cases(family: str, numbers: range, seed: int, scratch: Path) -> Iterator[Case]:
    """The cases of a family, one after the other."""
    if family == "configs":
        yield from try_configs(numbers, seed, scratch)
    else:
        for number in numbers:
            yield FAMILIES[family](number, seed, scratch)


def campaign(
    family: str, numbers: range, seed: int, scratch: Path, seconds: float = float("inf")
) -> dict:
    """Every case of a family, or as many as ``seconds`` allow.

    Returns:
        counts by verdict and by exit status, and every failure.
    """
    import_everything()
    share_exports(scratch / "exports")
    began, counts, statuses, failures = time.monotonic(), Counter(), Counter(), []
    signals = Counter()
    for number, (words, outcome) in zip(
        numbers, cases(family, numbers, seed, scratch), strict=False
    ):
        counts[outcome.verdict] += 1
        statuses[str(outcome.status)] += 1
        if family == "kills":
            signals.update(word for word in words.split() if word.startswith("SIG"))
        if counts.total() % PROGRESS == 0:
            print(f"  {family}: {dict(counts)}, {time.monotonic() - began:.0f} s", flush=True)
        if outcome.verdict != "fine":
            failure = {"case": number, "tried": words, **asdict(outcome)}
            failure["text"] = outcome.text[-3000:]
            failures.append(failure)
            print(
                f"{family} {number}: {outcome.verdict}: {words}\n{outcome.text[-1500:]}\n",
                flush=True,
            )
        if time.monotonic() - began > seconds:
            break
    return {
        "family": family,
        "seed": seed,
        "first": numbers.start,
        "cases": counts.total(),
        "verdicts": dict(counts),
        "statuses": dict(statuses),
        **({"signals": dict(signals)} if signals else {}),
        "failures": failures,
        "seconds": round(time.monotonic() - began, 1),
    }


def machine() -> dict:
    """Commit, hardware and versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    packages = ("ssdistill", "torch", "timm", "numpy", "pydantic", "PyYAML")
    return {
        "commit": commit,
        "hardware": f"{os.cpu_count()} x {cpu}, {platform.system()}",
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=list(COUNTS), help="one of them (all)")
    parser.add_argument("--count", type=int, help="cases of each family")
    parser.add_argument("--share", type=float, default=1.0, help="of each family's cases (1.0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    parser.add_argument("--only", type=int, help="number of the one case to repeat")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="a family may take")
    parser.add_argument("--out", type=Path, help="append the record to this file")
    return parser.parse_args()


def main() -> int:
    """Run the campaign; 1 if anything failed."""
    options = _arguments()
    failed, facts = (
        0,
        machine(),
    )  # of the code that is about to run, whatever is committed meanwhile
    for family in [options.family] if options.family else list(COUNTS):
        first = options.first if options.only is None else options.only
        count = (
            1
            if options.only is not None
            else options.count or round(COUNTS[family] * options.share)
        )
        print(f"{family}: seed {options.seed}, cases {first} to {first + count - 1}", flush=True)
        with tempfile.TemporaryDirectory(prefix="robustness-", dir=SCRATCH) as scratch:
            numbers = range(first, first + count)
            result = campaign(family, numbers, options.seed, Path(scratch), options.seconds)
        print(f"{family}: {result['verdicts']} in {result['seconds']} s", flush=True)
        failed += len(result["failures"])
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(result | facts) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
