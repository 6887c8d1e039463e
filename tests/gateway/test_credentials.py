"""The credentials of the authorization header."""

import base64

import pytest

from duckmesh.errors import Denied, ErrorCode
from gateway.credentials import Basic, Bearer, parse_authorization


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        (["", " "], None),
        ([basic("user:pa:ss")], Basic("user", "pa:ss")),
        ([basic("ü:ä")], Basic("ü", "ä")),
        ([basic("user:x").rstrip("=")], Basic("user", "x")),
        ([basic("user:")], None),
        (["bearer  abc "], Bearer("abc")),
        (["Bearer "], None),
        (["Bearer abc", "Bearer abc"], Bearer("abc")),
    ],
)
def test_a_credential_is_read_from_its_header(values, expected):
    assert parse_authorization(values) == expected


@pytest.mark.parametrize(
    "values",
    [
        ["Digest abc"],
        ["abc"],
        ["Basic ???"],
        ["Basic " + base64.b64encode(b"\xff:x").decode()],
        ["Basic " + base64.b64encode(b"no colon").decode()],
        ["Bearer a", "Bearer b"],
    ],
)
def test_a_malformed_credential_is_unauthorized(values):
    with pytest.raises(Denied) as caught:
        parse_authorization(values)
    assert caught.value.code is ErrorCode.UNAUTHORIZED
