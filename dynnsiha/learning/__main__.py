"""``python -m dynnsiha.learning``: train a small model on the Python standard library's sources."""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch

from dynnsiha.attention import NSAConfig
from dynnsiha.embedding import WordSegmenter, character_ids
from dynnsiha.learning.bigram import bigram_loss
from dynnsiha.learning.fars import FisherAwareRoutingShaping
from dynnsiha.learning.fit import evaluate, fit
from dynnsiha.learning.objective import Objective
from dynnsiha.learning.rmsuon import RMSuon
from dynnsiha.learning.sars import SurpriseAwareRoutingShaping
from dynnsiha.learning.schedule import warmup_cosine
from dynnsiha.learning.windows import TextWindows
from dynnsiha.model import DynNSIHALanguageModel
from dynnsiha.model_config import AttentionKind, DynNSIHAConfig, FeedForwardKind, FormKind

CHAR_VOCAB = 256
_HELD_OUT_SHARE = 0.05
# Blocks that a window of a few hundred characters has enough of to choose from.
_SMALL_BLOCKS = NSAConfig(
    block_size=16,
    compress_block=16,
    compress_stride=16,
    top_n=6,
    local_blocks=2,
    window=64,
    query_tile=4,
    private_blocks=2,
)


def library_text(modules: Sequence[str] = ()) -> str:
    """Sources of the named standard-library modules, of all at the top level if none is named.

    Raises:
        FileNotFoundError: a name has no ``.py`` file there.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [folder / f"{name}.py" for name in modules] or sorted(folder.glob("*.py"))
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as the library's are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _device(name: str) -> str:
    """The name of a device that is here."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter where torch knows no GPU at all
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{name!r} is not here ({reason}); take cpu") from error
    return name


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m dynnsiha.learning",
        description="Train a small model on the Python standard library's sources.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--form", choices=get_args(FormKind), default="blocks", help="of the model")
    add("--attention", choices=get_args(AttentionKind), default="dynnsiha", help="of each layer")
    add(
        "--feed-forward",
        choices=get_args(FeedForwardKind),
        default="swiglu",
        help="of each layer of --form blocks",
    )
    add("--experts", type=int, default=16, help="of --form flat and recursive, of each kind")
    add("--active-experts", type=int, default=2, help="of them, those that a character takes")
    add("--modules", nargs="*", default=[], metavar="NAME", help="modules to read; all if none")
    add("--steps", type=int, default=600, help="optimizer steps")
    add("--d-model", type=int, default=128, help="width of the model")
    add("--layers", type=int, default=2, help="blocks, or steps of --form recursive")
    add("--heads", type=int, default=4, help="query heads of a layer")
    add("--seq-len", type=int, default=256, help="characters of a window")
    add("--batch", type=int, default=16, help="windows a step")
    add("--optimizer", choices=("adamw", "rmsuon"), default="rmsuon", help="what trains it")
    add("--lr", type=float, default=5e-3, help="peak learning rate")
    weight: dict[str, Any] = {"type": float, "default": 0.0, "metavar": "WEIGHT"}
    add("--surprise", **weight, help="of SML: sparse neurons")
    add("--kl", **weight, help="of the KL term: sparse Bayesian layers")
    add("--sars", **weight, help="of SARS: neurons and experts")
    add("--sign", choices=("plus", "minus"), default="plus", help="of goodness in SARS")
    add("--fars", **weight, help="of FARS: neurons and experts")
    add("--alignment", **weight, help="of the alignment loss: sparse attention's choice of blocks")
    add("--out", metavar="FOLDER", help="for the log and the checkpoint; neither if not given")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--seed", type=int, default=0, help="of parameters and batches")
    add("--device", type=_device, default="cpu", help="cpu, cuda or cuda:1, say")
    return parser


def model_config(options: Any, word_vocab: int) -> DynNSIHAConfig:
    """The model of the command line's options.

    Raises:
        ValueError: parts that do not go together.
    """
    parts = ("form", "attention", "feed_forward", "d_model", "layers", "heads")
    return DynNSIHAConfig(
        char_vocab=CHAR_VOCAB,
        word_vocab=word_vocab,
        nsa=_SMALL_BLOCKS,
        experts=options.experts,
        active_experts=options.active_experts,
        **{name: getattr(options, name) for name in parts},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train and print the loss on held-out text beside that of two bigram models."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        _train(options)
    except (ValueError, OSError) as error:  # such as parts that do not go together
        parser.error(str(error))


def _train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    text = library_text(options.modules)
    cut = int(len(text) * (1 - _HELD_OUT_SHARE))
    segmenter = WordSegmenter.build([text[:cut]], max_words=8192)
    train, held_out = (
        TextWindows.of(
            part,
            segmenter,
            char_vocab=CHAR_VOCAB,
            seq_len=options.seq_len,
            batch=options.batch,
            seed=options.seed,
        )
        for part in (text[:cut], text[cut:])
    )
    model = DynNSIHALanguageModel(model_config(options, segmenter.num_ids)).to(options.device)
    kind = RMSuon if options.optimizer == "rmsuon" else torch.optim.AdamW
    optimizer = kind(model.parameters(), lr=options.lr)
    objective = Objective(
        surprise_weight=options.surprise,
        kl_weight=options.kl,
        sars=SurpriseAwareRoutingShaping(options.sign) if options.sars else None,
        sars_weight=options.sars,
        fars=FisherAwareRoutingShaping(optimizer) if options.fars else None,
        fars_weight=options.fars,
        alignment_weight=options.alignment,
    )
    fit(
        model,
        train,
        optimizer,
        steps=options.steps,
        objective=objective,
        schedule=warmup_cosine(options.steps, warmup=min(50, options.steps // 10)),
        out=options.out,
        resume=options.resume,
    )
    counted, predicted = (character_ids(part, CHAR_VOCAB) for part in (text[:cut], text[cut:]))
    print(f"held-out text, nats a character ({len(predicted)} characters)")
    print(f"  model                          {evaluate(model, held_out, batches=16):.3f}")
    print(f"  bigrams of the training text   {bigram_loss(predicted, counted, 0.01):.3f}")
    print(f"  bigrams of the same text       {bigram_loss(predicted):.3f}")


if __name__ == "__main__":
    main()
