"""Run the code blocks of documents as a reader would, in one fresh process.

``python document_runner.py`` works in the current folder, which becomes a reader's: a tiny run of
the quickstart in ``runs/``, and its models under the names that the documents use. A name with
``…`` stands for the folder that begins and ends so. Each block has its own variables.
"""

import linecache
import re
import shlex
import sys
import traceback
from pathlib import Path

from document_blocks import Block, alternatives, blocks, commands, config_of, documents

from ssdistill.chain.run import dry_run
from ssdistill.commands import main as cli
from ssdistill.experiment.reading import load_experiment

TINY = shlex.split(
    "pretrain.steps=2 distill.steps=2 control=null evaluate.pixels=false "
    "tracking.wandb=disabled evaluate.knn=null evaluate.low_shot=null "
    "device.precision=fp32 device.memory_format=contiguous pretrain.batch_size=64 "
    "distill.batch_size=64 'compress=[{kind: quantize, calibration_images: 32}]'"
)
"""What every run of the quickstart is given before its own settings: it takes minutes by itself,
and its models are of the same kinds after two steps."""
NAMES = {"student": "distill-*", "teacher": "pretrain-*", "student_int8": "compress-*"}


def main() -> int:
    """Run every block that needs nothing; returns how many failed."""
    _command(["ssdistill", "run", "quickstart"])
    for name, pattern in NAMES.items():
        Path(name).symlink_to(next(Path("runs/stages").glob(pattern)) / "s0")
    failed = 0
    for file in documents():
        for block in blocks(file.read_text(), file.name):
            if block.runs:
                failed += not _succeeds(block)
    return failed


def _succeeds(block: Block) -> bool:
    print(f"ran {block} ({block.language})", flush=True)
    try:
        _run(block)
    except BaseException:
        print(f"{block} failed:\n{traceback.format_exc()}", file=sys.stderr)
        return False
    return True


def _run(block: Block) -> None:
    if block.language == "sh":
        for words in commands(_filled(block.code)):
            _command(words)
    elif block.language == "python":
        code = _filled(block.code)
        # Networks and kinds are known by their source, which Python then finds here.
        linecache.cache[str(block)] = len(code), None, code.splitlines(keepends=True), str(block)
        exec(compile(code, str(block), "exec"), {"__name__": "block"})
    else:
        for text in alternatives(block.code):
            experiment, _ = load_experiment(config_of(text, block.over))
            # What a sweep runs are its points, each an experiment like this one.
            dry_run(experiment.model_copy(update={"sweep": None}), Path("runs"))


def _command(words: list[str]) -> None:
    assert words[0] == "ssdistill", f"only ssdistill can be run here, not '{words[0]}'"
    settings = TINY if words[1:3] == ["run", "quickstart"] else []
    status = cli.main([*words[1:3], *settings, *words[3:]])
    assert status == 0, f"{shlex.join(words)} ended with status {status}"


def _filled(code: str) -> str:
    """``runs/stages/compress-…/s0`` as the folder that there is."""

    def folder(match: re.Match[str]) -> str:
        return next(str(path) for path in Path().glob(match[0].replace("…", "*")))

    return re.sub(r"[\w./-]*…[\w./-]*", folder, code)


if __name__ == "__main__":
    sys.exit(main())
