"""Fastfood against the dense product of the paper's matrices; DID and SAID by hand."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from acclimate.errors import RecipeError
from acclimate.interchange.adapter import load_adapter, save_adapter
from acclimate.methods import DID, SAID, artifact, fastfood
from acclimate.methods.delta import adapt, merged, trainable
from acclimate.methods.fastfood import hadamard, mixed, normal, padded, permutation, project
from acclimate.methods.intrinsic import layer_of
from acclimate.methods.targets import find, width
from acclimate.models.fingerprint import fingerprint
from tests import tiny
from tests.adapted import answers, changed, close, train

CPU = torch.device("cpu")
MASK = (1 << 64) - 1
PINNED = [2.37558809, 1.88293769, -2.11302967, -2.60568007, 2.05306773, 0.55213574]


def sylvester(size: int) -> Tensor:
    """H by its definition: the sign of the number of ones that row and column share."""
    places = torch.arange(size)
    shared = places[:, None] & places
    for half in (8, 4, 2, 1):
        shared = shared ^ (shared >> half)
    return 1.0 - 2.0 * (shared & 1).double()


def split_mix(state: int, count: int) -> list[int]:
    """SplitMix64 as its authors print it, on unsigned numbers."""
    made = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        made.append(z ^ (z >> 31))
    return made


def dense(size: int, d: int, count: int, total: int, seed: int, stream: int) -> Tensor:
    """(count, d): the rows of P, each block the product S H G Π H B of whole matrices."""
    blocks = -(-count // size)
    bits = mixed(seed, stream, blocks * size, CPU).view(blocks, size)
    order, h = permutation(seed, stream, size, CPU), sylvester(size)
    shuffled = torch.eye(size).double()[order]
    made = []
    for row in bits:
        g, b = (
            torch.diag(normal(row).double()),
            torch.diag(torch.tensor([1.0 if x % 2 else -1.0 for x in row.tolist()])),
        )
        block = h @ g @ shuffled @ h @ b.double()
        unit = block / block.norm(dim=1, keepdim=True)
        made.append(unit * math.sqrt(size / total))
    return torch.cat(made)[:count, :d]


@pytest.mark.parametrize("size", [1, 2, 4, 32, 64, 2048])
def test_hadamard_is_the_dense_product(size: int) -> None:
    x = torch.randn(3, size, dtype=torch.float64)
    assert close(hadamard(x), x @ sylvester(size))
    assert close(hadamard(hadamard(x)), size * x)


def test_the_random_bits_are_splitmix64() -> None:
    """The first three numbers of seed 1234567 as they are printed in many places."""
    assert split_mix(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for seed, stream in ((0, 0), (7, 3), (-5, 2**40)):
        (inner,) = split_mix(stream & MASK, 1)
        (state,) = split_mix((seed & MASK) ^ inner, 1)
        wanted = [z - (1 << 64) if z >> 63 else z for z in split_mix(state, 9)]
        assert mixed(seed, stream, 9, CPU).tolist() == wanted
        assert mixed(seed, stream, 4, CPU, start=5).tolist() == wanted[5:]


def test_what_a_seed_means_never_changes() -> None:
    """Artifacts hold the seed in place of P."""
    made = project(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64), 6, 6, 0, 0)
    assert made.tolist() == pytest.approx(PINNED, abs=1e-6)


def test_numbers_are_normal_and_signs_are_fair() -> None:
    bits = mixed(0, 1, 200_000, CPU)
    z, signs = normal(bits).double(), (bits & 1).double() * 2 - 1
    assert abs(float(z.mean())) < 0.01
    assert abs(float(z.var()) - 1) < 0.02
    assert abs(float((z**4).mean()) - 3) < 0.1
    assert abs(float(signs.mean())) < 0.01
    assert abs(float((z[1:] * z[:-1]).mean())) < 0.01
    assert abs(float((signs * z).mean())) < 0.01
    assert z.isfinite().all()
    other = normal(mixed(0, 2, 200_000, CPU)).double()
    assert abs(float((z * other).mean())) < 0.01


@pytest.mark.parametrize(("d", "count"), [(1, 3), (3, 5), (8, 8), (5, 37), (16, 100), (40, 129)])
def test_projection_is_the_dense_product(d: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = dense(padded(d), d, count, 500, seed=3, stream=1)
    theta = torch.randn(d, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(count, dtype=torch.float64)
    for chunk in (1, 64, 1 << 16):  # numbers that are drawn at a time
        monkeypatch.setattr(fastfood, "CHUNK", chunk)
        made = project(theta, count, 500, 3, 1)
        (gradient,) = torch.autograd.grad(made @ weights, theta)
        assert close(made.detach(), p @ theta.detach())
        assert close(gradient, p.T @ weights)


def test_pieces_and_seeds_are_unlike() -> None:
    theta = torch.ones(8, dtype=torch.float64)
    made = [project(theta, 64, 64, seed, stream) for seed, stream in ((0, 0), (0, 1), (1, 0))]
    assert not any(close(made[i], made[j], 0.1) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(permutation(0, s, 64, CPU).sort().values.tolist() == list(range(64)) for s in (0, 1))
    assert not torch.equal(permutation(0, 0, 64, CPU), permutation(0, 1, 64, CPU))


def test_lengths_are_kept() -> None:
    """Columns have length 1 in the mean, and so has P θ for a θ of length 1; different columns are nearly orthogonal."""
    d, total = 20, 40 * 32
    p = torch.cat([dense(32, d, 32, total, seed=1, stream=s) for s in range(40)])
    assert p.norm(dim=0).square().mean() == pytest.approx(1, abs=0.02)
    theta = torch.randn(d, dtype=torch.float64)
    made = torch.cat([project(theta, 32, total, 1, s) for s in range(40)])
    assert float(made.norm() / theta.norm()) == pytest.approx(1, abs=0.1)
    products = p.T @ p - torch.diag((p.T @ p).diag())
    assert products.abs().max() < 0.2
    lengths = [float(project(theta, 300, 300, seed, 0).norm() / theta.norm()) ** 2 for seed in range(200)]
    assert sum(lengths) / 200 == pytest.approx(1, abs=0.03)


def pieces(model: nn.Module) -> list[tuple[str, Tensor]]:
    """(path, ΔW) of every linear layer, as (d_out, d_in)."""
    found = find(model, ("linear",))
    return [(path, linear.delta["default"].change().detach()) for path, linear in found.items()]


def test_did_moves_every_matrix_by_its_piece() -> None:
    model = adapt(tiny.build("gpt2"), DID(11, projection=5))
    before = {path: linear.weight.clone() for path, linear in find(model, ("linear",)).items()}
    (theta,) = trainable(model).values()
    assert theta.shape == (11,)
    theta.data.normal_()
    linears = find(model, ("linear",))
    total = sum(width(m).d_in * width(m).d_out for m in linears.values())
    for stream, (path, change) in enumerate(pieces(model)):
        assert close(change.flatten(), project(theta.detach(), change.numel(), total, 5, stream)), path
    with merged(model):
        for path, change in pieces(model):
            assert close(linears[path].weight, before[path] + change.T)  # Conv1D holds (d_in, d_out)
    whole = torch.cat([change.flatten() for _, change in pieces(model)])
    assert float(whole.norm() / theta.detach().norm()) == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("method", [DID(9), SAID(9)])
def test_one_theta_is_shared_whatever_happens(method: DID | SAID) -> None:
    model = adapt(tiny.build("t5", torch.float32), method)
    train(model)
    for moved in (model, copy.deepcopy(model), model.double(), model.to("cpu").float()):
        (theta,) = trainable(moved).values()
        assert all(linear.delta["default"].theta is theta for linear in find(moved, ("linear",)).values())
    assert len(artifact.tensors(model)) == 1
    twin = copy.deepcopy(model)
    assert next(iter(trainable(twin).values())) is not next(iter(trainable(model).values()))


def test_bases_of_two_precisions_share_as_well() -> None:
    model = tiny.build("llama", torch.bfloat16)
    model.model.layers[1].float()
    adapt(model, DID(4))
    assert len(trainable(model)) == 1


def test_said_scales_each_layer() -> None:
    """llama has two layers: 12 numbers are 10 of θ and the scales of the layers."""
    model = adapt(tiny.build("llama"), SAID(12))
    (theta,) = trainable(model).values()
    assert theta.tolist() == [0.0] * 10 + [1.0] * 2
    plain = adapt(tiny.build("llama"), DID(10))
    with torch.no_grad():
        theta[:10] = torch.randn(10, dtype=torch.float64)
        next(iter(trainable(plain).values())).copy_(theta[:10])
    assert close(answers(model), answers(plain))
    with torch.no_grad():
        theta[11] = -2.5
    for (path, change), (_, same) in zip(pieces(model), pieces(plain), strict=True):
        assert close(change, same * (-2.5 if path.startswith("model.layers.1.") else 1))


def test_layers_of_encoder_and_decoder_have_scales_of_their_own() -> None:
    for build, layers in (("t5", 4), ("bart", 4), ("bert", 2)):
        model = tiny.build(build)
        assert len({layer_of(path) for path in find(model, ("linear",))}) == layers
        with pytest.raises(
            RecipeError, match=rf"{layers} numbers are the scales .* at least {layers + 1} have to train"
        ):
            adapt(model, SAID(layers))
        adapt(model, SAID(layers + 1))
    with pytest.raises(RecipeError, match="did has dimension 0"):
        adapt(tiny.build("llama"), DID(0))


@pytest.mark.parametrize("method", [DID(16, projection=3), SAID(16, projection=3, targets=("query", "down"))])
def test_the_artifact_is_the_numbers_and_the_seed(method: DID | SAID, tmp_path: Path) -> None:
    model = tiny.build("llama", torch.float32)
    facts = {"base": fingerprint(model)}
    adapt(model, method, seed=1)
    train(model)
    save_adapter(model, method, tmp_path / "kept", facts)
    (kept,) = artifact.read(tmp_path / "kept")[0].values()
    assert kept.shape == (16,)
    again = tiny.build("llama", torch.float32)
    assert load_adapter(again, tmp_path / "kept")[0] == method
    assert torch.equal(answers(again), answers(model))


def test_the_subspace_depends_on_its_seed_alone() -> None:
    made = []
    for seed, projection in ((0, 0), (1, 0), (0, 1)):
        model = adapt(tiny.build("llama"), DID(8, projection), seed=seed)
        next(iter(trainable(model).values())).data.fill_(1.0)
        made.append(dict(pieces(model)))
    assert not changed(made[0], made[1])
    assert changed(made[0], made[2]) == set(made[0])


def test_more_dimensions_learn_more() -> None:
    def after(dimension: int) -> float:
        model = adapt(tiny.build("llama"), DID(dimension))
        optimizer = torch.optim.Adam(trainable(model).values(), lr=0.05)
        ids = torch.arange(3, 11)[None].repeat(2, 1)
        for _ in range(12):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(tiny.logits(model, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    few, many = after(2), after(300)
    assert many < 0.7 * few
