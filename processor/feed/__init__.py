"""The feed: decides when to look for work, and never claims.

A wake-up carries no truth: the table is the truth, and a missed or doubled wake-up costs time, not work.
"""

from processor.feed.supervisor import Feed, FeedStatus, Mode, Transport, Wake
from processor.feed.timings import FeedTimings

__all__ = ["Feed", "FeedStatus", "FeedTimings", "Mode", "Transport", "Wake"]
