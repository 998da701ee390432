"""The article's toy decoder and GPT-2 on one H100 (PyTorch 2.5.1, CUDA 12.4), ms a step, bfloat16 autocast.

It evaluates without a causal mask and trains with one; GPT-2 it trains only, with dropout. A word stands where it gives
no time.
"""

from typing import Any

# Keys: backend, collator, mode, execution.
ARTICLE_MS: dict[tuple[str, str, str, str], float | str] = {
    ("sdpa_padded", "pad_fixed", "eval", "eager"): 132,
    ("sdpa_padded", "pad_fixed", "eval", "compiled"): 130,
    ("sdpa_padded", "pad_fixed", "train", "eager"): 342,
    ("sdpa_padded", "pad_fixed", "train", "compiled"): 299,
    ("sdpa_padded", "pad_longest", "eval", "eager"): 129,
    ("sdpa_padded", "pad_longest", "eval", "compiled"): 116,
    ("sdpa_padded", "pad_longest", "train", "eager"): 337,
    ("sdpa_padded", "pad_longest", "train", "compiled"): 294,
    ("sdpa_nested", "nested", "eval", "eager"): 131,
    ("sdpa_nested", "nested", "eval", "compiled"): 42,
    ("sdpa_nested", "nested", "train", "eager"): "not run",
    ("sdpa_nested", "nested", "train", "compiled"): "not run",
    ("fa2_varlen", "packed", "eval", "eager"): 51,
    ("fa2_varlen", "packed", "eval", "compiled"): "not supported then",
    ("fa2_varlen", "packed", "train", "eager"): 160,
    ("fa2_varlen", "packed", "train", "compiled"): "not supported then",
    ("xformers_auto", "packed", "eval", "eager"): 50,
    ("xformers_auto", "packed", "eval", "compiled"): 42,
    ("xformers_auto", "packed", "train", "eager"): 159,
    ("xformers_auto", "packed", "train", "compiled"): "failed then",
    ("gpt2_hf_sdpa_padded", "pad_longest", "train", "eager"): 815,
    ("gpt2_hf_sdpa_padded", "pad_longest", "train", "compiled"): 440,
    ("gpt2_hf_fa2_padded", "pad_longest", "train", "eager"): 620,
    ("gpt2_hf_fa2", "packed", "train", "eager"): 323,
}


def article_ms(cell: dict[str, Any]) -> float | str | None:
    """The article's ms a step (or its word) for a cell, None where the cell is not one of its.

    >>> article_ms({"backend": "fa2_varlen", "collator": "packed", "mode": "eval", "causal": False,
    ...             "dtype": "bfloat16", "execution": "eager", "workload": "article", "lengths": "uniform"})
    51
    """
    same_work = cell["workload"] == "article" and cell["lengths"] == "uniform" and cell["dtype"] == "bfloat16"
    if not same_work or cell["causal"] != (cell["mode"] == "train"):
        return None
    return ARTICLE_MS.get((cell["backend"], cell["collator"], cell["mode"], cell["execution"]))
