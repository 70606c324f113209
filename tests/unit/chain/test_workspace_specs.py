"""Planning builds each network once, however often it asks for it."""

from ssdistill.chain import workspace as module
from ssdistill.chain.plan import models_of


def test_a_network_is_built_once_for_its_description(make_workspace, monkeypatch):
    built = []

    def build(settings, *statistics):
        built.append(settings.model_dump_json())
        return whole(settings, *statistics)

    whole = module.build_encoder
    monkeypatch.setattr(module, "build_encoder", build)
    workspace = make_workspace()
    first = {role: stage.digest for role, stage in models_of(workspace, 0).items()}
    assert len(built) == len(set(built)) == 2
    assert {role: stage.digest for role, stage in models_of(workspace, 1).items()} == first
    assert len(built) == 2
