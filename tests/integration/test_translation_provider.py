"""The translation example's provider, against a real server that does not always behave."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from examples.translation.card import LANGUAGES, Card
from examples.translation.provider import Provider, open_provider
from processor.retry import Classifier
from tests.integration.translation_endpoint import (
    Answer,
    Endpoint,
    a_web_page,
    another_stream,
    cut,
    endpoint,
    internal_error,
    one_section_too_few,
    prose,
    stall,
    too_many,
    wrong_key,
)

CARD = Card.model_validate_json(Path("examples/translation/cards/sourdough.json").read_text())


@pytest.fixture
async def upstream(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Endpoint]:
    async with endpoint() as served:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", served.url)
        monkeypatch.setenv("OPENAI_MODEL", "test-model")
        monkeypatch.setenv("OPENAI_TIMEOUT_SECONDS", "0.3")
        yield served


@pytest.fixture
async def provider(upstream: Endpoint) -> AsyncIterator[Provider]:
    async with open_provider() as opened:
        yield opened


def nothing(_ready: int, _sections: int) -> None:
    """Where nobody looks at the progress."""


async def test_a_good_answer_becomes_the_card_in_the_language(upstream: Endpoint, provider: Provider):
    translated = await provider.translate(CARD, "de", nothing)
    assert provider.name == "test-model"
    assert translated.title == "German: Your first sourdough"
    assert [one.heading for one in translated.sections] == [f"German: {one.heading}" for one in CARD.sections]
    (question,) = upstream.questions
    assert question.authorization == "Bearer sk-test"
    assert question.body["model"] == "test-model"
    assert question.card == CARD.model_dump()


async def test_progress_counts_the_sections_that_have_arrived(upstream: Endpoint, provider: Provider):
    seen: list[tuple[int, int]] = []
    await provider.translate(CARD, "fr", lambda ready, sections: seen.append((ready, sections)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (stall, ("UPSTREAM_TIMEOUT", True, None)),
        (too_many("7"), ("RATE_LIMITED", True, 7.0)),
        (internal_error, ("UPSTREAM_UNAVAILABLE", True, None)),
        (cut, ("UPSTREAM_UNAVAILABLE", True, None)),
        (wrong_key, ("AUTH_FAILED", False, None)),
        (a_web_page, ("BAD_UPSTREAM_ANSWER", True, None)),
        (another_stream, ("BAD_UPSTREAM_ANSWER", True, None)),
        (prose, ("BAD_UPSTREAM_ANSWER", True, None)),
        (one_section_too_few, ("BAD_UPSTREAM_ANSWER", True, None)),
    ],
)
async def test_a_bad_answer_means_its_own_code(
    upstream: Endpoint, provider: Provider, answer: Answer, meaning: tuple[str, bool, float | None]
):
    upstream.plan["Spanish"] = [answer]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - what it is, the classifier says
        await provider.translate(CARD, "es", nothing)
    failure = Classifier().classify(caught.value)
    assert (failure.code, failure.retryable, failure.delay) == meaning
    assert "sk-test" not in failure.message
    # the next request is served as if nothing had been
    assert (await provider.translate(CARD, "es", nothing)).title == "Spanish: Your first sourdough"


async def test_an_endpoint_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    async with endpoint() as gone:
        pass
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", gone.url)
    async with open_provider() as provider:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - what it is, the classifier says
            await provider.translate(CARD, "de", nothing)
    failure = Classifier().classify(caught.value)
    assert (failure.code, failure.retryable) == ("UPSTREAM_UNAVAILABLE", True)


@pytest.mark.parametrize("key", [None, ""])
async def test_without_a_key_the_words_get_accents_and_the_provider_says_so(
    monkeypatch: pytest.MonkeyPatch, key: str | None
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    seen: list[tuple[int, int]] = []
    async with open_provider() as provider:
        first, again = await asyncio.gather(
            provider.translate(CARD, "sv", lambda ready, sections: seen.append((ready, sections))),
            provider.translate(CARD, "sv", nothing),
        )
    assert provider.name == "pseudo"
    assert "OPENAI_API_KEY" in provider.about
    assert first.title == "Yöur first söurdöugh"
    assert first == again
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


async def test_every_language_on_the_list_has_accents_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    card = Card.model_validate({"title": "Zoë", "sections": [{"heading": "A", "text": "a quiet cozy nose"}]})
    async with open_provider() as provider:
        translations = await asyncio.gather(*(provider.translate(card, one, nothing) for one in LANGUAGES))
        for language, translated in zip(LANGUAGES, translations, strict=True):
            assert translated.sections[0].text != card.sections[0].text, language
            assert len(translated.sections[0].text) == len(card.sections[0].text), language


@pytest.mark.parametrize("key", [None, "sk-test"])
async def test_a_language_it_does_not_speak_fails_for_good_before_anybody_is_asked(
    upstream: Endpoint, monkeypatch: pytest.MonkeyPatch, key: str | None
):
    if key is None:
        monkeypatch.delenv("OPENAI_API_KEY")
    async with open_provider() as provider:
        with pytest.raises(Exception, match="does not speak 'tlh'") as caught:
            await provider.translate(CARD, "tlh", nothing)
    failure = Classifier().classify(caught.value)
    assert (failure.code, failure.retryable) == ("UNSUPPORTED_LANGUAGE", False)
    assert upstream.questions == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"title": "no sections", "sections": []},
        {"title": "a heading is missing", "sections": [{"text": "…"}]},
        {"title": "misspelt", "sections": [{"heading": "A", "text": "…"}], "sectoins": []},
    ],
)
def test_a_card_is_taken_as_described_or_not_at_all(wrong: object):
    with pytest.raises(ValueError, match="validation error"):
        Card.model_validate_json(json.dumps(wrong))
