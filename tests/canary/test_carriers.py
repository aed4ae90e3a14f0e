"""The scanner finds identifiers spelt as letters and data in digits or lowest bits of numbers, without false alarms."""

import base64
from pathlib import Path

import numpy as np
import pytest
from flwr.app import MetricRecord

from federation.protocol.error_codes import OF_SITES
from tests.canary import carriers, layers
from tests.canary.test_scanner import IDENTIFIER, NAME, TEXT_SCANNER, noise

DIGITS = "0123456789"


def in_letters(letters: str) -> str:
    return IDENTIFIER.translate(str.maketrans(DIGITS, letters))


def interleaved(text: str, stride: int, filler: str) -> bytes:
    return "".join(letter + filler[: stride - 1] for letter in text).encode()


LETTERS = NAME.replace("^", "")
AS_LETTERS: dict[str, bytes] = {
    "A for 0": f"E_{in_letters('ABCDEFGHIJ')}".encode(),
    "A for 1": f"E_{in_letters('JABCDEFGHI')}".encode(),
    "Z for 0": in_letters("ZYXWVUTSRQ").encode(),
    "a keyboard's letters": in_letters("pqwertyuio").encode(),
    "letters that look like digits": in_letters("OIZEASGTBP").encode(),
    "any ten letters, in a code": f"E_{in_letters('QXKVZJWMHU')}".encode(),
    "any ten letters, with signs between": f"E_{'_'.join(in_letters('MNBVCXZLKJ'))}".encode(),
    "any ten letters, backwards": f"E_{in_letters('MNBVCXZLKJ')[::-1]}".encode(),
    "digits as words": "_".join(
        ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")[int(digit)]
        for digit in IDENTIFIER
    ).encode(),
    "the name as a code": b"E_BERGQVIST_SYLVI",
    "the name backwards": b"e-ivlys-tsivqgreb",
    "numbers of letters": "".join(str(ord(letter)) for letter in NAME.upper()).encode(),
    "numbers of letters, three digits each": "".join(f"{ord(letter):03}" for letter in NAME).encode(),
    "places in the alphabet from 1": "".join(f"{ord(each) - 64:02}" for each in LETTERS.upper()).encode(),
    "every second letter": interleaved(IDENTIFIER, 2, "xyz"),
    "every third letter": interleaved(LETTERS, 3, "qzk"),
    "every fourth letter": interleaved(IDENTIFIER, 4, "a_b"),
    "letters for digits, every second": interleaved(in_letters("ABCDEFGHIJ"), 2, "Q"),
    "base32": base64.b32encode(NAME.encode()),
    "base32, later": b"QQQ" + base64.b32encode(IDENTIFIER.encode()).rstrip(b"="),
    "base32 in a code": b"E_" + base64.b32encode(NAME.encode()).rstrip(b"="),
}


@pytest.mark.slow
@pytest.mark.parametrize("spelt", AS_LETTERS)
@pytest.mark.parametrize("before", [0, 1, 313])
def test_identifier_spelt_as_letters_is_found(spelt: str, before: int) -> None:
    data = noise(before, before) + b"\n" + AS_LETTERS[spelt] + b"\n" + noise(before + 1, 200)
    assert {hit.planted for hit in TEXT_SCANNER.scan(data)} == {"text"}, spelt


NAMES = ("loss_severe", "auroc_severe", "auprc_severe", "brier_severe", "ece_severe", "train_loss", "loss_pcr_positive")


def reply_with(values: list[float]) -> bytes:
    names = [*NAMES, *(f"figure_{number}" for number in range(40))]
    return MetricRecord({**dict(zip(names, values, strict=False)), "num-examples": 30}).deflate()


def decimals(count: int, honest: str) -> list[float]:
    """Return figures with the identifier's digits, `count` in each figure, after the honest digits."""
    padded = IDENTIFIER.ljust(-(-len(IDENTIFIER) // count) * count, "0")
    return [float(f"0.{honest}{padded[at : at + count]}") for at in range(0, len(padded), count)]


def low_bits(content: bytes, bits: int, order: str = "big") -> list[float]:
    """Return honest figures whose `bits` lowest bits hold the content."""
    stream = np.unpackbits(np.frombuffer(content, np.uint8), bitorder=order)  # type: ignore[call-overload]
    stream = np.append(stream, np.zeros(-len(stream) % bits, np.uint8)).reshape(-1, bits).astype(np.uint64)
    places = np.arange(bits, dtype=np.uint64)
    parts = (stream << (places if order == "little" else places[::-1])).sum(axis=1, dtype=np.uint64)
    words = np.full(len(parts), 0.7312).view(np.uint64) >> np.uint64(bits) << np.uint64(bits) | parts
    return words.view(np.float64).tolist()


CARRIERS: dict[str, list[float]] = {
    "all digits of one figure": [0.5, float(f"0.500{IDENTIFIER}"), 0.25],
    "a figure that is the identifier": [float(IDENTIFIER)],
    "a figure that is the identifier, scaled": [float(IDENTIFIER) * 1e-10],
    **{f"{count} digits a figure": decimals(count, "71") for count in (1, 2, 3, 4, 5, 7)},
    "three digits a figure, behind more": decimals(3, "712345"),
    **{f"the {bits} lowest bits": low_bits(NAME.encode(), bits) for bits in (8, 16, 24, 32, 40)},
    "the 4 lowest bits": low_bits(b"4401728395566", 4),
    "the 20 lowest bits": low_bits(NAME.encode(), 20),
    "the lowest bits, from the lowest on": low_bits(NAME.encode(), 12, "little"),
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_identifier_in_figures_is_found(carrier: str) -> None:
    values = CARRIERS[carrier]
    for data in (reply_with(values), noise(1, 99) + reply_with(values) + noise(2, 99)):
        assert {hit.planted for hit in TEXT_SCANNER.scan(data)} == {"text"}, carrier
    text = ", ".join(f"{value:.17g}" for value in values)
    if "bits" not in carrier and "is the identifier" not in carrier:
        assert TEXT_SCANNER.scan(f"losses: {text}".encode()), carrier


@pytest.mark.parametrize("kind", ["<f4", "<f2", "<f8"])
@pytest.mark.parametrize("before", [0, 1, 2, 3, 5])
def test_text_in_lowest_bits_of_numbers_is_found(kind: str, before: int) -> None:
    bits = np.unpackbits(np.frombuffer(NAME.encode(), np.uint8))
    weights = np.random.default_rng(1).normal(0, 0.03, 900).astype(kind)
    words = weights.view(f"<u{weights.itemsize}")
    words[333 : 333 + len(bits)] = words[333 : 333 + len(bits)] & ~np.array(1, words.dtype) | bits
    assert TEXT_SCANNER.scan(noise(before, before) + weights.tobytes())


@pytest.mark.slow
def test_honest_figures_and_codes_have_no_findings() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        assert TEXT_SCANNER.scan(reply_with(rng.random(47).tolist())) == []
    assert TEXT_SCANNER.scan("\n".join(sorted(OF_SITES)).encode()) == []
    words = Path(carriers.__file__).read_bytes() + Path(layers.__file__).read_bytes()
    assert TEXT_SCANNER.scan(words + words.upper()) == []
