"""Many requests, one model: a scheduler with continuous batching, a prefix cache, and doors for threads and asyncio."""

from pyllama.engine.async_engine import AsyncEngine, Stream
from pyllama.engine.engine import Engine, Stats
from pyllama.engine.request import Request

__all__ = ["AsyncEngine", "Engine", "Request", "Stats", "Stream"]
