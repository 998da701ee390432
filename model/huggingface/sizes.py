"""What makes a config small: names of config fields that mean a size, whatever family has them, and the small value.

Widths fit each other: a hidden size of 64 is 4 heads of 16. Windows, chunks and blocks are a few tokens, so that
the short sequences of the checks are longer than they are.
"""

from typing import Any

SMALL_VOCABULARY = 96
HIDDEN = 64
HEADS = 4
HEAD_DIM = 16
WINDOW = 4
POSITIONS = 64

#: Sub-configs that are made small as well.
NESTED = frozenset(
    {
        "text_config",
        "decoder_config",
        "encoder_config",
        "global_config",
        "patcher_config",
        "ffn_config",
        "attn_config",
        "vision_config",
        "audio_config",
        "vq_config",
        "audio_encoder_config",
        "depth_decoder_config",
        "text_encoder",
        "audio_encoder",
        "decoder",
    }
)

#: Fields that count layers.
LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_blocks",
    "num_encoder_layers",
    "num_decoder_layers",
    "num_layers_per_stack",
)

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), SMALL_VOCABULARY),
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "emb_dim",
            "embedding_dim",
            "embedding_size",
            "word_embed_proj_dim",
            "input_embedding_size",
            "output_embedding_size",
            "lru_width",
            "cross_attention_hidden_size",
        ),
        HIDDEN,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "attention_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "num_encoder_attention_heads",
            "num_decoder_attention_heads",
            "swa_num_attention_heads",
        ),
        HEADS,
    ),
    **dict.fromkeys(("num_kv_heads", "swa_num_key_value_heads", "num_query_groups", "kv_n_heads"), 2),
    **dict.fromkeys(
        (
            "head_dim",
            "d_kv",
            "d_head",
            "dim_head",
            "global_head_dim",
            "v_head_dim",
            "swa_head_dim",
            "kv_channels",
            "attention_head_size",
            "swa_v_head_dim",
        ),
        HEAD_DIM,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "ffn_dim",
            "n_inner",
            "dff",
            "dim_ff",
            "d_inner",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "ffn_hidden_size",
            "feed_forward_size",
            "expert_ffn_hidden_size",
            "shared_intermediate_size",
            "dense_intermediate_size",
            "intermediate_size_mlp",
            "moe_shared_expert_intermediate_size",
            "prefix_dense_intermediate_size",
        ),
        96,
    ),
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_target_positions",
            "max_seq_len",
            "context_length",
            "max_source_positions",
            "max_sequence_length",
            "original_max_position_embeddings",
        ),
        POSITIONS,
    ),
    **dict.fromkeys(
        (
            "sliding_window",
            "sliding_window_size",
            "attention_window_size",
            "window_size",
            "local_attention",
            "attention_chunk_size",
            "chunk_size",
            "mamba_chunk_size",
            "keep_window_size",
        ),
        WINDOW,
    ),
    **dict.fromkeys(
        ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "num_routed_experts"), 4
    ),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), HEAD_DIM),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), HEADS),
    # A state-space layer twice as wide as the rest: 8 heads of 16.
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads"), 2 * HEADS),
    **dict.fromkeys(("mamba_head_dim", "mamba_d_head", "mamba_headdim"), HEAD_DIM),
    **dict.fromkeys(("ssm_state_size", "state_size", "mamba_d_state"), 16),
    "mamba_d_ssm": 2 * HIDDEN,
    "num_key_value_heads": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "hidden_size_per_layer_input": 16,
    "rotary_dim": 8,
}

#: Sizes of which a smaller default stays what it is.
AT_MOST: dict[str, int] = dict.fromkeys(
    (
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_top_k",
        "moe_k",
        "top_k_experts",
        "n_shared_experts",
        "n_groups",
        "mamba_n_groups",
        "mamba_ngroups",
    ),
    2,
)

#: Sizes that are given where the default is None as well, as others are computed from them.
NEVER_NONE = frozenset(
    {
        "vocab_size",
        "head_dim",
        "num_key_value_heads",
        "n_routed_experts",
        "num_experts",
        "moe_intermediate_size",
        "num_experts_per_tok",
        "n_shared_experts",
    }
)
