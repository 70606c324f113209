import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from ssdistill.chain.run import _wandb_config
from ssdistill.errors import UserError
from ssdistill.experiment.overrides import nearest_option, plain_overrides
from ssdistill.experiment.reading import load_experiment

OPTIONS = {"--runs": True, "--publish": True, "--dry-run": False, "--help": False}


@pytest.mark.parametrize(
    "words, expected",
    [
        (["run", "x", "a.b=1"], ["run", "x", "a.b=1"]),
        (["--a.b=1", "--seeds=[0, 1]"], ["a.b=1", "seeds=[0, 1]"]),
        (["--a.b", "1", "--name", "x", "c=2"], ["a.b=1", "name=x", "c=2"]),
        (["--a.b", "-1"], ["a.b=-1"]),
        (["--a.flag", "--b.c=1"], ["a.flag=true", "b.c=1"]),
        (["--a.flag", "b.c=1"], ["a.flag=true", "b.c=1"]),
        (["--a.flag"], ["a.flag=true"]),
        (["+a.b=1", "++c=x=y"], ["a.b=1", "c=x=y"]),
        (["--a.b=x=y", "--a.c="], ["a.b=x=y", "a.c="]),
        (['{"a.b": 1e-05, "c": "1", "d": [null, true]}'], ["a.b=1e-05", 'c="1"', "d=[null, true]"]),
        (["--a.b=None", "c=None", "d=[None, 'x']"], ["a.b=null", "c=null", 'd=[null, "x"]']),
        (["a=Nonesuch", "b={None: 1, x}"], ["a=Nonesuch", "b={None: 1, x}"]),
        (["--runs", "a=b", "--a.b=1"], ["--runs", "a=b", "a.b=1"]),
        (["--a.b=1", "x", "a.b=2", "--runs", "r"], ["x", "--runs", "r", "a.b=1", "a.b=2"]),
        (["--runs=r", "--dry-run", "x", "--publish"], ["--runs=r", "--dry-run", "x", "--publish"]),
        (["--pub", "p", "--dry"], ["--pub", "p", "--dry"]),
        (["--nonsense", "--no-such=1", "-x"], ["--nonsense", "--no-such=1", "-x"]),
        (["a.b=1", "--", "--c=1"], ["a.b=1", "--", "--c=1"]),
    ],
)
def test_every_spelling_of_a_setting_is_key_and_value(words, expected):
    assert plain_overrides(words, OPTIONS) == expected


def test_damaged_json_is_one_line():
    with pytest.raises(UserError, match=r"invalid JSON .*write key=value"):
        plain_overrides(['{"a": '], OPTIONS)


SWEPT = {
    "distill.losses.feature.weight": 0.5,
    "distill.optim.lr": 1e-05,
    "device.compile": True,
    "tracking.agreement": False,
    "distill.mix": None,
    "seeds": [3, 4],
    "profile": "smoke",
}
FORMS = ("args", "args_no_equals", "args_no_hyphens", "args_json", "args_append_hydra")


@pytest.mark.parametrize("form", [*FORMS, "args_override_hydra"])
def test_what_an_agent_writes_is_what_the_sweep_says(form):
    words = create_sweep_command_args({"args": {k: {"value": v} for k, v in SWEPT.items()}})[form]
    experiment, notices = load_experiment("quickstart", words)
    assert notices == []
    distill = experiment.distill
    assert next(iter(distill.losses)) == "feature" and distill.losses["feature"].weight == 0.5
    assert (distill.optim.lr, distill.mix) == (1e-05, None)
    assert (experiment.device.compile, experiment.tracking.agreement) == (True, False)
    assert (experiment.seeds, experiment.profile) == ((3, 4), "smoke")


def test_an_agent_that_leaves_out_false_writes_true_as_a_flag():
    args = {"device.compile": {"value": True}, "distill.steps": {"value": 7}}
    words = create_sweep_command_args({"args": args})["args_no_boolean_flags"]
    assert "--device.compile" in words
    experiment, _ = load_experiment("quickstart", words)
    assert experiment.device.compile and experiment.distill.steps == 7


@pytest.mark.parametrize(
    "word",
    ["--runz", "--runz=/x", "--run_s=x", "--runs-dir=/x", "--dry_run", "--dryrun=1", "--publsh=x"],
)
def test_a_misspelt_option_is_no_setting(word):
    with pytest.raises(UserError, match=r"no such option \(did you mean '--(runs|dry-run|publish)"):
        plain_overrides([word, "/tmp/x"], OPTIONS)


def test_an_option_without_its_hyphens_is_no_setting():
    with pytest.raises(UserError, match=r"^runs=/x: no such setting \(did you mean '--runs'\?\)"):
        plain_overrides(["runs=/x"], OPTIONS)


@pytest.mark.parametrize("word", ["--name=x", "--plans={}", "--runs.x=1", "--sweep_id=3"])
def test_what_is_a_section_or_unlike_any_option_stays_a_setting(word):
    # plans is like --plan, and a section.
    assert plain_overrides([word], OPTIONS | {"--plan": False}) == [word[2:]]


@pytest.mark.parametrize("form", [*FORMS, "args_override_hydra"])
def test_an_agent_starts_a_preempted_run_once_more(form):
    # It then writes the whole config that W&B holds, its own notes included.
    first, _ = load_experiment("quickstart", ["distill.optim.lr=1e-05", "data.kind=digits"])
    held = {
        "_wandb": {"cli_version": "0.13.3", "t": {"1": [1, None, True]}},
        **_wandb_config(first),
    }
    assert {"teacher_settings", "student_settings", "experiment", "losses"} <= held.keys()
    words = create_sweep_command_args({"args": {k: {"value": v} for k, v in held.items()}})[form]
    again, _ = load_experiment("quickstart", words)
    assert again == first


def test_outside_of_a_sweep_a_column_is_no_setting():
    with pytest.raises(UserError, match="experiment: no such setting"):
        load_experiment("quickstart", ["experiment=x"])


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("runz", " (did you mean '--runs'?)"),
        ("--runz", " (did you mean '--runs'?)"),
        ("--runz=x/--dry-run", " (did you mean '--runs'?)"),
        ("--dry_run", " (did you mean '--dry-run'?)"),
        ("--nothing-like-it", ""),
        ("-r", ""),
    ],
)
def test_the_nearest_option_is_found_whatever_hyphens_a_word_has(word, hint):
    assert nearest_option(word, ["-r", "--runs", "--dry-run"]) == hint
