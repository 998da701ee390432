"""The oracle of attention and the noise it allows, against the formulas of its docstring, one number at a time."""

import math
from typing import NamedTuple

import pytest
import torch

from model.attention.oracle import RESULTS, Rounding, oracle

pytestmark = pytest.mark.unit

Row = list[float]


class Given(NamedTuple):
    """One sequence of `size` times standard normal numbers, the upstream gradient `gradient_size` times: the smallest
    are those where a dtype has no normal numbers left."""

    dtype: torch.dtype
    rounds: tuple[Rounding, ...] = ()
    causal: bool = False
    scale: float | None = None
    length: int = 5
    heads: tuple[int, int] = (2, 2)
    size: float = 1.0
    gradient_size: float = 1.0
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


CASES = (
    Given(torch.float64),
    Given(torch.float32, causal=True),
    Given(torch.float32, ("sums",), length=33),
    Given(torch.bfloat16, causal=True, heads=(4, 2)),
    Given(torch.bfloat16, ("scores",), scale=0.9, heads=(3, 1)),
    Given(torch.bfloat16, ("sums",), length=65, heads=(4, 2)),
    Given(torch.bfloat16, ("scores", "sums"), causal=True, scale=1.7, length=32),
    Given(torch.float16, ("scores", "sums"), causal=True, heads=(6, 2), size=2.0**-14, gradient_size=2.0**-14),
    Given(torch.float16, length=1, size=2.0**-14, gradient_size=2.0**-14),
    Given(torch.float16, gradient_size=2.0**-14),
    Given(torch.float32, causal=True, window=2, heads=(4, 2)),
    Given(torch.bfloat16, window=3, length=7),
    Given(torch.bfloat16, window=1),
    Given(torch.float32, softcap=0.7, scale=1.3),
    Given(torch.bfloat16, ("tanh",), causal=True, softcap=1.5, scale=1.3, heads=(4, 2)),
    Given(torch.float16, ("scores", "tanh"), softcap=0.5),
    Given(torch.float32, sinks=True, causal=True, heads=(3, 1)),
    Given(torch.bfloat16, sinks=True, window=2, softcap=0.9),
)


def dot(a: Row, b: Row) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def squared(row: Row) -> Row:
    return [x * x for x in row]


def combined(weights: Row, rows: list[Row]) -> Row:
    """Return the sum of `rows`, each times its weight."""
    return [dot(weights, list(column)) for column in zip(*rows, strict=True)]


def one_head(
    given: Given, q: list[Row], k: list[Row], v: list[Row], gradient: list[Row], groups: int, sink: float | None
) -> dict[str, list[tuple[Row, float]]]:
    """Return every row of the results of one query head, each with its noise squared; the sink's gradient is one."""
    tokens = range(given.length)
    scale = given.scale or 1 / math.sqrt(len(q[0]))
    tiny = torch.finfo(given.dtype).tiny ** 2
    wide = given.dtype in (torch.float32, torch.float64)

    def sees(i: int, j: int) -> bool:
        return (j <= i or not given.causal) and (given.window is None or abs(i - j) < given.window)

    uncapped = [[scale * dot(q[i], k[j]) for j in tokens] for i in tokens]
    tanh = [[math.tanh(uncapped[i][j] / given.softcap) if given.softcap else 0.0 for j in tokens] for i in tokens]
    score = [[given.softcap * tanh[i][j] if given.softcap else uncapped[i][j] for j in tokens] for i in tokens]
    slope = [[1 - tanh[i][j] ** 2 for j in tokens] for i in tokens]
    weight = [[math.exp(score[i][j]) if sees(i, j) else 0.0 for j in tokens] for i in tokens]
    sink_weight = 0.0 if sink is None else math.exp(sink)
    p = [[w / (math.fsum(row) + sink_weight) for w in row] for row in weight]
    p_sink = [sink_weight / (math.fsum(row) + sink_weight) for row in weight]
    out = [combined(p[i], v) for i in tokens]
    dp = [[dot(gradient[i], v[j]) for j in tokens] for i in tokens]
    delta = [dot(gradient[i], out[i]) for i in tokens]
    of_score = [[p[i][j] * (dp[i][j] - delta[i]) for j in tokens] for i in tokens]
    ds = [[of_score[i][j] * slope[i][j] for j in tokens] for i in tokens]
    dq = [[scale * x for x in combined(ds[i], k)] for i in tokens]
    dk = [[scale * x for x in combined([ds[i][j] for i in tokens], q)] for j in tokens]
    dv = [combined([p[i][j] for i in tokens], gradient) for j in tokens]

    p_noise, ds_noise = [squared(row) for row in p], [squared(row) for row in ds]
    p_sink_noise = squared(p_sink)
    approximate = 2.0**-11 / (torch.finfo(given.dtype).eps / 2) if "tanh" in given.rounds else 0.0
    for i in tokens:
        for j in tokens:
            of_slope = 2 * of_score[i][j] * tanh[i][j] ** 2
            relative = (approximate * score[i][j]) ** 2 if given.softcap else 0.0
            more = (approximate * of_slope) ** 2
            if wide or "scores" in given.rounds:
                before = uncapped[i][j] ** 2 + 2 * scale**2 * dot(squared(q[i]), squared(k[j]))
                capped = score[i][j] ** 2 if given.softcap else 0.0
                relative += 4 * (slope[i][j] ** 2 * before + capped)
                dp_noise = dp[i][j] ** 2 + dot(squared(gradient[i]), squared(v[j]))
                more += (p[i][j] * slope[i][j]) ** 2 * dp_noise + of_slope**2
            ds_noise[i][j] = ds_noise[i][j] * (1 + relative) + more
            p_noise[i][j] *= 1 + relative
            p_sink_noise[i] += p_sink[i] ** 2 * p[i][j] ** 2 * relative
    row_noise = [4 * (dot(squared(gradient[i]), squared(out[i])) + dot(p_noise[i], squared(dp[i]))) for i in tokens]

    def rounded(row: Row) -> float:
        return math.fsum(x * x + tiny for x in row)

    def parts(own: float, terms: float) -> float:
        """Return the noise of a sum of `terms`, itself rounded to `own` when it is done or once a tile of 32."""
        if wide or "sums" not in given.rounds:
            return own + terms
        return terms + (groups * math.ceil(given.length / 32) + 1) / 2 * (own + terms)

    found: dict[str, list[tuple[Row, float]]] = {name: [] for name in RESULTS}
    for i in tokens:
        out_terms = math.fsum((p_noise[i][j] + tiny) * dot(v[j], v[j]) for j in tokens)
        found["out"].append((out[i], rounded(out[i]) + out_terms))
        keys = combined([p[i][j] * slope[i][j] for j in tokens], k)
        dq_terms = math.fsum((ds_noise[i][j] + tiny) * dot(k[j], k[j]) for j in tokens) + row_noise[i] * dot(keys, keys)
        found["dq"].append((dq[i], rounded(dq[i]) + scale**2 * dq_terms))
    for j in tokens:
        moved = [(p[i][j] * slope[i][j]) ** 2 * row_noise[i] for i in tokens]
        dk_terms = math.fsum((ds_noise[i][j] + tiny + moved[i]) * dot(q[i], q[i]) for i in tokens)
        found["dk"].append((dk[j], parts(rounded(dk[j]), scale**2 * dk_terms)))
        dv_terms = math.fsum((p_noise[i][j] + tiny) * dot(gradient[i], gradient[i]) for i in tokens)
        found["dv"].append((dv[j], parts(rounded(dv[j]), dv_terms)))
    if sink is not None:
        dsink = -dot(p_sink, delta)
        terms = (p_sink_noise[i] * delta[i] ** 2 + p_sink[i] ** 2 * row_noise[i] + tiny for i in tokens)
        found["dsinks"] = [([dsink], dsink**2 + math.fsum(terms))]
    return found


@pytest.mark.parametrize("given", CASES, ids=lambda given: "-".join(map(str, given)))
def test_a_sequence_has_the_truth_and_the_noise_of_the_formulas(given: Given) -> None:
    heads, kv_heads = given.heads
    groups = heads // kv_heads
    generator = torch.Generator().manual_seed(1)

    def normal(count: int, size: float = given.size) -> torch.Tensor:
        return (size * torch.randn(given.length, count, 3, generator=generator)).to(given.dtype)

    q, gradient = normal(heads), normal(heads, given.gradient_size)
    k, v = normal(kv_heads), normal(kv_heads)
    sinks = torch.randn(heads, generator=generator).to(given.dtype) if given.sinks else None
    fields = {name: getattr(given, name) for name in ("causal", "scale", "window", "softcap", "rounds")}
    truth = oracle(q, k, v, gradient, sinks=sinks, **fields)
    shares = []
    for head in range(heads):
        shared = head // groups
        q_rows, k_rows, v_rows, gradient_rows = (
            tensor[:, at].double().tolist() for tensor, at in ((q, head), (k, shared), (v, shared), (gradient, head))
        )
        sink = None if sinks is None else sinks[head].item()
        shares.append(one_head(given, q_rows, k_rows, v_rows, gradient_rows, groups, sink))
        if sinks is not None:
            (((dsink,), squared_noise),) = shares[-1]["dsinks"]
            assert truth.values["dsinks"][head].item() == pytest.approx(dsink, rel=1e-8)
            assert truth.noise["dsinks"][head].item() == pytest.approx(math.sqrt(squared_noise), rel=1e-8)
    for name in RESULTS:
        # A key-value head adds up what its query heads give.
        together = 1 if name in ("out", "dq") else groups
        for first in range(0, heads, together):
            group = shares[first : first + together]
            for token in range(given.length):
                rows = [share[name][token] for share in group]
                place = (token, first // together)
                value = [math.fsum(column) for column in zip(*(row for row, _ in rows), strict=True)]
                noise = math.sqrt(math.fsum(squared_noise for _, squared_noise in rows))
                # Far above what float64 loses, far below what any term of the formulas is worth.
                assert truth.values[name][place].tolist() == pytest.approx(value, rel=1e-8, abs=1e-13 * noise), name
                assert truth.noise[name][place].item() == pytest.approx(noise, rel=1e-8), name


@pytest.mark.parametrize("given", CASES, ids=lambda given: "-".join(map(str, given)))
def test_a_sequence_has_the_gradients_that_autograd_takes_of_its_output(given: Given) -> None:
    """The formulas themselves: both above would share a derivative that is wrong."""
    heads, kv_heads = given.heads
    generator = torch.Generator().manual_seed(2)
    shapes = [(given.length, count, 3) for count in (heads, kv_heads, kv_heads, heads)] + [(heads,)]
    q, k, v, gradient, sinks = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    fields = {name: getattr(given, name) for name in ("causal", "scale", "window", "softcap")}
    truth = oracle(q, k, v, gradient, sinks=sinks if given.sinks else None, **fields)

    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v, sinks)]
    queries, keys, values = (tensor.transpose(0, 1) for tensor in leaves[:3])
    keys, values = (tensor.repeat_interleave(heads // kv_heads, dim=0) for tensor in (keys, values))
    scores = queries @ keys.mT * (given.scale or 3**-0.5)
    if given.softcap is not None:
        scores = given.softcap * torch.tanh(scores / given.softcap)
    seen = torch.ones(given.length, given.length, dtype=torch.bool)
    if given.causal:
        seen = seen.tril()
    if given.window is not None:
        seen = seen.tril(given.window - 1).triu(1 - given.window)
    weights = scores.masked_fill(~seen, -torch.inf).exp()
    total = weights.sum(-1) + (leaves[3].exp()[:, None] if given.sinks else 0)
    out = (weights @ values / total[..., None]).transpose(0, 1)
    wanted = (out, *torch.autograd.grad(out, leaves, gradient, allow_unused=True))
    for name, tensor in zip((*RESULTS, "dsinks"), wanted, strict=True):
        if tensor is not None:
            torch.testing.assert_close(truth.values[name], tensor, rtol=1e-10, atol=1e-12)
