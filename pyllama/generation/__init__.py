"""A prompt's answer, token by token: alone (Generation), or as a task among others of an engine."""

from pyllama.generation.answer import Answer, AnswerOptions, Fingerprint, Guide, Step, StopStrings, overlap
from pyllama.generation.embedding import Embedding
from pyllama.generation.generation import Generation
from pyllama.generation.task import Task, compute, share_out

__all__ = [
    "Answer",
    "AnswerOptions",
    "Embedding",
    "Fingerprint",
    "Generation",
    "Guide",
    "Step",
    "StopStrings",
    "Task",
    "compute",
    "overlap",
    "share_out",
]
