"""Ids of characters and words in the models that are measured. Imports no torch.

The vocabulary is the same for every length, so that a model has as many parameters on a long text
as on a short one.
"""

from __future__ import annotations

CHAR_VOCAB = 256

MAX_WORDS = 4096
"""Words with an id of their own: the most frequent ones."""

HASH_BUCKETS = 1024
"""Ids that the other words share."""

WORD_VOCAB = 1 + MAX_WORDS + HASH_BUCKETS
"""Word ids in all, "no word" included."""
