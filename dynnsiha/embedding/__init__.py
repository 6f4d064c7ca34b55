"""Text, images and sound to vectors: characters, words that guide them, patches, positions."""

from dynnsiha.embedding.characters import character_ids
from dynnsiha.embedding.deep_embed import DeepEmbed
from dynnsiha.embedding.hierarchical import HierarchicalEmbedding
from dynnsiha.embedding.mapped_table import MappedTable, write_table
from dynnsiha.embedding.patches import PatchEmbedding, audio_patches, image_patches
from dynnsiha.embedding.segmenter import WordSegmenter

__all__ = [
    "DeepEmbed",
    "HierarchicalEmbedding",
    "MappedTable",
    "PatchEmbedding",
    "WordSegmenter",
    "audio_patches",
    "character_ids",
    "image_patches",
    "write_table",
]
