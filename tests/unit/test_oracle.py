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
)


def dot(a: Row, b: Row) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def squared(row: Row) -> Row:
    return [x * x for x in row]


def combined(weights: Row, rows: list[Row]) -> Row:
    """Return the sum of `rows`, each times its weight."""
    return [dot(weights, list(column)) for column in zip(*rows, strict=True)]


def one_head(
    given: Given, q: list[Row], k: list[Row], v: list[Row], gradient: list[Row], groups: int
) -> dict[str, list[tuple[Row, float]]]:
    """Return every row of the results of one query head, each with its noise squared."""
    tokens = range(given.length)
    scale = given.scale or 1 / math.sqrt(len(q[0]))
    tiny = torch.finfo(given.dtype).tiny ** 2
    wide = given.dtype in (torch.float32, torch.float64)

    score = [[scale * dot(q[i], k[j]) for j in tokens] for i in tokens]
    weight = [[math.exp(score[i][j]) if j <= i or not given.causal else 0.0 for j in tokens] for i in tokens]
    p = [[w / math.fsum(row) for w in row] for row in weight]
    out = [combined(p[i], v) for i in tokens]
    dp = [[dot(gradient[i], v[j]) for j in tokens] for i in tokens]
    ds = [[p[i][j] * (dp[i][j] - dot(gradient[i], out[i])) for j in tokens] for i in tokens]
    dq = [[scale * x for x in combined(ds[i], k)] for i in tokens]
    dk = [[scale * x for x in combined([ds[i][j] for i in tokens], q)] for j in tokens]
    dv = [combined([p[i][j] for i in tokens], gradient) for j in tokens]

    p_noise, ds_noise = [squared(row) for row in p], [squared(row) for row in ds]
    if wide or "scores" in given.rounds:
        for i in tokens:
            for j in tokens:
                score_noise = score[i][j] ** 2 + 2 * scale**2 * dot(squared(q[i]), squared(k[j]))
                dp_noise = dp[i][j] ** 2 + dot(squared(gradient[i]), squared(v[j]))
                ds_noise[i][j] = ds_noise[i][j] * (1 + 4 * score_noise) + p[i][j] ** 2 * dp_noise
                p_noise[i][j] *= 1 + 4 * score_noise
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
        keys = combined(p[i], k)
        dq_terms = math.fsum((ds_noise[i][j] + tiny) * dot(k[j], k[j]) for j in tokens) + row_noise[i] * dot(keys, keys)
        found["dq"].append((dq[i], rounded(dq[i]) + scale**2 * dq_terms))
    for j in tokens:
        dk_terms = math.fsum((ds_noise[i][j] + tiny + p[i][j] ** 2 * row_noise[i]) * dot(q[i], q[i]) for i in tokens)
        found["dk"].append((dk[j], parts(rounded(dk[j]), scale**2 * dk_terms)))
        dv_terms = math.fsum((p_noise[i][j] + tiny) * dot(gradient[i], gradient[i]) for i in tokens)
        found["dv"].append((dv[j], parts(rounded(dv[j]), dv_terms)))
    return found


@pytest.mark.parametrize("given", CASES, ids=lambda given: f"{given.dtype}-{'-'.join(given.rounds)}-{given.heads}")
def test_a_sequence_has_the_truth_and_the_noise_of_the_formulas(given: Given) -> None:
    heads, kv_heads = given.heads
    groups = heads // kv_heads
    generator = torch.Generator().manual_seed(1)

    def normal(count: int, size: float = given.size) -> torch.Tensor:
        return (size * torch.randn(given.length, count, 3, generator=generator)).to(given.dtype)

    q, gradient = normal(heads), normal(heads, given.gradient_size)
    k, v = normal(kv_heads), normal(kv_heads)
    truth = oracle(q, k, v, gradient, causal=given.causal, scale=given.scale, rounds=given.rounds)
    shares = []
    for head in range(heads):
        shared = head // groups
        q_rows, k_rows, v_rows, gradient_rows = (
            tensor[:, at].double().tolist() for tensor, at in ((q, head), (k, shared), (v, shared), (gradient, head))
        )
        shares.append(one_head(given, q_rows, k_rows, v_rows, gradient_rows, groups))
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
