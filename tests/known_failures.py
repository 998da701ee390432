"""Every known upstream failure, and the cells it strikes. An entry that matches no cell is an error."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet

from model.attention import Device, Machine
from model.cells import Cell


@dataclass(frozen=True)
class KnownFailure:
    """A defect of a dependency, shown by strict xfail: when it is mended, the entry must go.

    `tests` are the test functions that it turns red on `device` (of `min_capability` or newer), and `matches` maps
    fields of the cell's key to their values, or to a tuple of which any will do. `package` and `versions` (a PEP 440
    specifier) say which releases have it. Where `tensors` is given, the failure comes and goes: it is known in tensors
    of these names alone (a regular expression), and only where runs of one batch differ. `reproduction` is a script,
    by its path in this repository, with its argument; `link` an upstream report, where there is one.
    """

    tests: tuple[str, ...]
    device: Device
    matches: Mapping[str, Any]
    package: str
    versions: str
    reason: str
    reproduction: str
    link: str = ""
    min_capability: tuple[int, int] | None = None
    tensors: str = ""

    def strikes(self, cell: Cell, device: Device, test: str) -> bool:
        """Tell whether `cell` is struck in `test` on `device`."""
        key = cell.key | {"backend": cell.backend.attention}
        alike = all(key[f] in (v if isinstance(v, tuple) else (v,)) for f, v in self.matches.items())
        return test in self.tests and device == self.device and alike

    def fluctuates(self, tensor: str) -> bool:
        """Tell whether the failure comes and goes in the tensor of this name."""
        return bool(self.tensors) and re.fullmatch(self.tensors, tensor) is not None

    def present(self, machine: Machine) -> bool:
        """Tell whether the installed release has the defect on this GPU."""
        found = machine.version_of(self.package)
        capable = self.min_capability is None or (machine.capability or (0, 0)) >= self.min_capability
        return capable and found is not None and found in SpecifierSet(self.versions)


@dataclass(frozen=True)
class KnownLeak:
    """A way in which families of transformers compute something else of several sequences than of each one alone.

    The record of the installed version (docs/results/packing) lists the families that are wrong in a way of `test`:
    there are hundreds. Strict as well: when one is mended, a new record is due.
    `reproduction` is a script, by its path in this repository, that is called with the family.
    """

    test: str
    reason: str
    reproduction: str = "docs/reproductions/packing.py"

    def strikes(self, entry: Mapping[str, Any], ways: Collection[str], implementations: Collection[str]) -> bool:
        """Tell whether a record's entry of a family has one of `ways` as wrong with one of `implementations`."""
        found = entry.get("implementations", {})
        states = [
            each.get("ways", {}).get(way) for name, each in found.items() if name in implementations for way in ways
        ]
        return any(isinstance(state, list) and state[0] == "wrong" for state in states)


@dataclass(frozen=True)
class IgnoredWindow:
    """A family of transformers whose attention leaves out the sliding window of its config, in these `versions`.

    Strict as well. `reproduction` is a script, by its path in this repository.
    """

    family: str
    versions: str
    reason: str
    reproduction: str

    def present(self, machine: Machine) -> bool:
        """Tell whether the installed transformers has the defect."""
        found = machine.version_of("transformers")
        return found is not None and found in SpecifierSet(self.versions)


KNOWN_FAILURES: tuple[KnownFailure, ...] = (
    KnownFailure(
        tests=(
            "test_a_compiled_batch_equals_the_padded_reference",
            "test_ragged_batches_after_a_warm_up_are_not_compiled_again",
            "test_a_batch_is_timed",
        ),
        device="cpu",
        matches={"backend": "flex_document_mask", "execution": "compiled"},
        package="torch",
        versions="==2.13.*",
        reason="the C++ that torch.compile writes for FlexAttention with dynamic shapes does not compile",
        reproduction="findings/flex_cpu_dynamic.sh",
    ),
    KnownFailure(
        tests=("test_a_batch_whose_blocks_are_computed_again_equals_the_padded_reference",),
        device="cpu",
        matches={"backend": "sdpa_nested"},
        package="torch",
        versions=">=2.10,<2.16",
        reason="torch.utils.checkpoint asks for the sizes of NestedTensors that SDPA saves on a CPU, which have none",
        reproduction="findings/nested_checkpoint.sh",
    ),
    KnownFailure(
        tests=("test_compiled_attention_may_share_keys_and_values_between_heads",),
        device="cuda",
        matches={"backend": "sdpa_padded_flash", "execution": "compiled", "mode": "train"},
        package="torch",
        versions="==2.11.*",
        reason="torch.compile expects other strides of the flash kernel's results where keys have stride 0 over heads",
        reproduction="docs/reproductions/compiled_flash_expanded.py",
    ),
    KnownFailure(
        tests=("test_compiled_attention_takes_grouped_heads_and_a_scale_of_its_own",),
        device="cuda",
        matches={"backend": "flex_document_mask", "execution": "compiled"},
        package="torch",
        versions="==2.11.*",
        reason="torch.compile finds no kernel of FlexAttention for grouped heads on a row of less than 128 tokens",
        reproduction="docs/reproductions/flex_short_grouped.py",
    ),
    KnownFailure(
        tests=("test_a_batch_takes_a_part_of_a_longer_upstream_gradient",),
        device="cpu",
        matches={"backend": "sdpa_nested"},
        package="torch",
        versions=">=2.10,<2.16",
        reason="the backward of SDPA on NestedTensors reads an upstream gradient from the start of its storage",
        reproduction="findings/nested_gradient_offset.sh",
    ),
    KnownFailure(
        tests=(
            "test_a_batch_takes_upstream_gradients_of_any_strides",
            "test_a_batch_takes_a_part_of_a_longer_upstream_gradient",
        ),
        device="cuda",
        # Where torch chooses, it chooses cuDNN from compute capability 9.0 on.
        matches={"backend": ("sdpa_padded", "sdpa_padded_cudnn", "sdpa_document_mask"), "dtype": "bfloat16"},
        package="torch",
        versions="==2.11.*",
        reason="the backward of cuDNN's SDPA reads an upstream gradient by the strides of the one it was planned for",
        reproduction="docs/reproductions/cudnn_gradient_strides.py",
        min_capability=(9, 0),
    ),
    KnownFailure(
        tests=("test_a_batch_may_have_more_elements_than_32_bits_count",),
        device="cuda",
        matches={"backend": ("sdpa_padded", "sdpa_padded_cudnn")},
        package="torch",
        versions="==2.11.*",
        reason="the backward of cuDNN's SDPA gives wrong dq and dk past 2^31 elements",
        reproduction="docs/reproductions/past_32_bits.py cudnn",
        min_capability=(9, 0),
    ),
    KnownFailure(
        tests=("test_a_compiled_batch_equals_the_padded_reference",),
        device="cuda",
        matches={"execution": "compiled", "mode": "train"},
        package="torch",
        # Seen with 2.11; 2.13 writes such kernels in the same way.
        versions=">=2.11,<2.14",
        reason="a kernel of torch.compile sums a buffer that it writes to: a bias gradient differs from run to run",
        reproduction="docs/reproductions/inductor_inplace_sum.py",
        link="https://github.com/triton-lang/triton/issues/1615",
        tensors=r"gradient of blocks\.\d+\.mlp\.up\.bias",
    ),
    KnownFailure(
        tests=("test_a_batch_may_have_more_elements_than_32_bits_count",),
        device="cuda",
        matches={"backend": ("sdpa_padded_flash", "sdpa_nested", "torch_varlen")},
        package="torch",
        versions="==2.11.*",
        reason="the backward of torch's copy of FlashAttention-2 counts elements in 32 bits: an illegal memory access",
        reproduction="docs/reproductions/past_32_bits.py flash",
        link="https://github.com/Dao-AILab/flash-attention/pull/1500",
    ),
)

KNOWN_LEAKS: tuple[KnownLeak, ...] = (
    KnownLeak(
        test="test_a_flattened_row_equals_each_sequence_alone",
        reason="masks, convolutions or recurrent states ignore where position_ids restart",
    ),
    KnownLeak(
        test="test_a_row_with_offsets_and_numbers_equals_each_sequence_alone",
        reason="cu_seq_lens and seq_idx reach only some kernels",
    ),
    KnownLeak(
        test="test_a_default_cache_changes_nothing",
        reason="a cache, although it is empty, turns off the detection of packed rows",
    ),
    KnownLeak(
        test="test_a_mask_of_ones_changes_nothing",
        reason="a 2-D attention mask, although it is all ones, turns off the detection of packed rows",
    ),
    KnownLeak(
        test="test_padding_on_the_right_changes_nothing",
        reason="padding changes what a family computes for the tokens before it",
    ),
    KnownLeak(
        test="test_padding_on_the_left_with_positions_changes_nothing",
        reason="padding changes what a family computes for the tokens after it",
    ),
    KnownLeak(
        test="test_padding_on_the_left_changes_nothing",
        reason="positions are counted from the start of the row, padding included",
    ),
)

#: Of every family with a window in transformers 4.53.0, 5.17.0 and 5.24.0.
IGNORED_WINDOWS: tuple[IgnoredWindow, ...] = (
    IgnoredWindow(
        family="moshi",
        versions=">=4.53",
        reason="MoshiForCausalLM makes a causal mask or none, and ignores its sliding_window",
        reproduction="findings/moshi_window.sh",
    ),
)
