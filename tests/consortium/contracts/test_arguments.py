"""Every function of every contract: arguments of the wrong kind are refused by name."""

import re

import pytest

from consortium.chaincode.api import ContractError, InvalidArgument, LimitExceeded
from consortium.contracts import chaincodes
from tests.consortium.contracts.world import OPERATOR, World

FUNCTIONS = {
    name: function
    for chaincode in chaincodes().values()
    for name, function in chaincode.functions.items()
}
BEYOND = (2**53, -(2**53), str(2**63), str(-(2**63) - 1), "1.5", "1e3", "0x10", "٣", "+1", "01")
"""As integers: too large for a JSON number, beyond 64 bits, or not written as integers are."""


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_fields_of_the_wrong_kind_are_refused_by_name(name: str) -> None:
    for field in FUNCTIONS[name].argument.fields:
        for wrong in ({"no": ["such"]}, [[]]):
            with pytest.raises((InvalidArgument, LimitExceeded)) as refused:
                field.rule.read(wrong, field.json_name)
            assert refused.value.args[0].startswith(field.json_name)
        with pytest.raises(ContractError, match=re.escape(field.json_name)):
            field.rule.read("A" * 10_000, field.json_name)
        try:
            is_integer = field.rule.read("1", field.json_name) == 1
        except ContractError:
            is_integer = False
        for wrong_number in BEYOND if is_integer else ():
            with pytest.raises(InvalidArgument, match=re.escape(field.json_name)):
                field.rule.read(wrong_number, field.json_name)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_what_is_no_json_of_ours_is_refused_before_anything_is_read(name: str) -> None:
    world = World()
    for raw, sentence in (
        (b'{"a":NaN}', "is not an integer"),
        (b'{"a":Infinity}', "is not an integer"),
        (b'{"a":1.0}', "is not an integer"),
        (b'{"a":1e2}', "is not an integer"),
        (b'{"a":9223372036854775808}', "is beyond 64 bits"),
        (b'{"a":1,"a":2}', "names the same field twice"),
        (b"[]", "must be a JSON object"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
    ):
        with pytest.raises(InvalidArgument, match=sentence):
            world.simulate(OPERATOR, name, raw)
    assert not world.state.values()
