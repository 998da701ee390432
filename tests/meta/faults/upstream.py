"""The real bugs that the catalogue draws on, and why some of them cannot be injected here."""

PROJECTS = {
    "accelerate": "huggingface/accelerate",
    "axolotl": "axolotl-ai-cloud/axolotl",
    "flash-attention": "Dao-AILab/flash-attention",
    "flash-linear-attention": "fla-org/flash-linear-attention",
    "Liger-Kernel": "linkedin/Liger-Kernel",
    "LLaMA-Factory": "hiyouga/LLaMA-Factory",
    "ms-swift": "modelscope/ms-swift",
    "nanoVLM": "huggingface/nanoVLM",
    "pytorch": "pytorch/pytorch",
    "semantic-router": "vllm-project/semantic-router",
    "torchtune": "pytorch/torchtune",
    "TransformerEngine": "NVIDIA/TransformerEngine",
    "transformers": "huggingface/transformers",
    "unsloth-zoo": "unslothai/unsloth-zoo",
    "vllm": "vllm-project/vllm",
    "xformers": "facebookresearch/xformers",
}

STEP_TIME = "a step that is slow, not wrong: the gate on step times sees it"

#: What happened, by project and number of the report.
BUGS: dict[str, str] = {
    "transformers#46634": "packed rows leak where a mask of ones switches packed detection off",
    "axolotl#3796": "the document mask is never given to SDPA",
    "flash-linear-attention#838": "cu_seqlens are overwritten by the attention mask",
    "nanoVLM#201": "positions not reset and no document mask",
    "transformers#39814": "no position is 0, by which sequences are told apart",
    "LLaMA-Factory#7754": "wrong positions in the second packed document",
    "LLaMA-Factory#10736": "ids padded to a multiple, positions not: an error of shapes deep in the model",
    "accelerate#4071": "a run resumed within an epoch gets the order of epoch 0",
    "transformers#35588": "a tensor for max_length breaks compiled steps",
    "ms-swift#9798": "the backward is compiled again for every micro-batch",
    "pytorch#136196": "FlexAttention is compiled again for every mask",
    "pytorch#141486": "FlexAttention is compiled again for every length",
    "flash-linear-attention#909": "a graph break in every batch",
    "flash-attention#443": "NaN dQ in very short sequences",
    "flash-attention#1537": "sequences of no tokens crash a kernel",
    "flash-attention#2562": "sequences of no tokens crash a kernel",
    "flash-attention#1254": "sequences of no tokens crash a kernel",
    "pytorch#190857": "addresses past 2^31",
    "flash-linear-attention#1080": "addresses past 2^31",
    "pytorch#103749": "NaN in rows that are masked as a whole",
    "pytorch#153799": "NaN gradients where the length is no multiple of a tile",
    "pytorch#128349": "NestedTensor SDPA loses a gradient",
    "pytorch#130196": "a NestedTensor of one token loses a dimension",
    "transformers#39408": "a sliding window is off by one",
    "semantic-router#3406": "one attention path drops the sliding window",
    "xformers#952": "wrong with heads that share keys",
    "pytorch#116301": "wrong with a mask and heads that share keys",
    "torchtune#2613": "the last token of a document predicts the next one's first",
    "transformers#34191": "gradient accumulation takes the mean of means",
    "Liger-Kernel#802": "gradient accumulation ignores the number of all targets",
    "TransformerEngine#2186": "dK and dV wrong beside padding at the end",
    "pytorch#196678": "NaN dQ of a padded batch with a mask",
    "pytorch#191937": "wrong with keys of stride 0",
    "unsloth-zoo#840": "positions of a left-padded batch count from its padding",
    "vllm#51902": "results change with max_seqlen, within rounding",
    "flash-attention#1023": "a determinism test compares a tensor with itself",
    "flash-attention#1903": "a new release is 20% slower",
    "flash-attention#1338": "a new release is slower",
    "torchtune#1879": "packed training is slower than padded",
}

#: Why a bug is not in the catalogue.
NOT_INJECTED: dict[str, str] = {
    "vllm#51902": "no fault: it stays within rounding, for which isolation compares batches of the same lengths only",
    "flash-attention#1903": STEP_TIME,
    "flash-attention#1338": STEP_TIME,
    "torchtune#1879": STEP_TIME,
}


def url(bug: str) -> str:
    """Return the address of a report such as `pytorch#103749`."""
    project, number = bug.split("#")
    return f"https://github.com/{PROJECTS[project]}/issues/{number}"
