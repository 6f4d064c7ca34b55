"""``python -m dynnsiha.learning``: train a small model on the Python standard library's sources."""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dynnsiha.learning", description=__doc__)
    add = parser.add_argument
    add("--form", choices=get_args(FormKind), default="blocks")
    add("--attention", choices=get_args(AttentionKind), default="dynnsiha")
    add("--feed-forward", choices=get_args(FeedForwardKind), default="swiglu")
    add("--experts", type=int, default=16, help="of --form flat and recursive, of each kind")
    add("--active-experts", type=int, default=2, help="of them, those that a character takes")
    add("--modules", nargs="*", default=[], metavar="NAME", help="modules to read; all if none")
    add("--steps", type=int, default=600)
    add("--d-model", type=int, default=128)
    add("--layers", type=int, default=2, help="blocks, or steps of --form recursive")
    add("--heads", type=int, default=4)
    add("--seq-len", type=int, default=256)
    add("--batch", type=int, default=16)
    add("--optimizer", choices=("adamw", "rmsuon"), default="rmsuon")
    add("--lr", type=float, default=5e-3)
    add("--surprise", type=float, default=0.0, metavar="WEIGHT", help="of SML: sparse neurons")
    add("--kl", type=float, default=0.0, metavar="WEIGHT", help="sparse Bayesian layers")
    add("--sars", type=float, default=0.0, metavar="WEIGHT", help="neurons and experts")
    add("--sign", choices=("plus", "minus"), default="plus", help="of SARS")
    add("--fars", type=float, default=0.0, metavar="WEIGHT", help="neurons and experts")
    add("--alignment", type=float, default=0.0, metavar="WEIGHT", help="sparse attention's choice")
    add("--out", metavar="FOLDER", help="for the log and the checkpoint")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
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
    torch.manual_seed(options.seed)
    text = library_text(options.modules)
    cut = int(len(text) * (1 - _HELD_OUT_SHARE))
    segmenter = WordSegmenter.build([text[:cut]], max_words=8192)
    try:
        model = DynNSIHALanguageModel(model_config(options, segmenter.num_ids))
    except ValueError as error:
        parser.error(str(error))
    model = model.to(options.device)
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
    try:
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
    except (ValueError, FileExistsError) as error:  # such as a loss on layers that are not there
        parser.error(str(error))
    counted, predicted = (character_ids(part, CHAR_VOCAB) for part in (text[:cut], text[cut:]))
    print(f"held-out text, nats a character ({len(predicted)} characters)")
    print(f"  model                          {evaluate(model, held_out, batches=16):.3f}")
    print(f"  bigrams of the training text   {bigram_loss(predicted, counted, 0.01):.3f}")
    print(f"  bigrams of the same text       {bigram_loss(predicted):.3f}")


if __name__ == "__main__":
    main()
