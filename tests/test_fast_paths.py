"""What one step multiplies, counted: a fast piece that silently stops being used shows here as work, not as time.

Counted are the matrix products below autograd, forward and backward, by their shapes. The models' sizes differ from each
other and from the numbers of tokens, so that a shape says what was multiplied. Expected counts are worked by hand.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from acclimate.generation.decode import generate
from acclimate.generation.samplers import Greedy
from acclimate.generation.score import score
from acclimate.methods import Full, Head, LoRA, QLoRA
from acclimate.methods.delta import adapt
from acclimate.models import policy
from acclimate.models.collate import collate, divide
from acclimate.models.logprobs import logprobs
from acclimate.models.outline import outline, trunk_of
from acclimate.objectives import DPO, LM
from acclimate.run import reference
from acclimate.tokens.codec import Encoded
from acclimate.tokens.pairs import Compared
from acclimate.training.frozen import cached_groups, reuse
from acclimate.training.reference import referenced
from tests import tiny

PAD, RANK = 2, 3
WIDE, HIDDEN, KEYS, HEADS, VOCAB = 32, 64, 16, 4, tiny.VOCAB  # of tiny.llama, which has two layers
LAYER = 2 * WIDE * WIDE + 2 * WIDE * KEYS + 3 * WIDE * HIDDEN  # q and o, k and v, gate, up and down: 9,216 weights
TRUNK = 2 * LAYER


class Counted(TorchDispatchMode):
    """products: (rows, inner, columns) of every matrix product. attended: (queries, keys) of each head, on the way there."""

    def __init__(self):
        super().__init__()
        self.products, self.attended = [], []

    def __torch_dispatch__(self, func, types, given=(), named=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            left, right = given[-2:]
            self.products.append((*left.shape, right.shape[1]))
        elif name in ("bmm", "baddbmm") and given[-2].shape[2] == WIDE // HEADS:  # scores written out
            left, right = given[-2:]
            self.attended += [(left.shape[1], right.shape[2])] * len(left)
        elif "scaled_dot_product" in name and "backward" not in name:
            query, key = given[:2]
            self.attended += [(query.shape[2], key.shape[2])] * (len(query) * query.shape[1])
        return func(*given, **(named or {}))

    @property
    def head(self):
        """Products with the vocabulary on a side."""
        return [product for product in self.products if VOCAB in product]

    @property
    def adapters(self):
        """Products with the rank on a side."""
        return [product for product in self.products if RANK in product]

    @property
    def trunk(self):
        """The others."""
        return [product for product in self.products if VOCAB not in product and RANK not in product]


def work(products):
    """Multiplications and additions."""
    return sum(2 * rows * inner * columns for rows, inner, columns in products)


def document(length, scored, first=0, seed=0):
    draw = torch.Generator().manual_seed(100 * seed + length + first)
    ids = (3 + first, *torch.randint(3, VOCAB, (length - 1,), generator=draw).tolist())
    return Encoded(ids, (False,) * (length - scored) + (True,) * scored)


DOCUMENTS = [document(n, k, i) for i, (n, k) in enumerate(((11, 2), (29, 5), (47, 6)))]  # 87 tokens, of them 13 scored
TOKENS, SCORED = 87, 13


def build(method=None):
    model = tiny.build("llama", torch.float32)
    model = model if method is None else adapt(model, method, seed=0)
    outline(model)  # tries the model, once
    return model.train()


def stepped(model, rows=None, objective=None):
    """What one update counts, forward and backward."""
    batch = collate(model, rows or DOCUMENTS, PAD, share=True)
    with Counted() as counted:
        (objective or LM())(model, batch).total.backward()
    return counted


# A step


def test_the_head_is_asked_at_scored_places_only():
    found = stepped(build(LoRA(rank=RANK)))
    once = 2 * SCORED * WIDE * VOCAB
    assert {rows for rows, _, _ in found.head} == {SCORED}
    assert work(found.head) == 2 * once  # forward, and the gradient of its input, which is formed there
    moving = stepped(build(Full()))
    assert (
        work(moving.head) == 4 * once
    )  # forward, once more on the way back, and the gradients of its input and of itself


def test_a_frozen_weight_gets_no_gradient():
    """The gradient of a weight is the only product that sums over all tokens: those of adapters have the rank on a side."""
    found = stepped(build(LoRA(rank=RANK, targets=("linear",))))
    assert [product for product in found.products if product[1] in (TOKENS, SCORED) and RANK not in product] == []
    summed = [product for product in found.adapters if product[1] == TOKENS]
    assert len(summed) == 2 * 2 * 7  # of A and of B, in each of seven matrices of two layers
    full = stepped(build(Full()))
    assert len([product for product in full.products if product[1] == TOKENS]) == 2 * 7


def test_lora_costs_four_times_the_trunk():
    """2 N a token there and 2 N back; nothing goes back through q, k and v of the lowest layer into the embedding."""
    found = stepped(build(LoRA(rank=RANK)))
    lowest = WIDE * (WIDE + 2 * KEYS)
    assert TRUNK == 18_432
    assert work(found.trunk) == pytest.approx(TOKENS * (4 * TRUNK - 2 * lowest), rel=0.05)
    assert work(found.trunk) < 1.05 * TOKENS * 4 * TRUNK
    adapters = 2 * RANK * (WIDE + WIDE + WIDE + KEYS)  # numbers in A and B
    assert work(found.adapters) <= TOKENS * 6 * adapters
    full = stepped(build(Full()))
    assert work(full.trunk) == pytest.approx(TOKENS * 6 * TRUNK, rel=0.05)


def test_documents_attend_to_themselves_alone():
    """Σ n² pairs and no padding: 11² + 29² + 47² = 3,171 a head and layer, not 87² = 7,569 nor 3 · 47² = 6,627."""
    model = build()
    batch = collate(model, DOCUMENTS, PAD)
    with Counted() as counted, torch.no_grad():
        logprobs(model, batch)
    assert sum(queries * keys for queries, keys in counted.attended) == 2 * HEADS * 3_171
    assert {rows for rows, _, _ in counted.trunk} == {TOKENS}


@torch.no_grad()
def test_a_preamble_and_the_question_of_several_labels_are_read_once():
    """60 ids that all begin with, then 8 questions of 9 with the end of the longer answer: 60 + 8 · 10 tokens.

    Read apart they would be 16 · 70 = 1,120, with the preamble read once but each label on its own 60 + 16 · 10 = 220.
    """
    model, shots = build(), document(60, 0).ids
    asked = [document(9, 0, n, seed=1).ids for n in range(8)]
    rows = [Encoded((*shots, *ids, label), (False,) * 69 + (True,)) for ids in asked for label in (80, 81)]
    with Counted() as counted:
        score(model, rows, PAD)
    assert {rows for rows, _, _ in counted.trunk} == {140}
    assert work(counted.trunk) == 2 * 140 * TRUNK
    assert work(counted.head) == 2 * 16 * WIDE * VOCAB


# Comparisons


def pair(number=0, prompt=70):
    """A prompt with completions of 5 and of 8 ids."""
    asked = document(prompt, 0, number).ids
    rows = [document(n, n, 30 + n, seed=number) for n in (5, 8)]  # which begin apart
    both = [Encoded(asked + row.ids, (False,) * prompt + (True,) * n) for row, n in zip(rows, (5, 8), strict=True)]
    return Compared(tuple(both), (1, 2), f"f:{number}")


def compared(model, rows):
    """The batches of one step, as a run has them."""
    asked = SimpleNamespace(recipe=SimpleNamespace(objective=DPO()), codec=SimpleNamespace(pad=PAD))
    parts = divide(model, range(len(rows)), [row.size for row in rows], 4096)
    return reference.batches(asked, model, rows, parts)


def test_a_prompt_is_read_once_for_chosen_and_rejected():
    """70 + 5 + 8 = 83 tokens, not 153: by the reference, by the policy, and on the way back."""
    model = build(LoRA(rank=RANK))
    with Counted() as asked:
        (batch,) = compared(model, [pair()])
    assert work(asked.trunk) == 2 * 83 * TRUNK
    with Counted() as counted:
        DPO()(model, batch).total.backward()
    lowest = WIDE * (WIDE + 2 * KEYS)
    assert work(counted.trunk) == pytest.approx(83 * (4 * TRUNK - 2 * lowest), rel=0.05)
    assert {rows for rows, _, _ in counted.head} == {13}


def test_a_reference_is_asked_once(tmp_path):
    """What the base said is known by content: in the second epoch and for another β nothing is multiplied for it."""
    model, rows = build(Full()), [pair(n) for n in range(3)]
    with Counted() as first:
        known = referenced(rows, model, PAD, tmp_path / "reference.json", "base")
    assert work(first.trunk) == 3 * 2 * 83 * TRUNK
    with Counted() as again:
        compared(model, known)
        referenced(rows, model, PAD, tmp_path / "reference.json", "base")
    assert again.products == []


# What does not move


def test_after_the_first_epoch_a_frozen_trunk_multiplies_nothing():
    model = build(Head())
    once = [[(0, 1, 2)], [(2, 0)], [(1,), (2,)]]
    assert reuse(model, DOCUMENTS, once).possible
    made = cached_groups(model, once, lambda part: collate(model, [DOCUMENTS[i] for i in part], PAD, part))
    counts = []
    for _ in once:
        with Counted() as counted:
            for batch in next(made):
                LM()(model, batch).total.backward()
        counts.append(
            (work(counted.trunk), len(counted.attended), sorted({rows for rows, *_ in counted.head} - {VOCAB}))
        )
    assert counts == [(2 * TOKENS * TRUNK, len(DOCUMENTS) * 2 * HEADS, [13]), (0, 0, [8]), (0, 0, [5, 6])]


def test_a_quantised_weight_is_not_kept_wide():
    """What the way back needs of a weight is its four bits; it is made again there."""
    wide = {(WIDE, WIDE), (KEYS, WIDE), (HIDDEN, WIDE), (WIDE, HIDDEN)}
    kept = []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    for method in (QLoRA(rank=RANK), LoRA(rank=RANK, targets=("linear",))):
        model = build(method)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            LM()(model, collate(model, DOCUMENTS, PAD))
        found = [shape for shape in kept if shape in wide or shape[::-1] in wide]
        assert bool(found) == isinstance(method, LoRA)


def test_logits_are_not_kept():
    """Neither tokens × vocabulary nor scored × vocabulary waits for the way back."""
    model, kept = build(LoRA(rank=RANK)), []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        LM()(model, collate(model, DOCUMENTS, PAD))
    assert [shape for shape in kept if shape and shape[-1] == VOCAB and shape[0] in (SCORED, TOKENS)] == []
    assert len(kept) > 20


# Decoding


def test_a_row_that_is_done_leaves_the_batch():
    """The trunk reads the prompts, and every token that is drawn but the last of each row; counted where it is entered,
    since compiled products do not pass through the dispatcher."""
    model, prompts, read = build().eval(), [document(12, 0, n).ids for n in range(6)], []

    def written(ends):
        read.clear()
        return generate(model, prompts, Greedy(), terminators=frozenset(ends), max_new=10, pad=PAD)

    def look(module, given, named):
        read.append(named["input_ids"].numel())

    handle = trunk_of(model).register_forward_pre_hook(look, with_kwargs=True)
    free = [row.ids for row in written(())]
    assert sum(read) == 6 * (12 + 10 - 1)
    firsts = {token: [row.index(token) if token in row else 10 for row in free] for row in free for token in row}
    end = max(firsts, key=lambda token: len(set(firsts[token])))
    drawn = [min(place + 1, 10) for place in firsts[end]]
    assert len(set(drawn)) > 1
    found = written((end,))
    handle.remove()
    assert [len(row.ids) + (row.end >= 0) for row in found] == drawn
    assert sum(read) == 6 * 12 + sum(drawn) - 6


# Completions to learn from


def test_the_prompt_of_a_group_is_read_once():
    """Four completions of each of two prompts: 2 · 12 ids when they are sampled, and 2 · 12 + 8 · 5 when they are judged."""
    model, read = build().eval(), []
    prompts = [document(12, 0, n).ids for n in range(2)]
    handle = trunk_of(model).register_forward_pre_hook(
        lambda _, given, named: read.append(named["input_ids"].numel()), with_kwargs=True
    )
    generate(
        model, [prompt for prompt in prompts for _ in range(4)], Greedy(), terminators=frozenset(), max_new=1, pad=PAD
    )
    assert read == [2 * 12]
    read.clear()
    said = [document(5, 0, 30 + n).ids for n in range(8)]
    rows = [Encoded(prompts[n // 4] + ids, (False,) * 12 + (True,) * 5) for n, ids in enumerate(said)]
    with torch.no_grad():
        policy.score_to_the_end(model, collate(model, rows, PAD, share=True))
    assert read == [2 * 12 + 8 * 5]
    policy.add_value_head(model)
    with torch.no_grad():
        policy.score_to_the_end(model, collate(model, rows, PAD, share=True))
    handle.remove()
    assert read[1:] == read[:1]  # the value after the last token comes from the same pass
