"""A prompt's answer, token by token: alone (Generation), or as a task among others of an engine."""

from pyllama.generation.answer import Answer, AnswerOptions, Fingerprint, Guide, Step, StopStrings, overlap
from pyllama.generation.embedding import Embedding
from pyllama.generation.generation import Generation
from pyllama.generation.task import Drafting, Found, Task, compute, run_pass, share_out
from pyllama.generation.tree import ROOT, Tree

__all__ = [
    "ROOT",
    "Answer",
    "AnswerOptions",
    "Drafting",
    "Embedding",
    "Fingerprint",
    "Found",
    "Generation",
    "Guide",
    "Step",
    "StopStrings",
    "Task",
    "Tree",
    "compute",
    "overlap",
    "run_pass",
    "share_out",
]
