"""Configs for which the generic small sizes are not enough: fields that are passed as they stand, by config class."""

from typing import Any

#: None leaves a field to be computed from the others.
OVERRIDES: dict[str, dict[str, Any]] = {
    # Hybrids whose defaults, in two layers, would have no attention, or attention only.
    "BambaConfig": {"attn_layer_indices": [1]},
    "GraniteMoeHybridConfig": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2Config": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "RecurrentGemmaConfig": {"num_hidden_layers": 3},
    "BltConfig": {"encoder_hash_byte_group_vocab": 96},
    "BltLocalEncoderConfig": {"hidden_size_global": 64},
    "BltLocalDecoderConfig": {"hidden_size_global": 64},
    # The defaults leave out what a model of this many kinds of layers asks for.
    "CohereCompassTextConfig": {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            name: {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [3, 3, 2]}
            for name in ("sliding_attention", "full_attention")
        },
    },
    # The model reads both, and fails on the defaults.
    "DbrxAttentionConfig": {"rope_theta": 10_000.0, "clip_qkv": 8.0},
    "DistilBertConfig": {"dim": 64, "hidden_dim": 96},
    "EsmConfig": {"pad_token_id": 0},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "Gemma3nTextConfig": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": 96,
    },
    "Gemma4TextConfig": {"global_head_dim": 32},
    "Gemma4UnifiedTextConfig": {"global_head_dim": 32},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "LongcatFlashConfig": {"zero_expert_num": 2, "moe_topk": 2},
    "Mamba2Config": {"num_heads": 8, "head_dim": 16, "hidden_size": 64},
    # One codebook makes of its input one row of tokens.
    "MusicgenDecoderConfig": {"num_codebooks": 1},
    "MusicgenMelodyDecoderConfig": {"num_codebooks": 1},
    "Qwen4ExpTextConfig": {
        "head_dim": 16,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
    },
    # In training mode, the only one that it has gradients in, it takes whole chunks only.
    "ReformerConfig": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds": False,
        "local_attn_chunk_length": 1,
        "lsh_attn_chunk_length": 1,
        "hash_seed": 0,
    },
    "RoCBertConfig": {
        "pronunciation_vocab_size": 96,
        "shape_vocab_size": 96,
        "pronunciation_embed_dim": 64,
        "shape_embed_dim": 64,
    },
    "XmodConfig": {"default_language": "en_XX"},
    # Two layers share the attention that they have, so a second one has to be.
    "ZambaConfig": {
        "num_hidden_layers": 5,
        "attn_layer_period": 2,
        "attn_layer_offset": 0,
        "layers_block_type": None,
    },
}
