"""Command lines that are not understood: one line, with what to write, and status 2."""

import pytest

from ssdistill.commands.main import main


@pytest.mark.parametrize(
    "words, said",
    [
        ("", "command: required; name one of run, reproduce, probe, embed, data, "),
        ("--nonsense", "command: required; name one of run, "),
        ("rn", "rn: no such command (did you mean 'run'?); known: run, reproduce, probe, "),
        ("nothing-like-it", "nothing-like-it: no such command; known: run, "),
        ("data", "subcommand: required; name one of check, pack"),
        ("data chek x", "chek: no such subcommand (did you mean 'check'?); known: check, pack"),
        ("run", "config: required (a YAML file, or the name of a packaged config); see `ssdistill "
                "run --help`"),
        ("restore", "artifact: required (folder of the compressed model); see `ssdistill restore "),
        ("run x --nonsense", "--nonsense: no such option of `ssdistill run`; see `ssdistill run "),
        ("run x --runz r", "--runz: no such option (did you mean '--runs'?)"),
        ("data check x --jsn y", "--jsn: no such option of `ssdistill data check` (did you mean "
                                 "'--json'?)"),
        ("data pack x --to y --vrify", "--vrify: no such option of `ssdistill data pack` (did you "
                                       "mean '--verify'?)"),
        ("run x --runs r word", "'word': one word too many; see `ssdistill run --help`"),
        ("list a b c d", "'c' (and 1 more): one word too many; see `ssdistill list --help`"),
        ("report name=x", "'name=x': one word too many; see `ssdistill report --help`"),
        ("data pack x", "--to: required; write --to FOLDER"),
        ("data pack x --to", "--to: expected one value; write --to FOLDER"),
        ("probe --mean 1 2", "--mean: expected 3 values; write --mean R G B"),
        ("probe --mean a b c", "--mean a: expected a number; write --mean R G B"),
        ("probe --m pca", "--m: begins several options (--margin, --mean, --map, --markdown); "
                          "write one in full"),
        ("probe --precision fp16", "--precision fp16: unknown; use fp32 or bf16"),
        ("benchmark --steps x", "--steps x: expected a whole number; write --steps STEPS"),
        ("run x --dry-run=3", "--dry-run: takes no value; write --dry-run alone"),
        ("data check x --cosine 2", "--cosine: 2 is not a similarity between 0 and 1; see "
                                    "`ssdistill data check --help`"),
        ("run quickstart {bad", "'{bad': invalid JSON (Expecting property name"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_one_line_with_what_to_write(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert ";" in line or "did you mean" in line


def test_a_word_of_any_length_is_one_short_line(capsys):
    for words in (["run", "x", f"--{'y' * 10_000}"], ["z" * 10_000], ["report", "w\n" * 5000]):
        with pytest.raises(SystemExit):
            main(words)
        (line,) = capsys.readouterr().err.splitlines()
        assert len(line) < 250
