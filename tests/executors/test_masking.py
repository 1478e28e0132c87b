"""Secrets in a text that comes in pieces, or in another form."""

from __future__ import annotations

import pytest

from fanout_sync.executors.command.masking import MASK, MaskedStream, Masker, _overlap, secrets_in


@pytest.mark.parametrize(
    ("before", "after", "length"),
    [
        ("", "", 0),
        ("abc", "", 0),
        ("", "abc", 0),
        ("xxab", "abc", 2),
        ("abc", "abc", 3),
        ("xxabcdefgh", "abcdefghij", 8),
        ("abcdefgh abcdefghi", "abcdefghij", 9),
        ("aaaaaaaaaaaa", "aaaaaaaaaaaab", 12),
        ("aaaaaaaaaaaa", "aaaaaaaaaab", 10),
        ("abababababab", "ababababac", 8),
        ("no", "abc", 0),
    ],
)
def test_overlap(before: str, after: str, length: int) -> None:
    """It is the longest text that ends one and begins the other."""
    assert _overlap(before, after) == length
    assert max((n for n in range(len(after) + 1) if before.endswith(after[:n])), default=0) == length


def test_forms_of_a_secret() -> None:
    """A program may print it as it is, as JSON, or as Python does."""
    secret = "se'cr\\et\"\n99"
    masker = Masker(secrets_in({"MY_KEY": secret}))
    for text in (secret, r"""se'cr\\et\"\n99""", repr(secret)[1:-1]):
        assert masker(f"[{text}]") == f"[{MASK}]"


def test_a_very_long_secret_takes_linear_time() -> None:
    """Each piece of the output is looked through once."""
    secret = "0123456789" * 10_000
    stream = MaskedStream(Masker((secret,)))
    said = "".join(stream.add(piece) for piece in ["012345678 " * 6_000] * 300 + [secret[:70_000], secret[70_000:]])
    said += stream.end()
    assert said.endswith(MASK)
    assert len(said) == 300 * 60_000 + len(MASK)
