"""What others wrote stays one short printable line."""

import pytest

from chats.words import shown, shown_error


def test_foreign_text_stays_one_short_printable_line():
    assert shown("a\x1b[31m\n\ud800") == "a\\x1b[31m\\n\\ud800…"
    assert shown("x" * 5000) == "x" * 100 + "…"
    assert shown(1 << 50_000).startswith("0x1000")
    nested = ["ha"] * 9
    for _ in range(30):
        nested = [nested] * 9
    assert len(shown(nested)) <= 101


def test_what_fits_is_shown_whole():
    # "…" says that something is missing: it stands behind 101 characters and not behind 100.
    assert shown("x" * 100) == "x" * 100
    assert shown("x" * 101) == "x" * 100 + "…"
    assert shown("x" * 7, longest=7) == "x" * 7
    assert shown("x" * 8, longest=7) == "x" * 7 + "…"
    # An escape is longer than its character: 100 of them are 400 characters, of which 100 are shown.
    assert shown("\x1b" * 100) == "\\x1b" * 25 + "…"


def test_true_and_false_are_written_as_in_the_settings_file():
    assert (shown(True), shown(False), shown(1), shown(0)) == ("true", "false", "1", "0")


def test_long_numbers_are_written_in_hexadecimals():
    # Digests are numbers of up to 256 bits, 77 digits, and those are shown as they are. Python itself refuses to write
    # more than 4,300 digits.
    assert shown((1 << 256) - 1) == str((1 << 256) - 1)
    assert shown(1 << 256) == "0x1" + "0" * 64


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([[["deep"]]], "[[[...]]]"),
        (({1: {2: {3: 4}}},), "({1: {...}},)"),
        ({"a"}, "{'a'}"),
        (b"PK\x03\x04", r"b'PK\x03\x04'"),
        # A word of 98 letters and its quotes fill the line to the last character, a longer one loses its middle.
        (["x" * 98], "['" + "x" * 98 + "…"),
        (["x" * 200], "['" + "x" * 47 + "..." + "x" * 48 + "…"),
    ],
)
def test_nested_values_are_bounded_in_depth_and_width(value, text):
    assert shown(value) == text


def test_what_a_library_says_is_one_line_three_times_as_long():
    assert shown_error(ValueError("two\n  lines\tand a tab ")) == "two lines and a tab"
    assert shown_error(KeyError()) == "KeyError"
    assert shown_error(ValueError("x" * 300)) == "x" * 300
    assert shown_error(ValueError("x" * 301)) == "x" * 300 + "…"
    assert shown_error(ValueError("long"), longest=2) == "lo…"
