"""What others wrote stays one short printable line."""

from chats.words import shown


def test_foreign_text_stays_one_short_printable_line():
    assert shown("a\x1b[31m\n\ud800") == "a\\x1b[31m\\n\\ud800…"
    assert shown("x" * 5000) == "x" * 100 + "…"
    assert shown(1 << 50_000).startswith("0x1000")
    nested = ["ha"] * 9
    for _ in range(30):
        nested = [nested] * 9
    assert len(shown(nested)) <= 101
    assert shown(True) == "true"
