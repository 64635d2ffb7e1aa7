"""Drafters: what proposes the tokens that a pass then verifies."""
