"""FlashAttention-2's `flash_attn_varlen_func` on a packed batch."""

from torch import Tensor

from model.attention.backend import HALF, Backend, Requirement, first_line
from model.attention.torch_varlen import VarlenContext, prepare


def attend(q: Tensor, k: Tensor, v: Tensor, context: VarlenContext, *, scale: float | None = None) -> Tensor:
    """Run `flash_attn_varlen_func` on the packed row."""
    from flash_attn import flash_attn_varlen_func

    offsets, longest = context.cu_seqlens, context.max_seqlen
    out = flash_attn_varlen_func(
        q[0],
        k[0],
        v[0],
        offsets,
        offsets,
        longest,
        longest,
        softmax_scale=scale,
        causal=context.causal,
        window_size=context.window_size,
        # It takes 0 for no cap.
        softcap=context.softcap or 0.0,
    )
    return out[None]


def probe() -> list[str]:
    """Return why flash-attn cannot be imported, or an empty list."""
    try:
        import flash_attn  # noqa: F401
    except (ImportError, OSError) as error:
        return [f"flash-attn does not load ({first_line(error)}); install the build for this torch and CUDA version"]
    return []


BACKEND = Backend(
    name="fa2_varlen",
    layout="packed",
    summary="FlashAttention-2 flash_attn_varlen_func",
    prepare=prepare,
    attend=attend,
    dtypes={"cuda": HALF},
    max_head_dim=256,
    head_dim_multiple=8,
    sure_head_dim=128,
    grouped_query=True,
    windows=True,
    softcaps=True,
    rounds={"cuda": ("tanh",)},
    min_capability=(8, 0),
    kernels={"cuda": ("flash_attn::_flash_attn_varlen_forward",)},
    requires=(Requirement("flash-attn", "2.7.4", "pip install flash-attn --no-build-isolation"),),
    probe=probe,
)
