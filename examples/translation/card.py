"""The payload of a translation job: a card of text, and the languages it can be had in."""

from pydantic import BaseModel, ConfigDict, Field

LANGUAGES = {
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "it": "Italian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "sv": "Swedish",
    "tr": "Turkish",
}
"""What the translator is willing to answer for: code → the name a model knows it by."""


class _Strict(BaseModel):
    """A misspelt field is a mistake to report, never one to drop in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Section(_Strict):
    """One paragraph under its heading."""

    heading: str = Field(min_length=1, max_length=200)
    text: str = Field(min_length=1, max_length=20_000)


class Card(_Strict):
    """A title and the sections below it, in their order."""

    title: str = Field(min_length=1, max_length=200)
    sections: list[Section] = Field(min_length=1, max_length=100)
