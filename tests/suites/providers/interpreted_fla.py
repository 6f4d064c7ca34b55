"""Runs fla's own kernels in Triton's interpreter, on a CPU: TRITON_INTERPRET=1 must be set.

Prints, as JSON, how far outputs and gradients are from the reference, and the lists' complaint.
"""

import itertools
import json
import sys

import torch
from triton.runtime.autotuner import Autotuner

from dynbench.suites.blocklists import list_problem, shape_problem
from dynbench.suites.compare import rms_ratio
from dynbench.suites.providers.fla import BRANCHES, import_fla
from dynbench.suites.rows import cut
from dynnsiha.attention import NSAConfig, native_sparse_attention

LENGTH, HEADS, WIDTH = 70, 16, 16


def spare_tuning() -> None:
    """One configuration a kernel: there is nothing to time here."""
    modules = [module for name, module in sys.modules.items() if name.startswith("fla.")]
    for value in itertools.chain.from_iterable(vars(module).values() for module in modules):
        while value is not None:  # a kernel's decorators, the outermost first
            if isinstance(value, Autotuner):
                value.configs = value.configs[:1]
            value = getattr(value, "fn", None)


def main() -> None:
    fla = import_fla(torch.device("cpu"))
    spare_tuning()
    config = NSAConfig(
        block_size=16, compress_block=16, compress_stride=16, top_n=4, branches=BRANCHES
    )
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, LENGTH, h, WIDTH, requires_grad=True) for h in (HEADS, 1, 1))
    gates = torch.rand(1, LENGTH, HEADS, 3).requires_grad_()
    d_out = torch.randn_like(q)
    lists = fla.lists(q, k, v, gates, config)
    found = fla.attention(q, k, v, gates, config)
    wanted = native_sparse_attention(
        q, k, v, gates, config, backend="reference", block_indices=lists
    )
    named = {"o": (found.detach(), wanted.detach())}
    gradients = (torch.autograd.grad(o, (q, k, v, gates), d_out) for o in (found, wanted))
    named |= zip(("dq", "dk", "dv", "dgates"), zip(*gradients, strict=True), strict=True)
    part = cut(q.detach(), k.detach(), v.detach(), gates.detach(), config, lists, 0, 0)
    problem = shape_problem(lists, config, 1, LENGTH, 1)
    problem = problem or list_problem(part, torch.arange(LENGTH))
    errors = {name: rms_ratio(*pair) for name, pair in named.items()}
    print(json.dumps({"errors": errors, "problem": problem}))


if __name__ == "__main__":
    main()
