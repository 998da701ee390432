"""GPT-2 of transformers in the sizes of a workload, on padded or flattened batches.

Backends here are GPT-2 with one attention: transformers' own (`gpt2_hf_...`), or one of this project's through the
AttentionInterface (`gpt2_` and its name).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from collators.batch import Batch, PackedBatch, PaddedBatch
from model.attention import BACKENDS, Backend, Case, Execution
from model.attention.backend import ANY, HALF, Requirement
from model.attention.fa2_varlen import BACKEND as FA2
from model.decoder import DecoderConfig
from model.huggingface.attention import Attention
from model.huggingface.masks import Prepared

#: GPT-2 of 4.53 makes its own mask, which knows no flattened rows.
REQUIRES = Requirement("transformers", "4.55", "pip install -U transformers")

#: The release that was tried. Blocks of 5.0 are handed neither positions nor offsets, and attend over the whole row.
TOLD = Requirement("transformers", "5.17", "pip install -U transformers")

#: GPT-2's default, and the article's: of embeddings, of what goes into the residual stream, of attention.
DROPOUT = 0.1


@dataclass(frozen=True)
class Gpt2Backend(Backend):
    """GPT-2 with one attention: transformers' `implementation`, or with `inner` that backend of this project.

    `prepare` returns what the model is handed beside ids and positions, or for `inner` its `Prepared` context.
    """

    implementation: str = ""
    inner: Backend | None = None
    attention_dropout: float = DROPOUT


class Gpt2(nn.Module):
    """GPT2LMHeadModel, called as the decoder is: with a batch and its backend's context."""

    def __init__(self, config: DecoderConfig, backend: Gpt2Backend) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.config = config
        self.attention = None if backend.inner is None else Attention(backend.inner)
        self.dropout = {"embedding": DROPOUT, "residual": DROPOUT, "attention": backend.attention_dropout}
        sizes: dict[str, Any] = {
            "vocab_size": config.vocab_size,
            "n_positions": config.max_length,
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "embd_pdrop": self.dropout["embedding"],
            "resid_pdrop": self.dropout["residual"],
            "attn_pdrop": self.dropout["attention"],
            # Its own are past a small vocabulary.
            "bos_token_id": None,
            "eos_token_id": None,
            "attn_implementation": backend.implementation if self.attention is None else self.attention.name,
        }
        with self._registered():
            self.gpt2 = GPT2LMHeadModel(GPT2Config(**sizes))

    @contextmanager
    def _registered(self) -> Iterator[None]:
        if self.attention is None:
            yield
        else:
            with self.attention.registered():
                yield

    def forward(self, batch: PaddedBatch | PackedBatch, context: Prepared | Mapping[str, Any]) -> Tensor:
        """Return logits (B, S, vocabulary) in the layout of `batch`."""
        with self._registered():
            if isinstance(context, Prepared):
                assert self.attention is not None
                self.attention.given = context
                # A mask that hides nothing keeps transformers from looking for restarting positions, for which it
                # waits for the device.
                told: dict[str, Any] = {"attention_mask": torch.ones_like(batch.input_ids, dtype=torch.bool)}
            else:
                told = dict(context)
            # Without a cache, which training has no use for, and which would hide from transformers what is flattened.
            found = self.gpt2(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **told)
        logits: Tensor = found.logits
        return logits

    @property
    def blocks(self) -> nn.ModuleList:
        """Its layers."""
        layers: nn.ModuleList = self.gpt2.transformer.h
        return layers

    def compile_blocks(self, compiler: str = "inductor") -> None:
        """Compile each block with dynamic shapes; blocks are alike, so one compilation serves them all.

        A graph break is an error. Blocks know their number for the cache alone, but transformers' FlashAttention reads
        it: where torch guards on what is read (2.13 does not), every number is a graph of its own.
        """
        if self.gpt2.config._attn_implementation == "flash_attention_2":
            from transformers.modeling_flash_attention_utils import lazy_import_flash_attention

            # Its first call imports, which cannot be compiled.
            lazy_import_flash_attention("flash_attention_2")
        for block in self.blocks:
            block.attn.layer_idx = 0  # type: ignore[union-attr]
            block.compile(dynamic=True, fullgraph=True, backend=compiler)


def _not_called(*args: Any, **kwargs: Any) -> Tensor:
    raise ValueError(
        "a GPT-2 backend attends through transformers, not in the article's decoder; choose another backend."
    )


def _padding_mask(batch: PaddedBatch, case: Case) -> dict[str, Any]:
    return {"attention_mask": batch.attention_mask}


def _positions(batch: PackedBatch, case: Case) -> dict[str, Any]:
    # Restarting positions, which every model is given, tell transformers what is flattened.
    return {}


def _offsets(batch: PackedBatch, case: Case) -> dict[str, Any]:
    offsets, longest = batch.cu_seqlens, batch.max_seqlen
    # As an integer: a tensor would be read back from the device in every layer.
    return {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": longest, "max_length_k": longest}


def _through_interface(inner: Backend) -> Gpt2Backend:
    """Return GPT-2 with a packed backend of this project; it has no dropout of attention."""

    def prepare(batch: Batch, case: Case) -> Prepared:
        assert isinstance(batch, PackedBatch)
        context = inner.prepare(batch, case)
        return Prepared(inner.name, context, case.causal, batch.max_seqlen, case.dtype, batch.num_slots)

    changed: dict[str, Any] = {
        "name": f"gpt2_{inner.name}",
        "summary": f"GPT-2, {inner.summary}, through the AttentionInterface",
        "prepare": prepare,
        "attend": _not_called,
        "causal": (True,),
        "requires": (REQUIRES, *inner.requires),
        "inner": inner,
        "attention_dropout": 0.0,
    }
    return Gpt2Backend(**inner.claims() | changed)


EAGER: tuple[Execution, ...] = ("eager",)

#: transformers' own eager attention over a padding mask, written in products and a softmax: what GPT-2 is checked with.
GPT2_REFERENCE = Gpt2Backend(
    name="gpt2_hf_eager_padded",
    layout="padded",
    summary="GPT-2, transformers' eager attention",
    prepare=_padding_mask,
    attend=_not_called,
    dtypes={"cpu": ANY, "cuda": ANY},
    causal=(True,),
    executions=EAGER,
    requires=(REQUIRES,),
    implementation="eager",
)

#: FlexAttention only through the interface: transformers does not let GPT-2 have its own (5.17).
GPT2_BACKENDS: tuple[Gpt2Backend, ...] = (
    GPT2_REFERENCE,
    Gpt2Backend(
        name="gpt2_hf_sdpa_padded",
        layout="padded",
        summary="GPT-2, transformers' SDPA with a padding mask",
        prepare=_padding_mask,
        attend=_not_called,
        dtypes={"cpu": ANY, "cuda": ANY},
        causal=(True,),
        requires=(REQUIRES,),
        plans_by_shape=True,
        implementation="sdpa",
    ),
    Gpt2Backend(
        name="gpt2_hf_fa2_padded",
        layout="padded",
        summary="GPT-2, transformers' FlashAttention-2, which unpads in every layer",
        prepare=_padding_mask,
        attend=_not_called,
        dtypes={"cuda": HALF},
        causal=(True,),
        # How many tokens are real is up to the data, and asked in every layer.
        executions=EAGER,
        min_capability=(8, 0),
        requires=(REQUIRES, *FA2.requires),
        probe=FA2.probe,
        implementation="flash_attention_2",
    ),
    Gpt2Backend(
        name="gpt2_hf_sdpa",
        layout="packed",
        summary="GPT-2, transformers' SDPA with a dense mask of T x T",
        prepare=_positions,
        attend=_not_called,
        dtypes={"cpu": ANY, "cuda": ANY},
        causal=(True,),
        requires=(REQUIRES,),
        plans_by_shape=True,
        implementation="sdpa",
    ),
    Gpt2Backend(
        name="gpt2_hf_fa2",
        layout="packed",
        summary="GPT-2, transformers' FlashAttention-2, told cu_seq_lens and max_length",
        prepare=_offsets,
        attend=_not_called,
        dtypes={"cuda": HALF},
        causal=(True,),
        min_capability=(8, 0),
        requires=(TOLD, *FA2.requires),
        probe=FA2.probe,
        implementation="flash_attention_2",
    ),
    *(_through_interface(backend) for backend in BACKENDS if backend.layout == "packed"),
)
