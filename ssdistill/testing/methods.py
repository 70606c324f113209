"""Checks of pretraining methods, on the first tiny network that they can train."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssdistill.artifacts.artifact import load_encoder, save_encoder
from ssdistill.data.batch import Batch
from ssdistill.data.recipes import RECIPES
from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.models.representation import Representation
from ssdistill.pretrain import Method
from ssdistill.testing.candidate import (
    DESCRIBED,
    Candidate,
    Check,
    demand,
    demand_close,
    demand_finite,
    names_its_origin,
)
from ssdistill.testing.distillations import (
    MICROBATCH,
    demand_equal_but_for_rounding,
    gradients_of,
)
from ssdistill.testing.float16 import LARGE, ORDINARY, SMALL_SCALE
from ssdistill.testing.losses import BATCH, CUT_BATCH, PARTS, fixed_statistics, state_of
from ssdistill.testing.tiny_networks import tiny_cnn, tiny_transformer
from ssdistill.train.passes import part_of

STEPS, SIDE, SMALLER = 10, 16, 12
MOST_FROZEN = 2
"""Parameters of the encoder that a method may keep as they are: those of a patch embedding."""


def make_method(
    candidate: Candidate,
    seed: int = 0,
    networks: Sequence[Callable[[int], Encoder]] = (tiny_cnn, tiny_transformer),
) -> Any:
    """The method on the first of the networks that it can train."""
    reason: UserError | None = None
    for network in networks:
        encoder = network(seed)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # timm starts residual branches at zero
        torch.manual_seed(seed)
        try:
            return candidate.build(encoder, changes={"steps": STEPS}).train()
        except UserError as error:
            reason = error
    raise AssertionError(f"it trains neither a ResNet nor a transformer: {reason}")


def _on_a_transformer(candidate: Candidate) -> Any:
    return make_method(candidate, networks=(tiny_transformer, tiny_cnn))


def make_method_batch(step: int = 0, count: int = BATCH) -> Batch:
    """The batch that views were made of."""
    images = torch.zeros(count, SIDE, SIDE, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count), 0, step, STEPS)


def make_views(method: Method, step: int = 0, sizes: Sequence[int] | None = None) -> list[Tensor]:
    """Random images, other ones in every step."""
    generator = torch.Generator().manual_seed(step)
    sizes = sizes or [SIDE] * len(method.recipes)
    return [torch.rand(BATCH, 3, size, size, generator=generator) for size in sizes]


def weighted_sum(method: Method, losses: dict[str, Tensor], step: int = 0) -> Tensor:
    """The total that is minimized."""
    weights = method.weights_at(step, STEPS)
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def train_method(method: Method, steps: int, start: int = 0) -> list[float]:
    """Train for some steps; return the total of each."""
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    totals = []
    for step in range(start, start + steps):
        losses = method(make_views(method, step), make_method_batch(step))
        total = weighted_sum(method, losses, step)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step, STEPS)
        totals.append(total.item())
    return totals


def says_what_it_sees(candidate: Candidate) -> None:
    """Its citation, and recipes of views that exist."""
    names_its_origin(candidate)
    recipes = getattr(candidate.cls, "recipes", ())
    demand(recipes and not isinstance(recipes, str), "recipes must be a tuple of view recipes")
    unknown = set(recipes) - set(RECIPES)
    demand(not unknown, f"unknown recipes {', '.join(unknown)}; known: {', '.join(RECIPES)}")


def losses_are_finite_scalars(candidate: Candidate) -> None:
    """Every loss is one finite number of float32 and has a weight."""
    method = make_method(candidate)
    losses = method(make_views(method), make_method_batch())
    weights = method.weights_at(0, STEPS)
    same = losses.keys() == weights.keys()
    demand(same, f"losses {', '.join(losses)} have weights of {', '.join(weights)}")
    for name, loss in losses.items():
        demand(loss.shape == (), f"{name} has shape {tuple(loss.shape)}; return one number")
        demand(loss.dtype == torch.float32, f"{name} is {loss.dtype}; compute it in float32")
        demand(torch.isfinite(loss), f"{name} is {loss.item()}")


def every_trained_weight_gets_a_gradient(candidate: Candidate) -> None:
    """Every trained weight gets a gradient, no other one does, and the encoder is trained."""
    method = make_method(candidate)
    weighted_sum(method, method(make_views(method), make_method_batch())).backward()
    for name, p in method.named_parameters():
        if p.requires_grad and p.ndim > 1:
            demand(p.grad is not None and p.grad.any(), f"no gradient reaches {name}")
        elif not p.requires_grad:
            demand(p.grad is None, f"{name} is not trained, but gets a gradient")
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    frozen = {id(p) for p in method.encoder.parameters()} - trained
    demand(len(frozen) <= MOST_FROZEN, f"{len(frozen)} parameters of the encoder are not trained")


def label_free_metrics_see_its_views(candidate: Candidate) -> None:
    """``last_embeddings`` are those of views of the same images, without gradient."""
    method = make_method(candidate)
    method(make_views(method), make_method_batch())
    kept = method.last_embeddings
    demand(1 <= len(kept) <= len(method.recipes), f"last_embeddings has {len(kept)} elements")
    expected = BATCH, method.encoder.embed_dim
    for z_BD in kept:
        demand(z_BD.shape == expected, f"last_embeddings: {tuple(z_BD.shape)}, not {expected}")
        demand(not z_BD.requires_grad, "last_embeddings have a gradient; detach them")


def bfloat16_is_near(candidate: Candidate) -> None:
    """Networks in bfloat16 give about the losses of those in float32."""
    method = make_method(candidate)
    other = copy.deepcopy(method)
    full = method(make_views(method), make_method_batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = other(make_views(method), make_method_batch())
    for name, loss in full.items():
        demand(half[name].dtype == torch.float32, f"{name} is {half[name].dtype}, not float32")
        demand_close(half[name].item(), loss.item(), 0.1, 0.05, f"{name} in bfloat16")


def continues_exactly(candidate: Candidate) -> None:
    """A resumed training goes on to the same numbers."""
    whole = train_method(make_method(candidate), 6)
    first = make_method(candidate)
    train_method(first, 3)
    second = make_method(candidate, seed=1)
    second.load_state_dict(first.state_dict())
    same = train_method(second, 3, start=3) == whole[3:]
    demand(same, "losses differ after its state dict was loaded; keep all state in buffers")


def smaller_views_join(candidate: Candidate) -> None:
    """Where ``multicrop`` is set, smaller views join."""
    method = make_method(candidate)
    sizes = [SIDE] * len(method.recipes) + [SMALLER, SMALLER]
    losses = method(make_views(method, sizes=sizes), make_method_batch())
    demand(all(map(torch.isfinite, losses.values())), "not finite with smaller views")


def encoder_is_saved_with_its_projector(candidate: Candidate) -> None:
    """What it exports is opened again to the same numbers."""
    method = make_method(candidate)
    train_method(method, 2)
    encoder, projector = method.eval().exported
    encoder.projector = projector
    x_BCHW = make_views(method)[0]
    with tempfile.TemporaryDirectory() as folder:
        save_encoder(encoder, folder)
        found = load_encoder(folder)
    embedding_BD = encoder(x_BCHW).embedding_BD
    same = torch.equal(found(x_BCHW).embedding_BD, embedding_BD)
    demand(same, "the saved encoder embeds otherwise than the trained one")
    kept = (found.projector is None) == (projector is None)
    demand(kept, "the projector is not saved; make it of linear layers, batch norms and ReLUs")
    if projector is not None and found.projector is not None:
        same = torch.equal(found.projector(embedding_BD), projector(embedding_BD))
        demand(same, "the saved projector projects otherwise than the trained one")


class Louder(nn.Module):
    """A hook that multiplies embeddings."""

    def forward(self, module: nn.Module, args: object, output: Representation) -> Representation:
        return Representation(LARGE * output.embedding_BD, output.projection_BP, output.maps)


def float16_is_finite_and_near(candidate: Candidate, magnitude: float) -> None:
    """The losses of a method in float16 are float32, finite, and those in float32."""
    full = _on_a_transformer(candidate)
    half = copy.deepcopy(full)
    for method in (full, half):
        for encoder in (m for m in method.modules() if isinstance(m, type(full.encoder))):
            if magnitude == LARGE:
                encoder.register_forward_hook(Louder())
    expected = full(make_views(full), make_method_batch())
    with torch.autocast("cpu", dtype=torch.float16):
        found = half(make_views(half), make_method_batch())
    (SMALL_SCALE * torch.stack([*found.values()]).sum()).backward()
    for name, loss in found.items():
        demand(loss.dtype == torch.float32, f"{name} is {loss.dtype}, not float32")
        demand_close(loss.item(), expected[name].item(), 0.02, 5e-3, f"{name} in float16")
    demand_finite(state_of(half))


def is_the_same_in_microbatches(candidate: Candidate) -> None:
    """A method in micro-batches is the method on the whole batch."""
    method = _on_a_transformer(candidate)
    count = 4 if method.multicrop else len(method.recipes)
    views = [torch.rand(CUT_BATCH, 3, SIDE, SIDE) for _ in range(max(count, len(method.recipes)))]
    batch = make_method_batch(1, CUT_BATCH)
    expected = gradients_of(method, views, batch, None)
    demand_equal_but_for_rounding(gradients_of(method, views, batch, MICROBATCH), expected)


def accumulates_where_it_says_so(candidate: Candidate) -> None:
    """``accumulates`` is set exactly where the loss is the mean of those of parts of a batch."""
    method = _on_a_transformer(candidate)
    fixed_statistics(method)
    consistent = bool(method.comparing) != method.accumulates
    demand(consistent, f"accumulates={method.accumulates}, but comparing={method.comparing}")
    other, batch = copy.deepcopy(method), make_method_batch(1, CUT_BATCH)
    # Images of the same brightness would all have nearly one embedding.
    brightness_B111 = torch.linspace(0, 1, CUT_BATCH).view(-1, 1, 1, 1)
    views = [brightness_B111 * torch.rand(CUT_BATCH, 3, SIDE, SIDE) for _ in method.recipes]
    whole = torch.stack([*method(views, batch).values()]).sum().detach()
    mean = torch.zeros(())
    for rows in PARTS:
        losses = other([view[rows] for view in views], part_of(batch, rows))
        total = torch.stack([*losses.values()]).sum().detach()
        mean = mean + (rows.stop - rows.start) / CUT_BATCH * total
    states = zip(method.state_dict().values(), other.state_dict().values(), strict=True)
    same_state = all(torch.allclose(one, two, rtol=1e-5) for one, two in states)
    found = bool((whole - mean).abs() <= 1e-5 * whole.abs()) and same_state
    is_or_not = "is" if found else "is not"
    fault = f"{is_or_not} the mean of its parts, but accumulates={method.accumulates}"
    demand(method.accumulates == found, f"the loss {fault}")


IN_ONE_PROCESS = {
    **DESCRIBED,
    "description": Check(says_what_it_sees),
    "scalars": Check(losses_are_finite_scalars),
    "gradients": Check(every_trained_weight_gets_a_gradient),
    "last_embeddings": Check(label_free_metrics_see_its_views),
    "bfloat16": Check(bfloat16_is_near),
    "float16": Check(partial(float16_is_finite_and_near, magnitude=ORDINARY)),
    "float16_of_large_features": Check(partial(float16_is_finite_and_near, magnitude=LARGE)),
    "resume": Check(continues_exactly),
    "smaller_views": Check(smaller_views_join, lambda candidate: candidate.cls.multicrop),
    "export": Check(encoder_is_saved_with_its_projector),
    "microbatches": Check(is_the_same_in_microbatches),
    "accumulates": Check(accumulates_where_it_says_so),
}
"""Those that one process makes."""
