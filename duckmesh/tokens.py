"""The visibility token: a write's position in its tenant's order.

Tokens of a tenant are dense (1, 2, 3, …), assigned in commit order, comparable, and never zero.
Zero is the watermark of a tenant that has published nothing.
"""

from typing import Final, NewType

from duckmesh.errors import ErrorCode, Invalid

VisibilityToken = NewType("VisibilityToken", int)

BEFORE_ALL: Final = VisibilityToken(0)
_MAX_TOKEN: Final = 2**63 - 1
_MAX_DIGITS: Final = 19


def parse_token(text: str) -> VisibilityToken:
    """Read a token as a client sends it (decimal digits).

    Raises Invalid (VISIBILITY_TOKEN_INVALID) for anything but a number from 1 to 2^63-1.
    """
    digits = text.strip()
    # The length first: Python refuses to read a number of thousands of digits.
    plain = len(digits) <= _MAX_DIGITS and digits.isascii() and digits.isdigit()
    if not (plain and 0 < int(digits) <= _MAX_TOKEN):
        raise Invalid(
            ErrorCode.VISIBILITY_TOKEN_INVALID,
            "a visibility token is the positive whole number that a receipt carries",
            token=text[:40],
        )
    return VisibilityToken(int(digits))
