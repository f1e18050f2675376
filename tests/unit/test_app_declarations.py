from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict

from processor import JobContext, Processor, UsageError


class Card(BaseModel):
    """A card."""

    title: str


@dataclass
class Point:
    x: int


class Options(TypedDict):
    deep: bool


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (JobContext[Card], {"title": "x"}, {"titel": "x"}),
        (JobContext[Point], {"x": 1}, {"x": "one"}),
        (JobContext[Options], {"deep": True}, {}),
        (JobContext[dict[str, int]], {"a": 1}, {"a": "b"}),
    ],
)
def test_the_annotation_validates_the_payload(annotation: Any, good: dict, bad: dict) -> None:
    app = Processor()

    async def handler(job): ...

    handler.__annotations__["job"] = annotation
    app.job("x")(handler)
    adapter = app.handlers["x"].payload
    adapter.validate_python(good)
    with pytest.raises(ValidationError):
        adapter.validate_python(bad)
    assert app.handlers["x"].payload_schema["type"] == "object"


def test_a_handler_without_annotation_gets_the_payload_as_it_is() -> None:
    app = Processor()

    @app.job("plain")
    async def plain(job): ...

    @app.job("bare")
    async def bare(job: JobContext): ...

    for kind in ("plain", "bare"):
        assert app.handlers[kind].payload.validate_python({"a": [1]}) == {"a": [1]}


def test_the_declaration_says_what_the_database_must_know() -> None:
    app = Processor()

    @app.job("translate", queue="translation", credits_per_item=2, public=True, max_items=5)
    async def translate(job: JobContext[Card]) -> None:
        """Translate a card.

        At length.
        """

    assert app.handlers["translate"].declaration() == {
        "kind": "translate",
        "queue": "translation",
        "public": True,
        "credits_per_job": 0,
        "credits_per_item": 2,
        "payload_schema": Card.model_json_schema(),
        "max_items": 5,
        "description": "Translate a card.",
    }


def test_the_decorated_function_stays_callable() -> None:
    app = Processor()

    async def handler(job: JobContext): ...

    assert app.job("x")(handler) is handler


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "Send Mail"}, "Did you mean 'send_mail'"),
        ({"kind": ""}, "1 to 100 characters"),
        ({"queue": "Mails"}, "Did you mean 'mails'"),
        ({"credits_per_job": -1}, "whole numbers"),
        ({"credits_per_item": 0.5}, "whole numbers"),
        ({"credits_per_item": True}, "whole numbers"),
        ({"credits_per_item": 1, "credits_per_job": 1}, "two prices"),
        ({"max_items": 0}, "from 1 to 10000"),
        ({"max_items": 10_001}, "from 1 to 10000"),
        ({"item_concurrency": 0}, "from 1 to 1000"),
        ({"timeout": 0}, "more than 0 seconds"),
    ],
)
def test_an_impossible_option_teaches_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Processor().job(options.pop("kind", "x"), **options)


def test_the_decorator_without_parentheses_teaches() -> None:
    async def handler(job: JobContext): ...

    with pytest.raises(UsageError, match="in parentheses"):
        Processor().job(handler)  # type: ignore[arg-type]  # the mistake under test


def not_async(job: JobContext): ...


async def no_argument(): ...


async def by_name_only(*, job: JobContext): ...


async def payload_itself(job: Card): ...


async def a_list(job: JobContext[list[int]]): ...


async def a_string(job: JobContext[str]): ...


async def not_validatable(job: JobContext[object.__class__.__subclasses__]): ...


async def unknown_name(job: "JobContext[Nowhere]"): ...  # noqa: F821 - the mistake under test


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (not_async, "write `job: SyncJobContext`, or make it `async def`"),
        (no_argument, "must take one argument"),
        (by_name_only, "must take one argument"),
        (payload_itself, r"write `job: JobContext\[Card\]`"),
        (a_list, "a payload is a JSON object"),
        (a_string, "a payload is a JSON object"),
        (not_validatable, "cannot be validated|no JSON Schema"),
        (unknown_name, "top level of the module"),
    ],
)
def test_a_handler_that_cannot_work_teaches_at_import(handler: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Processor().job("x")(handler)


def test_two_handlers_of_one_kind_are_both_named() -> None:
    app = Processor()

    @app.job("x")
    async def first(job): ...

    with pytest.raises(UsageError, match=r"first.*second"):

        @app.job("x")
        async def second(job): ...
