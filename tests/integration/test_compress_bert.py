"""The compression steps on a language model: nothing in them is tied to images."""

import copy

import pytest
import torch

from ssdistill.artifacts.artifact import load_weights, save_weights
from ssdistill.compress import Context
from ssdistill.compress.lowrank import LowRank
from ssdistill.compress.matching import match_embeddings
from ssdistill.compress.prune import Prune
from ssdistill.compress.quantize import Quantize
from ssdistill.compress.recover import Recover
from ssdistill.compress.refit import Refit
from ssdistill.label_free.agreement import agreement
from ssdistill.measure.hardware import int8_saturates
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.wrapped import Wrapped

transformers = pytest.importorskip("transformers")
TOKENS, LENGTH = 90, 12


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # Larger than usual, so that a network without training does something with its inputs.
        initializer_range=0.2,
    )
    net = transformers.BertModel(config, add_pooling_layer=False).eval()
    return Wrapped(net, tokens(4), embed=lambda net, x_BT: net(x_BT).last_hidden_state.mean(1))


def tokens(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TOKENS, (count, LENGTH), generator=generator)


@torch.no_grad()
def cka(first, second):
    inputs = tokens(256, seed=2)
    pair = [m(inputs).embedding_BD for m in (first, second)]
    return agreement(*pair)["agree/cka"]


def test_bert_is_pruned_refitted_recovered_factorized_and_quantized(tmp_path):
    model = bert()
    before = copy.deepcopy(model.net.state_dict())
    context = Context(
        images=lambda n, seed: tokens(n, seed + 3),
        folder=tmp_path,
        scratch=tmp_path,
        original=model,
        before=model,
        train=match_embeddings(tokens(256)),
    )
    pruned = Prune(ratio=0.5, round_to=4).apply(model, context)
    refitted = Refit(images=256).apply(pruned, context)
    recovered = Recover(steps=20, batch_size=64).apply(refitted, context)
    context.before = recovered
    small = LowRank(keep=0.7, round_to=1).apply(recovered, context)
    assert count_parameters(small) < count_parameters(recovered) < count_parameters(model)
    assert cka(refitted, model) > cka(pruned, model)
    assert cka(recovered, model) > 0.5

    save_weights(small, tmp_path / "small")
    again = load_weights(bert(), tmp_path / "small")
    inputs = tokens(5)
    with torch.no_grad():
        assert torch.equal(again(inputs).embedding_BD, small(inputs).embedding_BD)

    (tmp_path / "int8").mkdir()
    context.folder = tmp_path / "int8"
    step = Quantize(calibration_images=64, check_images=64, reduce_range=int8_saturates())
    int8 = step.apply(small, context)
    assert cka(int8, small) > 0.9
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())
