"""A case in torch's terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dynbench.harness.case import Case
from dynbench.harness.subject import Unavailable
from dynbench.suites.settings import config_from
from dynnsiha.attention.config import NSAConfig


@dataclass(frozen=True)
class Spec:
    """Shapes, dtype, device and configuration of one case.

    Attributes:
        batch, seq_len, q_heads, kv_heads, head_dim: B, T, H, K, D.
        model_dim: width of x; 0 in suite ``attention``.
        layers: blocks of the model; 0 where none is measured.
        inputs: distribution of the inputs; empty where a task says what is read.
        config: of the sparse core; None for dense attention.
        differentiated: whether the pass needs gradients.
    """

    provider: str
    pass_: str
    batch: int
    seq_len: int
    q_heads: int
    kv_heads: int
    head_dim: int
    model_dim: int
    layers: int
    inputs: str
    seed: int
    dtype: torch.dtype
    device: torch.device
    config: NSAConfig | None

    @classmethod
    def of(cls, case: Case) -> Spec:
        """The case's own. Raises Unavailable if torch sees no such device."""
        if case.device == "cuda" and not torch.cuda.is_available():
            raise Unavailable("torch sees no CUDA device: install a CUDA build of torch")
        work = case.workload
        return cls(
            provider=case.provider,
            pass_=case.pass_,
            batch=int(work["batch"]),
            seq_len=int(work["seq_len"]),
            q_heads=int(work["q_heads"]),
            kv_heads=int(work["kv_heads"]),
            head_dim=int(work["head_dim"]),
            model_dim=int(work.get("model_dim", 0)),
            layers=int(work.get("layers", 0)),
            inputs=str(work.get("inputs", "")),
            seed=int(work["seed"]),
            dtype=getattr(torch, case.dtype),
            device=torch.device(case.device),
            config=config_from(case.settings),
        )

    @property
    def group(self) -> int:
        """Query heads that share a key/value head (G)."""
        return self.q_heads // self.kv_heads

    @property
    def differentiated(self) -> bool:
        """Whether the pass computes gradients."""
        return self.pass_ != "forward"
