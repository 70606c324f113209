"""Pretrained weights: online, offline, and where downloads are forbidden."""

import types

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants

from ssdistill.errors import UserError
from ssdistill.models import downloads
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.timm_model import TimmModel

IMAGE_SPEC = ImageSpec(64, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
NAME = "test_resnet.r160_in1k"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """``hub(answers)``: the requests to the hub, which answers or not; an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def make(answers):
        def head(url, **settings):
            asked.append(url)
            if not answers:
                raise ConnectionError("no route")
            return "anything at all"

        session = types.SimpleNamespace(head=head)
        monkeypatch.setattr(downloads, "get_session", lambda: session)
        return asked

    return make


@pytest.fixture
def served(monkeypatch, tmp_path):
    """What timm would download is a file here; whether the hub was to be contacted, each time."""
    torch.manual_seed(0)
    net = timm.create_model(NAME)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    offline = []

    def download(repo_id, filename, **_):
        offline.append(constants.HF_HUB_OFFLINE)
        return str(tmp_path / filename)

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    return offline


def refused(opened):
    with pytest.raises(UserError) as caught:
        opened()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [NAME, "hf-hub:someone/x"])
def test_without_a_connection_nothing_is_tried_again(name, hub, capfd, caplog, tmp_path):
    asked = hub(answers=False)
    text = refused(lambda: TimmModel(name=name).load(IMAGE_SPEC))
    assert f"no connection to {constants.ENDPOINT}" in text and name in text
    assert f"add them to the cache {tmp_path / 'cache'} (HF_HUB_CACHE)" in text
    if name == NAME:
        assert "set teacher.weights=FILE" in text
    assert asked == [constants.ENDPOINT] and not constants.HF_HUB_OFFLINE
    assert "etry" not in capfd.readouterr().err + caplog.text


def test_an_encoder_of_a_config_says_it_too(hub, capfd):
    hub(answers=False)
    settings = EncoderSettings(name=NAME, pretrained=True)
    text = refused(lambda: build_encoder(settings, 160))
    assert (
        "set encoder.pretrained=false to start from random weights, or add them to the cache"
        in text
    )
    assert "etry" not in capfd.readouterr().err


def test_what_lies_in_the_cache_is_used_without_a_connection(hub, served):
    hub(answers=False)
    encoder, _ = TimmModel(name=NAME).load(IMAGE_SPEC)
    assert set(served) == {True} and encoder.embed_dim > 0
    assert not constants.HF_HUB_OFFLINE


def test_with_a_connection_the_hub_is_asked(hub, served):
    asked = hub(answers=True)
    encoder, _ = TimmModel(name=NAME).load(IMAGE_SPEC)
    assert set(served) == {False} and asked == [constants.ENDPOINT]
    torch.manual_seed(0)
    expected = timm.create_model(NAME).state_dict()
    for key, value in encoder.net.state_dict().items():
        assert torch.equal(value, expected[key])


def test_a_hub_that_is_forbidden_is_not_asked(hub, monkeypatch):
    asked = hub(answers=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = refused(lambda: TimmModel(name=NAME).load(IMAGE_SPEC))
    assert "HF_HUB_OFFLINE forbids downloads; unset it" in text
    assert asked == [] and constants.HF_HUB_OFFLINE


def test_a_hub_that_never_answers_is_not_waited_for(hub, monkeypatch):
    import threading

    hub(answers=True)
    never = threading.Event()
    session = types.SimpleNamespace(head=lambda url, **_: never.wait())
    monkeypatch.setattr(downloads, "get_session", lambda: session)
    monkeypatch.setattr(downloads, "HUB_SECONDS", 0.01)
    assert "no connection" in refused(lambda: TimmModel(name=NAME).load(IMAGE_SPEC))
    never.set()


def test_nothing_is_asked_for_a_network_without_pretrained_weights(hub, tmp_path):
    asked = hub(answers=False)
    build_encoder(EncoderSettings(name=NAME), 64)
    net = timm.create_model(NAME)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "w.safetensors")
    TimmModel(name=NAME, weights=str(tmp_path / "w.safetensors")).load(IMAGE_SPEC)
    assert asked == []
