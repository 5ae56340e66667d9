"""A sentence for people that a page can say in another language."""

from __future__ import annotations


class Sentence(str):
    """An English sentence, and what a page needs to say it in its own language.

    Attributes:
        key: of the same sentence in `locales/`.
        values: what stands in its places, by name.
    """

    key: str
    values: dict[str, str | int]

    def __new__(cls, key: str, english: str, **values: str | int) -> Sentence:
        """``english`` has places such as `{name}`."""
        sentence = super().__new__(cls, english.format(**values))
        sentence.key, sentence.values = key, values
        return sentence
