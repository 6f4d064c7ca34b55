"""Layers whose function depends on the input, and the positions that are applied after them."""

from dynnsiha.synthesis.rotary import apply_rotary, rotary_tables
from dynnsiha.synthesis.sbl import SparseBayesianLinear, activation_rate

__all__ = ["SparseBayesianLinear", "activation_rate", "apply_rotary", "rotary_tables"]
