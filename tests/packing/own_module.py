"""Compares a module from outside, on ragged batches, with itself on each sequence alone, in float64.

`make()` returns an `nn.Module`. Its forward takes `input_ids` [rows, slots], and by these names what it needs of:

    cu_seqlens      int32 [sequences + 1]: where each sequence of a packed row begins
    position_ids    int64 [rows, slots], from 0 in each sequence
    seq_idx         int32 [rows, slots]: the number of the sequence of each slot
    attention_mask  int64 [rows, slots]: 1 for a token, 0 for padding, which is on the right

It returns one output a token [rows, slots, ...], or one a sequence [sequences, ...]. `vocab_size` of the module says
how many tokens there are (32 without it).
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Make = Callable[[], nn.Module]

PACKED_KEYS = ("cu_seqlens", "position_ids", "seq_idx")
FORMS = ("packed", "padded")

#: How far float64 may be off, as a share of the largest value: sums of a few thousand terms round to 1e-13.
BOUND = 1e-9


def module_of(make: Make, device: str) -> nn.Module:
    """Return the module in float64, with seeded weights; ValueError, in one line, for what is none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = make()
    if not isinstance(made, nn.Module):
        raise ValueError(f"make() returned {type(made).__name__}; it must return an nn.Module")
    if "input_ids" not in takes(made):
        raise ValueError(f"forward takes ({', '.join(takes(made))}); it must take input_ids")
    if not forms_of(made):
        raise ValueError(
            f"forward takes ({', '.join(takes(made))}); for packed rows it must take one of {', '.join(PACKED_KEYS)}, "
            "for padded ones attention_mask"
        )
    return made.to(device, torch.float64).eval()


def takes(module: nn.Module) -> list[str]:
    """Return the names of the arguments of a module's forward."""
    return [*inspect.signature(module.forward).parameters]


def forms_of(module: nn.Module) -> tuple[str, ...]:
    """Return which ragged batches a module takes."""
    names = takes(module)
    found = {"packed": any(key in names for key in PACKED_KEYS), "padded": "attention_mask" in names}
    return tuple(form for form in FORMS if found[form])


def batch_of(sequences: Sequence[Tensor], form: str) -> dict[str, Tensor]:
    """Return sequences of tokens as one packed row, or as padded rows."""
    lengths = [len(each) for each in sequences]
    device = sequences[0].device
    if form == "padded":
        pad = nn.utils.rnn.pad_sequence
        counts = [torch.arange(length, device=device) for length in lengths]
        return {
            "input_ids": pad([*sequences], batch_first=True),
            "attention_mask": pad([torch.ones_like(each) for each in sequences], batch_first=True),
            "position_ids": pad(counts, batch_first=True),
        }
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    numbers = torch.arange(len(lengths), device=device, dtype=torch.int32)
    return {
        "input_ids": torch.cat([*sequences])[None],
        "cu_seqlens": offsets,
        "position_ids": torch.cat([torch.arange(length, device=device) for length in lengths])[None],
        "seq_idx": numbers.repeat_interleave(torch.tensor(lengths, device=device))[None],
    }


def run(module: nn.Module, sequences: Sequence[Tensor], form: str) -> Tensor:
    """Return what a module gives of a batch of these sequences; ValueError for what is no tensor."""
    names = takes(module)
    found = module(**{key: value for key, value in batch_of(sequences, form).items() if key in names})
    if not isinstance(found, Tensor):
        raise ValueError(f"forward returned {type(found).__name__}; it must return a tensor")
    return found


def gives_tokens(module: nn.Module, form: str, device: torch.device) -> bool:
    """Tell whether a module gives one output a token, not one a sequence; ValueError if neither."""
    shapes = []
    for lengths in ((3, 2), (5, 2)):
        sequences = [torch.zeros(length, dtype=torch.int64, device=device) for length in lengths]
        rows, slots = batch_of(sequences, form)["input_ids"].shape
        shape = run(module, sequences, form).shape
        shapes.append((shape[:2] == (rows, slots), shape[:1] == (len(sequences),)))
    if all(tokens for tokens, _ in shapes):
        return True
    if all(each for _, each in shapes):
        return False
    raise ValueError(
        f"forward returned {tuple(shape)} for input_ids {(rows, slots)} of {len(sequences)} sequences; "
        "it must return one output a token or one a sequence"
    )


def outputs(module: nn.Module, sequences: Sequence[Tensor], form: str, *, tokens: bool) -> list[Tensor]:
    """Return the output of each sequence: [tokens, ...] with `tokens`, or else [...]."""
    found = run(module, sequences, form)
    if not tokens:
        return [*found]
    if form == "padded":
        return [found[row, : len(each)] for row, each in enumerate(sequences)]
    return [*found[0].split([len(each) for each in sequences])]


@dataclass(frozen=True)
class Compared:
    """What a batch gives and what each sequence alone gives: outputs by sequence, gradients by parameter."""

    given: dict[str, Tensor]
    alone: dict[str, Tensor]

    @property
    def worst(self) -> tuple[str, float]:
        """What is off the most, and by which share of the largest value."""
        off = {
            name: float((self.given[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
            for name, value in self.alone.items()
            if value.numel()
        }
        # A value that is no number is off more than any other.
        name = max(off, key=lambda each: torch.inf if off[each] != off[each] else off[each])
        return name, off[name]


def compared(module: nn.Module, sequences: Sequence[Tensor], form: str, *, tokens: bool) -> Compared:
    """Run a batch and each sequence alone, and the gradient of a random weighted sum of all outputs."""
    alone = [outputs(module, [each], form, tokens=tokens)[0] for each in sequences]
    generator = torch.Generator(sequences[0].device).manual_seed(0)
    weights = [torch.randn(each.shape, generator=generator, device=each.device, dtype=torch.float64) for each in alone]
    given = outputs(module, sequences, form, tokens=tokens)
    return Compared(_with_gradients(module, given, weights), _with_gradients(module, alone, weights))


def _with_gradients(module: nn.Module, found: Sequence[Tensor], weights: Sequence[Tensor]) -> dict[str, Any]:
    total = sum(((each * weight).sum() for each, weight in zip(found, weights, strict=True)), weights[0].new_zeros(()))
    named = {name: value for name, value in module.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(total, [*named.values()], allow_unused=True) if named else ()
    kept = {f"output of sequence {number}": each.detach() for number, each in enumerate(found)}
    return kept | {
        f"gradient of {name}": torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(named.items(), gradients, strict=True)
    }
