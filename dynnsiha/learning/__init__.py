"""Learning the gates: auxiliary losses, an optimizer, and a loop that trains with them."""

from dynnsiha.learning.alignment import (
    SelectionCall,
    record_selection,
    selection_alignment_loss,
)
from dynnsiha.learning.batches import Batches
from dynnsiha.learning.bigram import bigram_loss
from dynnsiha.learning.calls import ExpertCall, NeuronCall, RoutedCall
from dynnsiha.learning.checkpoint import load_checkpoint, save_checkpoint
from dynnsiha.learning.dense_warmup import DenseWarmup
from dynnsiha.learning.fars import FisherAwareRoutingShaping
from dynnsiha.learning.fit import Evaluation, FitResult, evaluate, fit
from dynnsiha.learning.gradient_norms import expert_gradient_norms, neuron_gradient_norms
from dynnsiha.learning.kl import kl_divergence_loss, output_entropy
from dynnsiha.learning.log import read_log
from dynnsiha.learning.newton_schulz import newton_schulz
from dynnsiha.learning.objective import Losses, Objective, total_loss
from dynnsiha.learning.rmsuon import RMSuon
from dynnsiha.learning.routed import record_routing, watch_routing
from dynnsiha.learning.sars import SurpriseAwareRoutingShaping
from dynnsiha.learning.schedule import warmup_cosine
from dynnsiha.learning.second_order import twice_differentiable
from dynnsiha.learning.surprise import surprise_minimization_loss
from dynnsiha.learning.windows import TextWindows

__all__ = [
    "Batches",
    "DenseWarmup",
    "Evaluation",
    "ExpertCall",
    "FisherAwareRoutingShaping",
    "FitResult",
    "Losses",
    "NeuronCall",
    "Objective",
    "RMSuon",
    "RoutedCall",
    "SelectionCall",
    "SurpriseAwareRoutingShaping",
    "TextWindows",
    "bigram_loss",
    "evaluate",
    "expert_gradient_norms",
    "fit",
    "kl_divergence_loss",
    "load_checkpoint",
    "neuron_gradient_norms",
    "newton_schulz",
    "output_entropy",
    "read_log",
    "record_routing",
    "record_selection",
    "save_checkpoint",
    "selection_alignment_loss",
    "surprise_minimization_loss",
    "total_loss",
    "twice_differentiable",
    "warmup_cosine",
    "watch_routing",
]
