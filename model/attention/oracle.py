"""What attention of one sequence is, written out in float64, and how large honest rounding may be in each row.

Shapes: L tokens, H query heads, H_kv key-value heads, D head dim. Leading dimensions hold sequences of one length.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: What a kernel may keep in the dtype of its inputs where most keep float32: scores and dP, the sums of dk and dv; and
#: "tanh", that of a soft cap by the GPU's approximate instruction.
Rounding = Literal["scores", "sums", "tanh"]

#: The largest relative error of that instruction, `tanh.approx.f32` (PTX ISA).
TANH_ERROR = 2.0**-11

#: Queries whose part of dk and dv is added to a sum at once: the smallest tile of a kernel that rounds sums.
TILE = 32

#: The output, and the gradients of queries, keys and values.
RESULTS = ("out", "dq", "dk", "dv")


@dataclass(frozen=True)
class Truth:
    """`values` are `out`, `dq` (..., L, H, D) and `dk`, `dv` (..., L, H_kv, D) in float64; `noise` has one number for
    each of their rows, (..., L, H) or (..., L, H_kv). With sinks both have `dsinks` too, (..., H)."""

    values: dict[str, Tensor]
    noise: dict[str, Tensor]


def oracle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gradient: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    rounds: Collection[Rounding] = (),
) -> Truth:
    """Return softmax(scale * q k^T) v of one sequence and its gradients, from the formula: no kernel, no padding.

    `q` and the upstream `gradient` are (..., L, H, D), `k` and `v` (..., L, H_kv, D); query head h uses key-value head
    h // (H / H_kv). `scale` defaults to 1/sqrt(D).

    A query at position i sees the keys j with |i - j| < `window`, and causal those with j <= i. With `softcap` the
    score s is softcap * tanh(s / softcap), whose derivative, slope = 1 - tanh^2, multiplies dS. `sinks` (H,) are
    logits of one more key in every softmax, whose value is 0: P_ij = exp(S_ij) / (exp(sink) + sum_j exp(S_ij)), and
    dsink = -sum_i P_i,sink delta_i.

    The noise of a row is the L2 size, in units of relative roundoff, of what independent roundings leave there. A
    row's own size is no measure of it: terms cancel (the gradient of the only query of a sequence is exactly zero,
    and kernels leave rounding in it). With S the scores, P the probabilities, dP = gradient v^T, delta =
    rowsum(gradient * out) and dS = P * (dP - delta), kernels round, and so the squares add up,

    - every result itself: |row|^2 (for keys and values of grouped heads, the part of each query head);
    - P, before it is multiplied by v or by the gradient: sum_j P_ij^2 |v_j|^2, and sum_i P_ij^2 |gradient_i|^2;
    - dS, before it is multiplied by k or q: scale^2 sum_j dS_ij^2 |k_j|^2, and scale^2 sum_i dS_ij^2 |q_i|^2;
    - out, from which they take delta. Its error, E_i^2 = |gradient_i * out_i|^2 + sum_j P_ij^2 dP_ij^2, moves the
      whole row of dS by P_ij E_i: scale^2 E_i^2 |sum_j P_ij k_j|^2 for queries, which adds up coherently, and
      scale^2 sum_i P_ij^2 E_i^2 |q_i|^2 for keys. It counts with 2 E_i: a row that one random number moves is further
      off, now and then, than one that many small errors move. With a soft cap P_ij is slope_ij P_ij here;
    - each query's part of dsink: sum_i P_i,sink^2 (delta_i^2 + (2 E_i)^2).

    That is what kernels of 16-bit dtypes do that hold sums in float32, whose rounding does not count beside it. What
    is below the smallest normal number rounds as that does. `rounds` says what a kernel rounds besides:

    - "scores", implied where q has 32 bits or more. The rounding of S_ij and of the factors it comes from, r_ij^2 =
      S_ij^2 + 2 scale^2 |q_i * k_j|^2, is the relative error of P_ij, which makes every P_ij^2 and dS_ij^2 above
      1 + (2 r_ij)^2 times as large; that of dP_ij adds P_ij^2 (dP_ij^2 + |gradient_i * v_j|^2) to dS_ij^2. With a soft
      cap, what rounds before it counts slope_ij times, and r_ij^2 has the square of the capped score besides; the
      slope's own rounding adds (2 P_ij (dP_ij - delta_i) tanh^2)^2 to dS_ij^2. The sink's P rounds as sum_j P_ij^2
      (2 r_ij)^2 says, as all scores are in its denominator.
    - "sums": dk and dv are rounded each time a tile of queries of one head is added. With m parts the running sum
      grows to |row|^2 and the noise of its terms, and (m + 1) / 2 times that adds up.
    - "tanh": with a soft cap, capped scores have the relative error t = TANH_ERROR in units of roundoff, which makes
      P_ij^2 and dS_ij^2 1 + (t S_ij)^2 times as large, and the slope adds (2 t P_ij (dP_ij - delta_i) tanh^2)^2.
    """
    wide = q.dtype in (torch.float32, torch.float64)
    smallest = torch.finfo(q.dtype).tiny ** 2
    tanh_error = TANH_ERROR / (torch.finfo(q.dtype).eps / 2) if "tanh" in rounds else 0.0
    # From here on (..., H, L, D).
    q, k, v, gradient = (tensor.detach().double().transpose(-3, -2) for tensor in (q, k, v, gradient))
    groups = q.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(groups, dim=-3), v.repeat_interleave(groups, dim=-3)
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    scores = uncapped = scale * q @ k.mT
    tanh_squared = torch.zeros_like(scores)
    if softcap is not None:
        tanh = torch.tanh(uncapped / softcap)
        scores, tanh_squared = softcap * tanh, tanh.square()
    slope = 1 - tanh_squared
    tokens = torch.arange(q.shape[-2], device=q.device)
    after = tokens[:, None] - tokens[None, :]
    hidden = torch.zeros_like(after, dtype=torch.bool)
    if causal:
        hidden |= after < 0
    if window is not None:
        hidden |= after.abs() >= window
    visible = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        column = sinks.detach().double()[:, None, None].expand(*visible.shape[:-1], 1)
        visible = torch.cat([visible, column], dim=-1)
    p, p_sink = visible.softmax(-1).split([q.shape[-2], int(sinks is not None)], dim=-1)
    out = p @ v
    dp = gradient @ v.mT
    delta = _sum(gradient * out)
    ds_capped = p * (dp - delta)
    ds = ds_capped * slope
    dq, dk, dv = scale * ds @ k, scale * ds.mT @ q, p.mT @ gradient

    q_squared, k_squared, v_squared, gradient_squared = (tensor.square() for tensor in (q, k, v, gradient))
    p_noise, ds_noise = p.square(), ds.square()
    relative = 1 + (tanh_error * scores).square() if softcap is not None else torch.ones_like(scores)
    slope_noise = (tanh_error * 2 * ds_capped * tanh_squared).square()
    if wide or "scores" in rounds:
        rounded = slope.square() * (uncapped.square() + 2 * scale**2 * q_squared @ k_squared.mT)
        if softcap is not None:
            rounded = rounded + scores.square()
        relative = relative + 4 * rounded
        dp_noise = dp.square() + gradient_squared @ v_squared.mT
        slope_noise = slope_noise + (p * slope).square() * dp_noise + (2 * ds_capped * tanh_squared).square()
    ds_noise = ds_noise * relative + slope_noise
    p_sink_noise = p_sink.square() * (1 + _sum(p_noise * (relative - 1)))
    p_noise = p_noise * relative
    delta_noise = 4 * (_sum(gradient_squared * out.square()) + _sum(p_noise * dp.square()))
    dk_noise = scale**2 * (ds_noise + smallest + (p * slope).square() * delta_noise).mT @ _sum(q_squared)
    dv_noise = (p_noise + smallest).mT @ _sum(gradient_squared)
    dk_rounded, dv_rounded = _sum(dk.square() + smallest), _sum(dv.square() + smallest)
    if "sums" in rounds and not wide:
        parts = groups * -(-q.shape[-2] // TILE)
        dk_rounded, dv_rounded = ((parts + 1) / 2 * part for part in (dk_rounded + dk_noise, dv_rounded + dv_noise))
    noise_squared = {
        "out": _sum(out.square() + smallest) + (p_noise + smallest) @ _sum(v_squared),
        "dq": _sum(dq.square() + smallest)
        + scale**2 * ((ds_noise + smallest) @ _sum(k_squared) + delta_noise * _sum((p * slope @ k).square())),
        "dk": dk_rounded + dk_noise,
        "dv": dv_rounded + dv_noise,
    }

    def of_key_heads(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-3, (-1, groups)).sum(-3)

    values = {"out": out, "dq": dq, "dk": of_key_heads(dk), "dv": of_key_heads(dv)}
    noise_squared |= {name: of_key_heads(noise_squared[name]) for name in ("dk", "dv")}
    truth = Truth(
        {name: value.transpose(-3, -2) for name, value in values.items()},
        {name: squared.sqrt().squeeze(-1).transpose(-2, -1) for name, squared in noise_squared.items()},
    )
    if sinks is not None:
        dsinks = -(p_sink * delta).sum(-2)
        squared = (p_sink_noise * delta.square() + p_sink.square() * delta_noise + smallest).sum(-2)
        truth.values["dsinks"] = dsinks.squeeze(-1)
        truth.noise["dsinks"] = (dsinks.square() + squared).sqrt().squeeze(-1)
    return truth


def _sum(rows: Tensor) -> Tensor:
    """Return the sum of every row, (..., 1)."""
    return rows.sum(-1, keepdim=True)
