"""What every registered protocol must do; a new one is tested without being named."""

from own_kinds import OWN_PROTOCOLS, every_case

from ssdistill.settings.registry import PROTOCOLS
from ssdistill.testing.protocols import REPORTS


@every_case(REPORTS, OWN_PROTOCOLS)
def test_a_protocol(check, candidate):
    check.run(candidate)


def test_a_protocol_of_this_package_says_whose_it_is():
    assert all(len(cls.paper) > 10 for cls in PROTOCOLS.classes.values())


def test_no_two_protocols_have_one_name():
    names = [
        name
        for kind, cls in PROTOCOLS.classes.items()
        for name in (kind, *(f"{kind}_{preset}" for preset in cls.presets))
    ]
    assert len(names) == len(set(names))
