"""Text to vectors: characters, the words that guide them, positions."""

from dynnsiha.embedding.characters import character_ids
from dynnsiha.embedding.hierarchical import HierarchicalEmbedding
from dynnsiha.embedding.segmenter import WordSegmenter

__all__ = ["HierarchicalEmbedding", "WordSegmenter", "character_ids"]
