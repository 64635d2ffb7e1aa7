"""Drafters: what proposes the tokens that a pass then verifies, and the account that says whether it pays."""

AUTO, SELF, LOOKUP, OFF = "auto", "self", "lookup", "off"
#: What `draft` may be besides a model; who is meant says opening.py.
WORDS = (AUTO, SELF, LOOKUP, OFF)
