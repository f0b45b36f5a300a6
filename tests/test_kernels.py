"""The compiled products equal float64 sums, give way where they must, and are what decoding uses; so is the roomy cache."""

import ctypes

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from acclimate.cli.inspect import show_environment
from acclimate.generation.decode import generate
from acclimate.generation.draft import Generated
from acclimate.generation.samplers import Beam, Greedy, Sampler
from acclimate.methods import LoRA
from acclimate.methods.delta import adapt, using
from acclimate.models import building, cache, kernels, precision
from acclimate.models import prefill as streams
from acclimate.models.memory import RoomyLayer, make_room
from tests.tiny import build

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [2, 20, 21], [30, 2, 2, 33, 34], [40, 41, 2], [50, 51, 52, 53]]
LINEARS = {"llama": 15, "gpt2": 1, "qwen2": 15, "t5": 33}  # of two layers and the head; t5 has an encoder too
COMPILED = isinstance(kernels.library(), ctypes.CDLL)
compiled = pytest.mark.skipif(not COMPILED, reason=f"no kernels here: {kernels.library()}")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The kernels serve up to 20 rows, whatever the self-test finds; the shapes they were given are listed."""
    calls: list[tuple[int, ...]] = []
    plain = kernels.product

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(tuple(x.shape))
        return plain(x, weight, bias)

    monkeypatch.setattr(kernels, "product", counted)
    monkeypatch.setattr(kernels, "limit", lambda dtype: 20 if dtype in kernels.DTYPES else 0)
    return calls


def write(model: nn.Module, sampler: Sampler | Beam, ends: frozenset[int] = frozenset()) -> list[Generated]:
    return generate(model, PROMPTS, sampler, terminators=ends, max_new=10, pad=0)


def plainly(monkeypatch: pytest.MonkeyPatch, model: nn.Module, sampler: Sampler | Beam, ends: frozenset[int]) -> list:
    """What the same loop writes with transformers' own cache and PyTorch's own products."""
    with monkeypatch.context() as patch:
        patch.setattr(cache, "products", lambda modules, otherwise: {})
        for module in (cache, streams):
            patch.setattr(module, "make_room", lambda cache: cache)
        return write(model, sampler, ends)


@compiled
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 27, 32, 45, 64, 67])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 5), (16, 6), (33, 13), (64, 49), (96, 28), (576, 31)])
def test_products_equal_float64_sums(dtype: torch.dtype, rows: int, k: int, n: int) -> None:
    """Rounding: float32 sums of k terms of size about 1, and one rounding to 8 bits where the dtype is bfloat16."""
    torch.manual_seed(rows * k + n)
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((rows, k), (n, k), (n,)))
    sums = [[sum(a * b for a, b in zip(one, other)) for other in weight.tolist()] for one in x.tolist()]
    exact = torch.tensor(sums, dtype=torch.float64)
    for offset in (None, bias):
        shifted = exact if offset is None else exact + offset.double()
        got = kernels.product(x, weight, offset)
        assert got.dtype == dtype
        assert got.shape == (rows, n)
        bound = 1e-6 * k**0.5 * 4 + (shifted.abs() / 2**8 if dtype == torch.bfloat16 else 1e-6 * shifted.abs())
        assert bool(((got.double() - shifted).abs() <= bound).all())


@compiled
def test_bfloat16_is_rounded_as_pytorch_rounds_and_nan_goes_through() -> None:
    x = torch.eye(4, dtype=torch.bfloat16)
    weight = torch.tensor([[1.0, -2.5, 3e38, 1e-40], [torch.nan, 0, 0, 0]], dtype=torch.bfloat16)
    for times in (1, 20):  # so that some are rounded by themselves, others side by side
        got = kernels.product(x, weight.repeat(times, 1))
        assert torch.equal(got[:, ::2], weight[:1].t().expand(4, times))
        assert bool(got[:, 1::2].isnan().all())
    ties = torch.tensor([[1.0, 2**-8], [1.0 + 2**-7, 2**-8]], dtype=torch.bfloat16)
    assert kernels.product(torch.ones(1, 2, dtype=torch.bfloat16), ties).tolist() == [[1.0, 1.0 + 2**-6]]


@compiled
@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize("sampler", [Greedy(), Beam(3)])
def test_what_is_written_equals_the_plain_path_while_rows_end_apart(
    name: str, sampler: Sampler | Beam, chosen: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name, torch.float32)
    free = plainly(monkeypatch, model, Greedy(), frozenset())
    ends = frozenset({free[0].ids[2], free[3].ids[5]})
    wanted = plainly(monkeypatch, model, sampler, ends)
    assert not chosen
    got = write(model, sampler, ends)
    assert chosen
    assert len({len(one.ids) for one in got}) > 1
    assert [(one.ids, one.finish) for one in got] == [(one.ids, one.finish) for one in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@compiled
@pytest.mark.parametrize("name", LINEARS)
def test_every_linear_layer_of_every_step_is_served(name: str, chosen: list[tuple[int, ...]]) -> None:
    """10 tokens are one reading of the prompts, too many rows at once, and 9 steps; its head reads 6 rows as well."""
    model = build(name, torch.float32)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == LINEARS[name]
    write(model, Greedy())
    decoding = {"t5": 2 * (4 + 2 + 2) + 1}.get(name, len(linears))  # keys and values of the encoder are read once
    steps = [shape for shape in chosen if shape[:2] == (6, 1)]
    assert len(steps) >= 9 * decoding
    assert all("forward" not in vars(module) for module in linears)


@compiled
def test_a_delta_rides_on_a_served_layer(chosen: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", torch.float32)
    base = write(model, Greedy())
    adapt(model, LoRA(rank=2, alpha=8.0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    wanted = plainly(monkeypatch, model, Greedy(), frozenset())
    chosen.clear()
    got = write(model, Greedy())
    assert len(chosen) >= 9 * LINEARS["llama"]
    assert [one.ids for one in got] == [one.ids for one in wanted]
    assert [one.ids for one in got] != [one.ids for one in base]
    with using(model, None):
        assert [one.ids for one in write(model, Greedy())] == [one.ids for one in base]


@compiled
def test_what_is_no_plain_layer_of_a_known_dtype_is_left_alone(chosen: list[tuple[int, ...]]) -> None:
    class Louder(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    taken = nn.Linear(3, 2)
    vars(taken)["forward"] = lambda input: input
    assert kernels.products([Louder(3, 2), taken, nn.Linear(3, 2).double(), nn.Identity()], {}) == {}
    layer, x = nn.Linear(3, 2), torch.randn(9, 3)
    with kernels.using(kernels.products([layer], {})), torch.no_grad():
        layer(x.repeat(3, 1))  # too many rows
        layer.weight.data = torch.randn(3, 2).T
        wanted = nn.functional.linear(x[:2], layer.weight, layer.bias)
        assert torch.equal(layer(x[:2]), wanted)
        assert not chosen
        layer.weight.data = layer.weight.contiguous()
        assert torch.allclose(layer(x[:2]), wanted)
    assert len(chosen) == 1
    layer(x[:2]).sum().backward()  # outside, PyTorch's own again
    assert layer.weight.grad is not None


@pytest.mark.parametrize("broken", ["absent", "failing"])
def test_without_a_compiler_the_plain_path_stays_and_env_says_so(
    broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "rate", lambda dtype: 1e9)
    monkeypatch.setattr(building, "COMPILER", {"absent": "no-such-compiler", "failing": "false"}[broken])
    kernels.library.cache_clear()
    kernels.limit.cache_clear()
    try:
        model = build("llama", torch.float32)
        assert kernels.products(model.modules(), {}) == {}
        assert len(write(model, Greedy())) == len(PROMPTS)
        show_environment(as_json=False)
        said = {"absent": "no-such-compiler is not installed", "failing": "false does not build them"}[broken]
        assert said in capsys.readouterr().out
        assert not list(tmp_path.rglob("*.so"))
    finally:
        kernels.library.cache_clear()
        kernels.limit.cache_clear()


@compiled
def test_the_self_test_takes_what_is_faster_and_is_asked_once_a_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    times = iter([[3.0, 1.0], [3.0, 2.0], [3.0, 2.9]] + [[3.0, 1.0]] * len(kernels.PROBED))
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "fastest", lambda *works: next(times))
    kernels.library.cache_clear()
    try:
        for _ in range(3):  # as three processes would
            kernels.limit.cache_clear()
            assert kernels.limit(torch.float32) == kernels.PROBED[1]
            assert kernels.describe() == f"float32 compiled up to {kernels.PROBED[1]} rows, bfloat16 compiled"
        assert kernels.limit(torch.float64) == 0
    finally:
        kernels.library.cache_clear()
        kernels.limit.cache_clear()


@compiled
def test_what_cannot_be_kept_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def refused(*places: object) -> None:
        raise PermissionError

    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels.os, "link", refused)
    kernels.library.cache_clear()
    kernels.limit.cache_clear()
    try:
        assert kernels.describe() == "float32 PyTorch's, bfloat16 PyTorch's"
    finally:
        kernels.library.cache_clear()
        kernels.limit.cache_clear()


def test_the_library_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if not COMPILED:
        pytest.skip("no kernels here")
    commands: list[tuple[str, ...]] = []
    run = building._run
    monkeypatch.setattr(building, "_run", lambda *command: commands.append(command) or run(*command))
    kernels.library.cache_clear()
    assert isinstance(kernels.library(), ctypes.CDLL)
    assert len(commands) == 1  # it asked the compiler who it is, and found the file


def test_a_roomy_layer_holds_what_a_growing_one_holds() -> None:
    """Steps, rows dropped, turned around and named twice; spaces are kept while they are long enough."""
    torch.manual_seed(0)
    first = torch.randn(4, 2, 3, 5), torch.randn(4, 2, 3, 5)
    plain = DynamicLayer()
    grown = DynamicLayer()
    plain.update(*first)
    grown.update(*first)
    roomy, spaces = RoomyLayer(grown), set()
    for order in [None, [0, 2, 3], None, [2, 0, 1], [1], None, [0, 0, 0, 0, 0], None, [0, 3]]:
        if order is not None:
            plain.reorder_cache(torch.tensor(order))
            roomy.reorder_cache(torch.tensor(order))
        new = torch.randn(len(plain.keys), 2, 1, 5), torch.randn(len(plain.keys), 2, 1, 5)
        for one, other in zip(plain.update(*new), roomy.update(*new), strict=True):
            assert torch.equal(one, other)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1) == plain.get_mask_sizes(1)
        spaces.add(roomy.keys.data_ptr())
    assert len(spaces) == 2  # made for the first step, and when there were more rows than ever


def test_room_is_made_in_few_pieces_and_only_for_layers_that_grow() -> None:
    sliding, growing = DynamicSlidingWindowLayer(4), DynamicLayer()
    one = torch.randn(1, 1, 1, 2)
    made = DynamicCache()
    made.layers = [sliding, growing]
    for layer in made.layers:
        layer.update(one, one)
    kept, roomy = make_room(made).layers
    assert kept is sliding
    places = []
    for _ in range(1000):
        roomy.update(one, one)
        places.append(roomy.keys.data_ptr())
    assert len({*places}) <= 8
    assert torch.equal(roomy.values, one.expand(1, 1, 1001, 2))


@pytest.mark.parametrize(("name", "wanted"), [("llama", 2), ("gpt2", 2), ("t5", 2), ("mistral", 0), ("gemma3", 1)])
def test_decoding_uses_roomy_layers(name: str, wanted: int) -> None:
    _, past = streams.prefill(build(name), PROMPTS, 0)
    growing = getattr(past.cache, "self_attention_cache", past.cache)
    assert sum(isinstance(layer, RoomyLayer) for layer in growing.layers) == wanted
