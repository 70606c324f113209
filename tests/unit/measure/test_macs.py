import pytest
import torch
from closed_form import closed_form_macs
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.factorized import Factorized
from ssdistill.models.wrapped import Wrapped

IMAGE = (2, 6, 10, 12)


def conv_model(layer, *shape):
    return Wrapped(layer, torch.zeros(shape or IMAGE), lambda net, x: net(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(6, 8, 3, padding=1), 6 * 8 * 9 * 10 * 12),
        (nn.Conv2d(6, 8, (1, 3), padding=(0, 1)), 6 * 8 * 3 * 10 * 12),
        (nn.Conv2d(6, 8, 3, stride=2, padding=1), 6 * 8 * 9 * 5 * 6),
        (nn.Conv2d(6, 8, 3, groups=2, padding=1), 3 * 8 * 9 * 10 * 12),
        (nn.Conv2d(6, 12, 5, groups=6, padding=2), 1 * 12 * 25 * 10 * 12),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), 6 * 4 * 4 * 10 * 12),
    ],
    ids=["plain", "1x3", "strided", "grouped", "depthwise", "transposed"],
)
def test_a_convolution_is_weights_times_positions(layer, macs):
    assert count_macs(conv_model(layer)) == macs


def test_a_linear_layer_is_its_weights():
    assert count_macs(Wrapped(nn.Linear(24, 10), torch.zeros(2, 24))) == 240


@pytest.mark.parametrize(
    ("rank", "form", "macs"),
    [
        (4, "channel", 6 * 4 * 9 * 120 + 4 * 8 * 120),
        (4, "spatial", 6 * 4 * 3 * 120 + 4 * 8 * 3 * 120),
        ((3, 5), "tucker", 6 * 3 * 120 + 3 * 5 * 9 * 120 + 5 * 8 * 120),
    ],
)
def test_factors_are_counted_one_by_one(rank, form, macs):
    layer = nn.Conv2d(6, 8, 3, padding=1)
    assert count_macs(conv_model(Factorized.like(layer, rank, form))) == macs


def test_a_factorized_linear_layer_is_the_sum_of_both():
    factors = Factorized.like(nn.Linear(24, 10), 3, "channel")
    assert count_macs(Wrapped(factors, torch.zeros(2, 24))) == 24 * 3 + 3 * 10


class Attention(nn.Module):
    def forward(self, x_BTC):
        return nn.functional.scaled_dot_product_attention(x_BTC, x_BTC, x_BTC).mean(1)


@pytest.mark.parametrize("trained", [False, True])
def test_attention_is_two_products_of_tokens_by_tokens(trained):
    class Net(nn.Sequential):
        def forward(self, x_BTC):
            return super().forward(x_BTC)

    net = Net(nn.Linear(16, 16, bias=False), Attention())
    net.requires_grad_(trained)
    model = Wrapped(net, torch.randn(2, 9, 16))
    assert count_macs(model) == 9 * 16 * 16 + 2 * 9 * 9 * 16


SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}
NETWORKS = {
    "resnet18": ("resnet18", {"channels": (8, 16, 16, 24)}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "convnext": ("test_convnext", {}),
    "vit": ("vit_tiny_patch16_224", SMALL_VIT),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_encoder_equals_the_sum_over_its_layers(name):
    architecture, args = NETWORKS[name]
    encoder = build_encoder(EncoderSettings(name=architecture, args=args), 32).eval()
    assert count_macs(encoder) == closed_form_macs(encoder)


def test_a_language_model_is_counted_on_its_own_token_ids():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    token_ids_BT = torch.randint(0, 50, (2, 12))
    bert = Wrapped(
        transformers.BertModel(config), token_ids_BT, lambda net, x_BT: net(x_BT).pooler_output
    )
    layer = 12 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 12**2 * 32
    assert count_macs(bert) == closed_form_macs(bert) == 2 * layer + 32 * 32


def test_counting_leaves_mode_and_gradients_as_they_were():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    net[2].requires_grad_(False)
    model = Wrapped(net, torch.randn(4, 8)).train()
    mean_C = net[1].running_mean.clone()
    assert count_macs(model) == 8 * 8 + 8 * 4
    assert model.training and torch.equal(net[1].running_mean, mean_C)
    assert [p.requires_grad for p in net[2].parameters()] == [False, False]
    assert all(p.requires_grad for p in net[0].parameters())


def kernels():
    """Every way in which torch computes attention on this machine."""
    from torch.nn.attention import SDPBackend

    return [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_counted_whichever_kernel_computes_it(kernel, causal):
    class Net(nn.Module):
        def forward(self, x_BHTC):
            with torch.nn.attention.sdpa_kernel(kernel):
                y_BHTC = nn.functional.scaled_dot_product_attention(
                    x_BHTC, x_BHTC[:, :, :5], x_BHTC[:, :, :5], is_causal=causal
                )
            return y_BHTC.mean((1, 2))

    model = Wrapped(Net(), torch.randn(2, 4, 9, 16))
    assert count_macs(model) == 4 * 2 * 9 * 5 * 16


@pytest.mark.parametrize("batch_first", [True, False])
def test_multi_head_attention_is_counted_beside_its_fused_path(batch_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)

        def forward(self, x_BTC):
            x = x_BTC if batch_first else x_BTC.transpose(0, 1)
            y = self.attention(x, x, x, need_weights=False)[0]
            return (y if batch_first else y.transpose(0, 1)).mean(1)

    projections, products = 4 * 9 * 16 * 16, 2 * 9 * 9 * 16
    assert count_macs(Wrapped(Net(), torch.randn(2, 9, 16))) == projections + products


def test_a_transformer_layer_is_counted_beside_its_fused_path():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = Wrapped(layer, torch.randn(2, 9, 16), lambda net, x: net(x).mean(1))
    assert count_macs(model) == 9 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 9 * 9 * 16


@pytest.mark.parametrize("rnn", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_is_its_gates_at_every_step(rnn):
    net = rnn(8, 12, batch_first=True)
    gates = {nn.LSTM: 4, nn.GRU: 3}[rnn]
    model = Wrapped(net, torch.randn(2, 5, 8), lambda net, x: net(x)[0].mean(1))
    assert count_macs(model) == 5 * gates * 12 * (8 + 12)


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), 10 * 12 * 6 * 2 * 9),
        (nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1, groups=6), 10 * 12 * 6 * 16),
        (nn.Conv2d(6, 8, 3, dilation=2, padding=2), 6 * 8 * 9 * 10 * 12),
        (nn.Conv2d(6, 9, 1, groups=3), 2 * 9 * 10 * 12),
    ],
    ids=["grouped transposed", "depthwise transposed", "dilated", "grouped 1x1"],
)
def test_less_common_convolutions_have_their_closed_form(layer, macs):
    assert count_macs(conv_model(layer)) == macs


def test_a_product_with_one_vector_is_counted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight_CO = nn.Parameter(torch.randn(16, 7))

        def forward(self, x_BC):
            return torch.stack([x_C @ self.weight_CO for x_C in x_BC])

    assert count_macs(Wrapped(Net(), torch.randn(2, 16))) == 16 * 7


@pytest.mark.parametrize(
    ("product", "macs"),
    [
        (lambda x_BC, w_CO: torch.dot(x_BC[0], w_CO[:, 0]), 16),
        (lambda x_BC, w_CO: torch.vdot(x_BC[0], w_CO[:, 0]), 16),
        (lambda x_BC, w_CO: torch.addmv(x_BC[0, :7], w_CO.T, x_BC[0]), 7 * 16),
        (lambda x_BC, w_CO: torch.addbmm(w_CO, w_CO[None], w_CO.T[None, :, :7]), 16 * 7 * 7),
    ],
    ids=["dot", "vdot", "addmv", "addbmm"],
)
def test_products_that_torch_does_not_count_are_counted(product, macs):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight_CO = nn.Parameter(torch.randn(16, 7))

        def forward(self, x_BC):
            return x_BC + product(x_BC, self.weight_CO).sum()

    assert count_macs(Wrapped(Net(), torch.randn(2, 16))) == macs


def test_torchvisions_vit_is_counted_with_its_attention():
    from torchvision.models import VisionTransformer

    net = VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10)
    tokens = 17
    block = tokens * (4 * 64 * 64 + 2 * 64 * 128) + 2 * tokens**2 * 64
    model = Wrapped(net, torch.randn(2, 3, 32, 32))
    assert count_macs(model) == 16 * 3 * 64 * 64 + 2 * block + 64 * 10


def test_what_cannot_be_counted_is_named(caplog):
    model = Wrapped(nn.Bilinear(4, 4, 3), torch.randn(2, 4), lambda net, x_BC: net(x_BC, x_BC))
    assert count_macs(model) == 0
    assert "_trilinear" in caplog.text and "underestimated" in caplog.text


class FlexAttention(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.qkv, self.attention = nn.Linear(16, 48), attention

    def forward(self, x_BTD):
        qkv = self.qkv(x_BTD).view(len(x_BTD), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return self.attention(*qkv, score_mod=lambda score, b, h, i, j: score + i - j).mean((1, 2))


@pytest.mark.parametrize("attention", [flex_attention, torch.compile(flex_attention)])
def test_flex_attention_is_its_two_products(attention):
    model = Wrapped(FlexAttention(attention), torch.zeros(2, 10, 16))
    assert count_macs(model) == 10 * 16 * 48 + 2 * (2 * 10 * 10 * 8)


def test_an_unknown_operation_of_higher_order_is_warned_of(caplog, monkeypatch):
    monkeypatch.setattr("ssdistill.measure.macs.flop_registry", {})
    monkeypatch.setattr("ssdistill.measure.macs.WHOLE", {})
    assert (
        count_macs(Wrapped(FlexAttention(flex_attention), torch.zeros(2, 10, 16))) == 10 * 16 * 48
    )
    assert "MACs are underestimated: cannot count flex_attention" in caplog.text


class Uncountable(nn.Module):
    def example(self, count):
        return torch.rand(count, 3)

    def forward(self, x_BD):
        raise TypeError("no implementation found for 'torch.ops.higher_order.other' on types")


def test_an_operator_that_no_counter_knows_is_refused_in_words():
    model = Uncountable()
    with pytest.raises(UserError, match=r"other.*scaled_dot_product_attention"):
        count_macs(model)
    assert model.training


class Broken(Uncountable):
    def forward(self, x_BD):
        return len(7)


def test_a_networks_own_error_is_not_taken_for_an_operator_that_cannot_be_counted():
    with pytest.raises(TypeError, match="has no len"):
        count_macs(Broken())
