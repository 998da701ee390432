"""The decoder is what its docstring says, computed by plain formulas: cells and reference share it, and its faults.

Shapes: L tokens of one sequence, E hidden size, H heads, H_kv key-value heads, D head dim.
"""

import math
import weakref
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from collators import IGNORE_INDEX, CollatorOptions, Example, collator_named
from collators.batch import PaddedBatch
from model.attention import REFERENCE, Case, backend_named
from model.decoder import Decoder, DecoderConfig
from model.models import seeded_model
from model.reference import outcome, padded_reference
from model.steps import forward

pytestmark = pytest.mark.unit

CONFIG = DecoderConfig(vocab_size=11, max_length=9, num_layers=2, num_heads=4, head_dim=6, pad_id=3)

CONFIGS = {
    "learned": CONFIG,
    "grouped": replace(CONFIG, num_kv_heads=2),
    "rotary": replace(CONFIG, positions="rotary"),
    "grouped-rotary": replace(CONFIG, num_kv_heads=2, positions="rotary"),
}

#: Without the pad id, and with an id that comes twice.
IDS = [5, 0, 10, 5, 1, 7]

#: Positions need neither start at 0 nor run without a gap.
POSITIONS = [2, 3, 4, 6, 7, 8]


def model_of(config: DecoderConfig, seed: int = 0) -> Decoder:
    return seeded_model(config, REFERENCE, device="cpu", dtype=torch.float64, seed=seed)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return weight * (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt())


def turned(x: Tensor) -> Tensor:
    """Turn the pair (i, i + D/2) of a head (L, D) by position x 10,000^(-2i/D), as a complex number is."""
    half = x.shape[1] // 2
    angles = [[position * 10_000 ** (-2 * pair / x.shape[1]) for pair in range(half)] for position in POSITIONS]
    pairs = torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * torch.tensor(angles, dtype=torch.float64))
    return torch.cat([pairs.real, pairs.imag], dim=1)


def logits_by_formula(model: Decoder, *, causal: bool) -> Tensor:
    """Return the logits (L, vocabulary) of IDS at POSITIONS."""
    config, weights = model.config, model.state_dict()
    dim, heads, kv_heads = config.head_dim, config.num_heads, config.num_kv_heads or config.num_heads
    x = weights["tokens.weight"][IDS]
    if config.positions == "learned":
        x = x + weights["positions.weight"][POSITIONS]
    for number in range(config.num_layers):
        block = {
            name.removeprefix(f"blocks.{number}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"blocks.{number}.")
        }
        qkv = normed(x, block["attention_norm.weight"]) @ block["qkv.weight"].T + block["qkv.bias"]
        columns = list(qkv.split(dim, dim=1))
        assert len(columns) == heads + 2 * kv_heads
        q, k, v = columns[:heads], columns[heads : heads + kv_heads], columns[heads + kv_heads :]
        if config.positions == "rotary":
            q, k = [turned(head) for head in q], [turned(head) for head in k]
        attended = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = q[head] @ k[shared].T / math.sqrt(dim)
            if causal:
                scores = scores.where(torch.ones_like(scores).tril() == 1, -math.inf)
            attended.append(scores.softmax(-1) @ v[shared])
        x = x + torch.cat(attended, dim=1) @ block["projection.weight"].T + block["projection.bias"]
        up = normed(x, block["mlp_norm.weight"]) @ block["mlp.up.weight"].T + block["mlp.up.bias"]
        assert up.shape[1] == 4 * heads * dim
        gelu = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        x = x + gelu @ block["mlp.down.weight"].T + block["mlp.down.bias"]
    return x @ weights["head.weight"].T + weights["head.bias"]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_has_the_logits_of_the_formulas(name: str, causal: bool) -> None:
    model = model_of(CONFIGS[name])
    example = Example(torch.tensor(IDS), torch.tensor(IDS))
    batch = collator_named("pad_longest").build(CollatorOptions(9, pad_id=3))([example])
    assert isinstance(batch, PaddedBatch)
    batch = replace(batch, position_ids=torch.tensor([POSITIONS]))
    config = model.config
    case = Case("cpu", "padded", "right", "eval", causal, torch.float64, "eager", 4, config.num_kv_heads or 4, 6)
    (logits,) = outcome(model, REFERENCE, batch, case).logits
    torch.testing.assert_close(logits, logits_by_formula(model, causal=causal), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_batch_has_its_logits_in_the_dtype_of_its_case_and_a_loss_of_at_least_32_bits(dtype: torch.dtype) -> None:
    weights = dtype if dtype == torch.float64 else torch.float32
    model = seeded_model(CONFIG, REFERENCE, device="cpu", dtype=weights)
    example = Example(torch.tensor(IDS), torch.tensor(IDS))
    batch = collator_named("pad_longest").build(CollatorOptions(9, pad_id=3))([example])
    result = forward(model, REFERENCE, batch, Case("cpu", "padded", "right", "eval", True, dtype, "eager", 4, 4, 6))
    assert (result.logits.dtype, result.loss.dtype) == (dtype, weights)


@pytest.mark.parametrize("supervised", [0, 1, 2])
def test_a_batch_of_few_targets_has_their_mean_cross_entropy_and_without_any_no_gradient(supervised: int) -> None:
    targets = torch.tensor([*IDS[:supervised], *[IGNORE_INDEX] * (len(IDS) - supervised)])
    case = Case("cpu", "padded", "right", "train", True, torch.float64, "eager", 4, 4, 6)
    found = padded_reference(model_of(CONFIG), [Example(torch.tensor(IDS), targets)], case)
    logs = found.logits[0].log_softmax(-1)
    wanted = -sum(logs[place, IDS[place]].item() for place in range(supervised)) / max(supervised, 1)
    assert found.loss.item() == pytest.approx(wanted, rel=1e-12)
    gradient = torch.cat([gradient.flatten() for gradient in found.gradients.values()])
    assert gradient.isfinite().all()
    assert gradient.any() == (supervised > 0)


def test_a_decoder_follows_from_its_seed_and_leaves_the_global_one_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (model_of(CONFIG, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_decoder_has_biases_in_its_linear_maps_and_none_in_its_norms(name: str) -> None:
    model = model_of(CONFIGS[name])
    parameters = dict(model.named_parameters())
    maps = {module for module, each in model.named_modules() if isinstance(each, nn.Linear)}
    norms = {module for module, each in model.named_modules() if isinstance(each, nn.LayerNorm)}
    embeddings = {module for module, each in model.named_modules() if isinstance(each, nn.Embedding)}
    weights = {f"{module}.weight" for module in maps | norms | embeddings}
    assert parameters.keys() == weights | {f"{module}.bias" for module in maps}
    # Nothing else is saved with them: rotations follow from the sizes.
    assert parameters.keys() == model.state_dict().keys()


def test_a_decoder_on_the_cpu_has_its_gelu_whatever_autocast_does_elsewhere() -> None:
    """The kernel that fuses it on a GPU has another GELU on the CPU."""
    model, x = model_of(CONFIG).blocks[0].mlp, torch.randn(1, 3, 24, dtype=torch.float64)
    before = torch.is_autocast_enabled("cuda")
    with torch.no_grad():
        wanted = model(x)
        torch.set_autocast_enabled("cuda", True)
        try:
            assert torch.equal(model(x), wanted)
        finally:
            torch.set_autocast_enabled("cuda", before)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_nested_batch_is_the_same_where_blocks_hand_on_its_values(positions: Literal["learned", "rotary"]) -> None:
    """As compiled blocks do, which the CPU has no attention on NestedTensors for."""
    backend = backend_named("sdpa_nested")
    model = seeded_model(replace(CONFIG, head_dim=8, positions=positions), backend, device="cpu")
    sequences = [torch.tensor(IDS[:length]) for length in (4, 1, 6)]
    batch = collator_named("nested").build(CollatorOptions(9, pad_id=3))([Example(ids, ids) for ids in sequences])
    case = Case("cpu", "nested", None, "train", False, torch.float32, "eager", 4, 4, 8)
    found = []
    for model.values_between_blocks in (False, True):
        model.zero_grad()
        result = forward(model, backend, batch, case)
        result.loss.backward()
        found.append([*batch.split(result.logits), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("collator", ["pad_left", "packed_multiple", "nested"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_what_a_step_makes_lies_where_its_batch_does(positions: Literal["learned", "rotary"], collator: str) -> None:
    """What is not told its device has no numbers here; on a GPU it would lie on the CPU."""
    made = collator_named(collator)
    batch = made.build(CollatorOptions(9, pad_id=3))([Example(*[torch.tensor(IDS[:length])] * 2) for length in (4, 1)])
    names = {"padded": "sdpa_padded_math", "packed": "sdpa_document_mask", "nested": "sdpa_nested"}
    backend = backend_named(names[made.layout])
    model = seeded_model(replace(CONFIG, head_dim=8, positions=positions), backend, device="cpu")
    case = Case("cpu", made.layout, made.padding_side, "train", False, torch.float32, "eager", 4, 4, 8)
    wanted = outcome(model, backend, batch, case)
    with torch.device("meta"):
        found = outcome(model, backend, batch, case)
    for before, now in ((wanted.logits, found.logits), (wanted.gradients, found.gradients)):
        torch.testing.assert_close(now, before, rtol=0, atol=0)


@pytest.mark.parametrize("done_with", ["attention_norm", "projection"])
def test_a_batch_that_is_evaluated_keeps_nothing_that_its_block_is_done_with(done_with: str) -> None:
    """A name that holds it through the MLP would raise the peak of memory."""
    model = model_of(CONFIG)
    alive: list[bool] = []
    for block in model.blocks:
        made: list[weakref.ref[Tensor]] = []
        block.get_submodule(done_with).register_forward_hook(
            lambda module, given, output, made=made: made.append(weakref.ref(output))
        )
        block.mlp.register_forward_pre_hook(lambda module, given, made=made: alive.append(made[-1]() is not None))
    batch = collator_named("pad_longest").build(CollatorOptions(9, pad_id=3))([Example(*[torch.tensor(IDS)] * 2)])
    with torch.no_grad():
        forward(model, REFERENCE, batch, Case("cpu", "padded", "right", "eval", True, torch.float64, "eager", 4, 4, 6))
    assert alive == [False] * CONFIG.num_layers


def test_a_decoder_embeds_padding_as_zeros() -> None:
    assert torch.equal(model_of(CONFIG).tokens.weight[3], torch.zeros(24, dtype=torch.float64))


def test_a_decoder_of_other_sizes_is_refused() -> None:
    for kv_heads in (3, 0, -1):
        with pytest.raises(ValueError, match=rf"num_heads must be a multiple of num_kv_heads; got 4 and {kv_heads}\."):
            replace(CONFIG, num_kv_heads=kv_heads)
    with pytest.raises(ValueError, match=r"positions are learned or rotary; got 'alibi'\."):
        replace(CONFIG, positions="alibi")
    with pytest.raises(ValueError, match=r"rotary positions need an even head_dim; got 5\."):
        replace(CONFIG, head_dim=5, positions="rotary")
    assert replace(CONFIG, head_dim=5).hidden_size == 20
