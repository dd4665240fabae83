import pytest

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_bytes, format_count, format_seconds, parse_number, plural


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("60M", 60e6),
        ("1.5G", 1.5e9),
        ("2B", 2e9),
        ("2e9", 2e9),
        ("3k", 3e3),
        (".5", 0.5),
        ("50%", 0.5),
        (" 1_000 ", 1000),
    ],
)
def test_numbers_as_people_type_them(text, value):
    assert parse_number(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["", "M", "-5", "5X", "5M%", "nan", "inf", "1,000", "0x10", "5 M", "5MM"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(UserError, match="is not a number: write it like"):
        parse_number(text)


def test_a_written_count_reads_back_to_three_figures():
    for exponent in range(13):
        for mantissa in (1, 1.0049, 1.994, 4.565, 9.9949, 9.996):
            value = mantissa * 10**exponent
            text = format_count(value)
            assert parse_number(text) == pytest.approx(value, rel=5.1e-3), text
            assert len(text.rstrip("KMGT").replace(".", "")) <= 3, text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (134515008, "135M"), (999_600, "1.00M"), (-1500, "-1.50K"), (7, "7"), (9.5, "9.50")]
)
def test_counts_as_people_read_them(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1024, "1 KiB"), (538060032, "513 MiB"), (1536, "1.50 KiB"), (2**45, "32 TiB")]
)
def test_bytes_as_people_read_them(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (4.24, "4.2 s"), (9.97, "10 s"), (42.4, "42 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"), (7800, "2 h 10 min"),
    ],
)  # fmt: skip
def test_durations_as_people_read_them(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [(1, ("model",), "1 model"), (0, ("model",), "0 models"), (1200, ("token",), "1,200 tokens"),
     (2, ("batch", "batches"), "2 batches"), (1.5, ("hour",), "1.5 hours")],
)  # fmt: skip
def test_a_count_and_its_noun(count, words, text):
    assert plural(count, *words) == text
