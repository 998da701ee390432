"""Attention as strangers write it: plain functions that `--backend tests/meta/outside_kernels.py:NAME` runs."""

import os
from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention


def right(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False):
    """Each sequence by itself, without a fused kernel; as many heads of keys as of queries."""
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    outs = []
    for start, end in pairwise(cu_seqlens_q.tolist()):
        scores = torch.einsum("qhd,khd->hqk", q[start:end], k[start:end]) * scale
        if causal:
            later = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[start:end]))
    return torch.cat(outs)


def leaks(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False):
    """The whole row is one sequence."""
    whole = cu_seqlens_q[[0, -1]]
    return right(q, k, v, whole, whole, q.shape[0], q.shape[0], softmax_scale, causal)


def leaks_on_rank_1(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, softmax_scale=None, causal=False):
    """Right on every rank but one."""
    attend = leaks if os.environ.get("RANK") == "1" else right
    return attend(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, softmax_scale, causal)


def raises_on_rank_1(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, softmax_scale=None, causal=False):
    """Takes every batch but those of the workload, on one rank."""
    if os.environ.get("RANK") == "1" and len(cu_seqlens_q) == 9:
        raise RuntimeError("this rank takes no eight sequences")
    return right(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, softmax_scale, causal)


def sees_one_ahead(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False):
    """A causal query sees the key after its own."""
    if not causal:
        return right(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    outs = []
    for start, end in pairwise(cu_seqlens_q.tolist()):
        mask = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).tril(1)
        q_, k_, v_ = (tensor[start:end].transpose(0, 1) for tensor in (q, k, v))
        outs.append(scaled_dot_product_attention(q_, k_, v_, mask, scale=scale).transpose(0, 1))
    return torch.cat(outs)


def ignores_the_scale(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, softmax_scale=None, causal=False):
    """Always 1/sqrt(D)."""
    return right(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, None, causal)


def loses_the_gradient_of_v(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, softmax_scale=None, causal=False):
    """As a backward that returns zeros for v."""
    return right(q, k, v.detach() + 0 * v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, softmax_scale, causal)


def padded(query, key, value, attn_mask=None, scale=None):
    """A padded batch, with a mask."""
    return scaled_dot_product_attention(query, key, value, attn_mask, scale=scale)


def float32_only(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False):
    """Refuses other dtypes."""
    if q.dtype != torch.float32:
        raise TypeError(f"float32 only, got {q.dtype}")
    return right(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)


def without_a_scale(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    """Takes no scale."""
    return right(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)


def of_other_arguments(hidden_states, attention_mask):
    """Has neither signature."""


def wants_more(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, block_table):
    """Needs an argument that nobody gives it."""


def returns_two(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None):
    """Returns the log-sum-exp too."""
    return q, None


NUMBER = 3
