"""Opening recorded outputs: filled once, verified, compared, refused with a reason."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssdistill.commands.listing import listings
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.data.view_plan import ViewPlan
from ssdistill.distill.cache import parts as parts_module
from ssdistill.distill.cache.filling import LiveOutputs
from ssdistill.distill.cache.key import KEY
from ssdistill.distill.cache.opening import open_outputs
from ssdistill.distill.cache.parts import OUTPUTS
from ssdistill.errors import UserError
from ssdistill.models.encode import encode_views

COUNT = 24


@pytest.fixture
def store(make_store):
    return make_store(COUNT)


@pytest.fixture
def live(make_encoder, store, monkeypatch):
    monkeypatch.setattr(parts_module, "ROWS", 10)
    teacher = make_encoder(0).requires_grad_(False).eval()
    plan = ViewPlan((RECIPES["strong"], RECIPES["weak"]), 5, 16, passes=2, chosen=(1,))
    return LiveOutputs("big", teacher, (1,), Loader(store, 8, 3, 10), plan, batch_size=8)


class Calls:
    """Counts the images that a teacher encodes."""

    def __init__(self, teacher):
        self.images = 0
        teacher.register_forward_pre_hook(self)

    def __call__(self, module, inputs):
        self.images += len(inputs[0])


def opened(root, live, store, said=None, precision="fp32"):
    say = (lambda line: None) if said is None else said.append
    return open_outputs(root, live, store, precision, say)


def test_every_row_is_the_output_for_the_view_of_its_image_and_pass(runs, live, store):
    outputs = opened(runs, live, store)
    for epoch in range(5):
        rows_B = np.array([3, 20, 11])
        batch = live.loader.batch_of(rows_B, epoch % 2, live.plan)
        (view,) = live.plan.views(batch)
        with torch.no_grad():
            wanted = encode_views(live.teacher, {1: view})[1].embedding_BD
        row_BW = torch.from_numpy(outputs.rows_of(rows_B, epoch))
        found = outputs.layout.unpack(row_BW)[1].embedding_BD
        assert torch.allclose(found, wanted, rtol=2e-3, atol=1e-6)


def test_a_second_opening_encodes_only_what_it_compares(runs, live, store):
    said, calls = [], Calls(live.teacher)
    assert opened(runs, live, store, said).recorded
    assert calls.images == 2 * 8 + 2 * COUNT and len(said) == 1
    calls.images = 0
    assert not opened(runs, live, store, said).recorded
    assert calls.images == 2 * 8 and len(said) == 1


def test_a_damaged_part_is_said_and_recorded_again(runs, live, store):
    whole = opened(runs, live, store).parts
    before = (whole.folder / OUTPUTS).read_bytes()
    content = bytearray(before)
    content[2 * whole.width * 12] ^= 4
    (whole.folder / OUTPUTS).write_bytes(content)
    said, calls = [], Calls(live.teacher)
    opened(runs, live, store, said)
    assert "1 of 6 parts damaged (checksum mismatch; first: images 10 to 19 of pass 0)" in said[0]
    assert "83% are there" in said[1] and calls.images == 2 * 8 + 10
    assert (whole.folder / OUTPUTS).read_bytes() == before


def test_rows_of_another_network_are_refused_in_one_line(runs, live, store):
    parts = opened(runs, live, store).parts
    with torch.no_grad():  # as if the code of views or networks had changed
        for part in range(len(parts)):
            _, start, end = parts.place(part)
            noise = np.random.default_rng(part).normal(size=(end - start, parts.width))
            parts.write(part, noise.astype(np.float16).view(np.int16))
    with pytest.raises(UserError, match=r"not those of the teacher.*remove the folder") as refusal:
        opened(runs, live, store)
    assert "\n" not in str(refusal.value) and str(parts.folder) in str(refusal.value)


def test_rows_of_another_view_are_refused(runs, live, store):
    parts = opened(runs, live, store).parts
    rows = np.array(parts.rows()).view(np.int16)
    for part in range(len(parts)):
        number, start, end = parts.place(part)
        other = (1 - number) * COUNT
        parts.write(part, rows[other + start : other + end])
    with pytest.raises(UserError, match="recorded outputs are not those of the teacher"):
        opened(runs, live, store)


CHANGES = {
    "seed": (lambda live: replace(live, plan=replace(live.plan, seed=6)), "seed 5 there, 6 here"),
    "recipe": (
        lambda live: replace(
            live, plan=replace(live.plan, recipes=(RECIPES["strong"], RECIPES["strong"]))
        ),
        "other views",
    ),
    "size": (lambda live: replace(live, plan=replace(live.plan, size=12)), "other views"),
    "number of views": (
        lambda live: replace(live, views=(0, 1), plan=replace(live.plan, chosen=(0, 1))),
        "other outputs; number of views 1 there, 2 here; other views",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_key_is_another_folder_and_says_what_differs(runs, live, store, change):
    first = opened(runs, live, store).parts.folder
    changed, wanted = CHANGES[change]
    said = []
    assert opened(runs, changed(live), store, said).parts.folder != first
    assert said[0] == f"  {first}: of the same teacher, not used: {wanted}"


def test_images_precision_and_maps_are_part_of_the_key(runs, live, store, make_store):
    first, said = opened(runs, live, store).parts.folder, []
    opened(runs, live, make_store(COUNT, fingerprint="e" * 64), said)
    assert said[0].endswith("not used: data fffffffffff… there, eeeeeeeeeee… here")
    said.clear()
    assert opened(runs, live, store, said, "bf16").parts.folder != first
    assert any("precision fp32 there, bf16 here" in line for line in said)
    said.clear()
    live.teacher.set_taps(("layer2",))
    assert opened(runs, live, store, said).parts.folder != first
    assert any("other outputs" in line for line in said)


def test_of_several_the_most_similar_is_named(runs, live, store):
    opened(runs, replace(live, plan=replace(live.plan, seed=6, size=12)), store)
    near = opened(runs, replace(live, plan=replace(live.plan, seed=6)), store).parts.folder
    said = []
    opened(runs, live, store, said)
    assert said[0] == f"  {near}: of the same teacher, not used: seed 6 there, 5 here"
    assert not any("not used" in line for line in said[1:])


def test_other_weights_are_another_teacher(runs, live, store, make_encoder):
    first, said = opened(runs, live, store).parts.folder, []
    other = replace(live, teacher=make_encoder(1).requires_grad_(False).eval())
    assert opened(runs, other, store, said).parts.folder != first
    assert not any("not used" in line for line in said)


@pytest.mark.parametrize("key", ["", "[]", "{", "[" * 100_000, '{"teacher": []}', "\0"])
def test_a_damaged_key_is_no_cache_of_ours(runs, live, store, key):
    folder = opened(runs, live, store).parts.folder
    (folder / KEY).write_text(key)
    with pytest.raises(UserError, match="recorded for another key; remove the folder"):
        opened(runs, live, store)
    said = []
    opened(runs, replace(live, plan=replace(live.plan, seed=6)), store, said)
    assert not any("not used" in line for line in said)


def test_a_teacher_in_training_mode_is_refused(runs, live, store):
    live.teacher.net.bn1.train()
    with pytest.raises(UserError, match=r"'big' is in training mode \('net.bn1'\).*call eval"):
        opened(runs, live, store)
    assert not (runs / "teacher_outputs").exists()


def test_a_teacher_that_learns_is_refused(runs, live, store):
    live.teacher.net.bn1.weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"'big' learns \('net.bn1.weight'.*cache=null"):
        opened(runs, live, store)


def test_outputs_beyond_float16_are_refused_before_anything_is_written(runs, live, store):
    with torch.no_grad():
        last = [m for m in live.teacher.net.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
        last.weight.fill_(1e6)
    with pytest.raises(UserError, match=r"teacher 'big' gives .* beyond float16 \(65504\)"):
        opened(runs, live, store)
    assert not (runs / "teacher_outputs").exists()


def test_one_image_is_enough(runs, live, make_store):
    store = make_store(1)
    plan = replace(live.plan, passes=1)
    single = replace(live, loader=Loader(store, 1, 3, 10), plan=plan)
    assert opened(runs, single, store).parts.num_images == 1


@pytest.mark.parametrize(("passes", "batch_size"), [(1, 8), (1, 3), (2, 1), (5, 100)])
def test_batches_of_any_size_make_the_same_rows(runs, live, store, passes, batch_size):
    plan = replace(live.plan, passes=passes)
    rows = opened(runs, replace(live, plan=plan, batch_size=batch_size), store).parts.rows()
    assert len(rows) == passes * COUNT
    other = opened(runs / "b", replace(live, plan=plan, batch_size=7), store).parts.rows()
    assert np.allclose(rows, other, rtol=2e-3, atol=1e-4)


def test_views_need_not_be_square(runs, live, store):
    wide = replace(live, plan=replace(live.plan, size=(12, 16)))
    assert opened(runs, wide, store).recorded and not opened(runs, wide, store).recorded


def test_a_plan_without_passes_cannot_be_recorded(runs, live, store):
    with pytest.raises(ValueError, match="passes"):
        opened(runs, replace(live, plan=replace(live.plan, passes=None)), store)


def test_the_listing_says_what_can_be_recorded():
    cells = {}
    for table in listings("losses"):
        column = [c.header for c in table.columns].index("recorded")
        kinds, answers = (list(table.columns[i].cells) for i in (0, column))
        cells |= {str(kind): str(answer) for kind, answer in zip(kinds, answers, strict=True)}
    assert cells["simreg"] == "yes" and cells["fitnet"] == "small maps" and cells["bingo"] == "no"
    assert cells["attndistill"] == "small maps" and cells["sskd"] == "yes"
    assert set(cells.values()) == {"yes", "small maps", "no"}
