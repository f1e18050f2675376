"""The application; run it with `processor run examples.translation.app:app`."""

from processor import JobContext, JobItem, Processor

from .card import Card
from .provider import open_provider

app = Processor()


@app.job("translate_card", queue="translation", credits_per_item=2, item_concurrency=3, public=True)
async def translate_card(job: JobContext[Card]) -> dict[str, str]:
    """Translate a card: one item, and two credits, for every language."""
    async with open_provider() as provider:
        job.log.info(provider.about)

        async def one(item: JobItem[Card]) -> Card:
            return await provider.translate(job.payload, language=item.key, progress=item.progress)

        await job.each(one)  # every item keeps its own result: its translated card
        return {"provider": provider.name}
