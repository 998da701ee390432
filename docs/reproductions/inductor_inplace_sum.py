"""A Triton kernel that sums what it overwrites, as torch.compile writes them, gives other sums without a barrier.

In the backward of an MLP, Inductor makes one kernel of the gradient through GELU and of its sum over tokens, the bias
gradient: it loads a tile of `in_out_ptr0`, adds the result up, and stores it over what it loaded. Where a tile has
fewer elements than the program has threads, Triton gives an element to threads of several warps: all of them load it,
one stores it. A warp that loads late sums what was stored already. Inductor puts a barrier before such a store only
where the index itself is broadcast (https://github.com/triton-lang/triton/issues/1615).

This is such a kernel with a product in place of GELU, for some of the tiles that Inductor tries. With torch
2.11.0+cu130 and triton 3.6.0 on an H200 each of 1,500 runs was wrong with a tile of 64 x 2 and eight warps, by up to
98%, and none with a barrier or in any other row. In the decoder, whose kernel computes for longer between the two, the
same tile made 10% to 25% of the runs differ, by up to 6%. Needs a GPU.
"""

import torch
import triton
import triton.language as tl

WIDTH, TOKENS, RUNS = 512, 91, 1500


@triton.jit
def product_and_sum(
    in_out_ptr0, in_ptr0, out_ptr0, tokens, XBLOCK: tl.constexpr, RBLOCK: tl.constexpr, BARRIER: tl.constexpr
):
    """Multiply in place (tokens, 512) by another tensor, and sum the products over tokens in float32."""
    columns = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]
    total = tl.full([XBLOCK, RBLOCK], 0, tl.float32)
    for start in tl.range(0, tokens, RBLOCK):
        rows = start + tl.arange(0, RBLOCK)[None, :]
        inside = (rows < tokens) & (columns < 512)
        left = tl.load(in_out_ptr0 + (columns + 512 * rows), inside, other=0.0).to(tl.float32)
        right = tl.load(in_ptr0 + (columns + 512 * rows), inside, other=0.0).to(tl.float32)
        product = left * right
        total = tl.where(inside, total + product, total)
        if BARRIER:
            tl.debug_barrier()
        tl.store(in_out_ptr0 + (columns + 512 * rows), product, inside)
    tl.store(out_ptr0 + columns, tl.sum(total, 1)[:, None], columns < 512)


torch.manual_seed(0)
left, right = torch.randn(2, TOKENS, WIDTH, device="cuda").bfloat16()
wanted = (left.float() * right.float()).double().sum(0)
for columns, rows, warps in ((2, 2, 2), (4, 2, 2), (8, 2, 2), (64, 2, 2), (256, 2, 4), (64, 2, 8)):
    for barrier in (False, True):
        sums = []
        for _ in range(RUNS):
            buffer, out = left.clone(), torch.empty(WIDTH, device="cuda")
            product_and_sum[(WIDTH // columns,)](buffer, right, out, TOKENS, columns, rows, barrier, num_warps=warps)
            sums.append(out)
        errors = (torch.stack(sums).double() - wanted).norm(dim=1) / wanted.norm()
        said = f"{int((errors > 1e-4).sum())} of {RUNS} sums are wrong, by up to {float(errors.max()):.1e}"
        print(f"tile {columns} x {rows}, {warps} warps, {'with' if barrier else 'without'} a barrier: {said}")
