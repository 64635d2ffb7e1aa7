"""Drafters: what proposes the tokens that a pass then verifies, and the account that says whether it pays."""

from pyllama.drafting.drafts import Drafts

__all__ = ["Drafts"]
