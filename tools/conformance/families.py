"""The tiny configurations that the conformance judge and the fixtures are made of.

Every family appears at least twice, and the configurations are odd on purpose: a head_dim that is not hidden / heads,
one KV head, tied and untied heads, sizes that are no multiple of 16 or 32, prompts longer than the sliding window,
prompts within and beyond the original length of a scaled rotary embedding, biases where the family has them.
A size that is convenient for a kernel hides the bugs of its tail.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    name: str
    config_class: str  # in the transformers package
    options: dict
    prompt: int  # tokens
    dtype: str = "float32"  # of the weights on disk; the judge always computes in float32
    # Standard deviation of the second, randomly initialised set of weights of the live judge.
    std: float = 0.12
    # The frequencies of dynamic rotary embeddings follow the length at each step in transformers. Millrace fixes them
    # when a sequence is admitted, so for such a case the judge freezes them after the prompt.
    freeze_rope: bool = False
    # The second set of weights is saved as several shards of about this many bytes.
    shard: int = 0
    # Rewrites the second directory's experts as MXFP4 blocks, as the published gpt-oss checkpoints have them.
    mxfp4: bool = False
    notes: str = ""

    @property
    def family(self) -> str:
        return self.config_class.removesuffix("TextConfig").removesuffix("Config")


CASES: list[Case] = []


def _sizes(hidden, layers, heads, kv_heads, intermediate, vocab, **more) -> dict:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    } | more


def _case(name, config_class, options, prompt, **more):
    CASES.append(Case(name, config_class, options, prompt, **more))


def _rope(kind, theta=10000.0, **more) -> dict:
    return {"rope_type": kind, "rope_theta": theta} | more


def _factors(count, first, step) -> list[float]:
    """Made-up LongRoPE factors: rising, and not representable in binary, as the published ones."""
    return [round(first + step * i, 2) for i in range(count)]


# --- Llama -----------------------------------------------------------------------------------------------------------
_LLAMA = "LlamaConfig"
_SMALL = _sizes(64, 2, 4, 2, 88, 97)

_case("llama2", _LLAMA, _sizes(64, 3, 4, 4, 88, 97), 32, shard=60_000)
_case("llama_odd", _LLAMA, _sizes(72, 2, 6, 1, 88, 131, head_dim=16, tie_word_embeddings=True, attention_bias=True,
                                  mlp_bias=True, rms_norm_eps=1e-5), 30, dtype="float16")
_LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
_case("llama31_within", _LLAMA, _SMALL | {"rope_parameters": _rope(
    "llama3", 500000.0, original_max_position_embeddings=128, **_LLAMA3)}, 24, dtype="bfloat16")
_case("llama31_beyond", _LLAMA, _SMALL | {"head_dim": 24, "tie_word_embeddings": True, "rope_parameters": _rope(
    "llama3", original_max_position_embeddings=32, **_LLAMA3)}, 48)
_case("llama_linear_within", _LLAMA, _SMALL | {"rope_parameters": _rope("linear", factor=2.0)}, 28)
_case("llama_linear_beyond", _LLAMA, _SMALL | {"num_key_value_heads": 1,
                                               "rope_parameters": _rope("linear", factor=8.0)}, 48)
_case("llama_dynamic_within", _LLAMA, _SMALL | {"max_position_embeddings": 128,
                                                "rope_parameters": _rope("dynamic", factor=4.0)}, 28)
_case("llama_dynamic_beyond", _LLAMA, _SMALL | {"max_position_embeddings": 32, "head_dim": 12,
                                                "rope_parameters": _rope("dynamic", factor=4.0)}, 50,
      freeze_rope=True, notes="greedy tokens with the frequencies of the prompt's length kept")
_case("llama_yarn_within", _LLAMA, _SMALL | {"rope_parameters": _rope(
    "yarn", factor=2.0, original_max_position_embeddings=128)}, 28, dtype="bfloat16")
_case("llama_yarn_beyond", _LLAMA, _SMALL | {"head_dim": 24, "rope_parameters": _rope(
    "yarn", factor=16.0, original_max_position_embeddings=16, beta_fast=1.0, beta_slow=0.1, truncate=False)}, 48)
_case("llama_yarn_mscale", _LLAMA, _SMALL | {"rope_parameters": _rope(
    "yarn", factor=8.0, original_max_position_embeddings=32, mscale=0.707, mscale_all_dim=1.0)}, 40)
_case("llama_yarn_attention_factor", _LLAMA, _SMALL | {"tie_word_embeddings": True, "rope_parameters": _rope(
    "yarn", factor=8.0, original_max_position_embeddings=32, attention_factor=0.83)}, 40)
_case("llama_longrope_short", _LLAMA, _SMALL | {"rope_parameters": _rope(
    "longrope", original_max_position_embeddings=128, factor=2.0, short_factor=_factors(8, 1.0, 0.03),
    long_factor=_factors(8, 1.1, 0.7))}, 30)
_case("llama_longrope_long", _LLAMA, _SMALL | {"rope_parameters": _rope(
    "longrope", original_max_position_embeddings=32, attention_factor=1.19, factor=8.0,
    short_factor=_factors(8, 1.0, 0.03), long_factor=_factors(8, 1.1, 0.7))}, 44)

# --- Mistral, Mixtral, Ministral 3 -----------------------------------------------------------------------------------
_case("mistral_window", "MistralConfig", _sizes(72, 3, 6, 2, 104, 113, head_dim=20, sliding_window=16), 44,
      dtype="bfloat16")
_case("mistral_full", "MistralConfig", _sizes(48, 2, 4, 1, 88, 97, sliding_window=None, tie_word_embeddings=True,
                                              rope_parameters=_rope("default", 1e6)), 30)
_case("mixtral", "MixtralConfig", _sizes(48, 2, 4, 1, 40, 97, num_local_experts=4, num_experts_per_tok=2), 30)
_case("mixtral_window", "MixtralConfig", _sizes(56, 2, 4, 2, 36, 101, num_local_experts=5, num_experts_per_tok=3,
                                                head_dim=18, sliding_window=12, tie_word_embeddings=True), 36,
      dtype="bfloat16")
_MINISTRAL_ROPE = _rope("yarn", 1e6, factor=16.0, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0,
                        original_max_position_embeddings=16, llama_4_scaling_beta=0.1)
_case("ministral3_beyond", "Ministral3Config", _sizes(64, 3, 4, 2, 88, 97, head_dim=24,
                                                      rope_parameters=_MINISTRAL_ROPE), 44)
_case("ministral3_within", "Ministral3Config", _sizes(
    72, 2, 6, 1, 88, 113, head_dim=16, tie_word_embeddings=True, sliding_window=20,
    rope_parameters=_MINISTRAL_ROPE | {"original_max_position_embeddings": 128, "factor": 2.0,
                                       "llama_4_scaling_beta": 0.25}), 32, dtype="bfloat16")

# --- Qwen ------------------------------------------------------------------------------------------------------------
_case("qwen2", "Qwen2Config", _sizes(72, 2, 6, 2, 88, 131, tie_word_embeddings=True, rms_norm_eps=1e-5), 30,
      dtype="bfloat16")
_case("qwen2_window", "Qwen2Config", _sizes(64, 4, 4, 1, 88, 97, use_sliding_window=True, sliding_window=16,
                                            max_window_layers=2, head_dim=24), 44)
_case("qwen2_layer_types", "Qwen2Config", _sizes(
    64, 3, 4, 2, 72, 97, use_sliding_window=True, sliding_window=11,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"]), 32)
_case("qwen3", "Qwen3Config", _sizes(64, 2, 4, 1, 88, 113, head_dim=24, tie_word_embeddings=True,
                                     rope_parameters=_rope("default", 1e6)), 30, dtype="bfloat16")
_case("qwen3_window_bias", "Qwen3Config", _sizes(56, 3, 4, 2, 88, 97, head_dim=20, attention_bias=True,
                                                 use_sliding_window=True, sliding_window=16, max_window_layers=1), 40)
_case("qwen3_yarn", "Qwen3Config", _sizes(64, 2, 4, 4, 88, 97, head_dim=16, rope_parameters=_rope(
    "yarn", 1e6, factor=4.0, original_max_position_embeddings=32)), 44)
_case("qwen3_moe", "Qwen3MoeConfig", _sizes(64, 2, 4, 1, 88, 97, head_dim=24, num_experts=8, num_experts_per_tok=3,
                                            moe_intermediate_size=24, norm_topk_prob=True), 30, dtype="bfloat16")
_case("qwen3_moe_dense_layers", "Qwen3MoeConfig", _sizes(
    56, 3, 4, 2, 72, 101, head_dim=18, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20,
    norm_topk_prob=False, mlp_only_layers=[1], tie_word_embeddings=True, attention_bias=True,
    use_sliding_window=True, sliding_window=16), 36)
_case("qwen3_moe_sparse_step", "Qwen3MoeConfig", _sizes(
    48, 4, 4, 4, 72, 97, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=28,
    norm_topk_prob=True, decoder_sparse_step=2), 28)

# --- Gemma -----------------------------------------------------------------------------------------------------------
_case("gemma2", "Gemma2Config", _sizes(64, 4, 4, 1, 88, 113, head_dim=20, query_pre_attn_scalar=24, sliding_window=16),
      44, dtype="bfloat16")
_case("gemma2_no_caps", "Gemma2Config", _sizes(
    72, 3, 6, 2, 88, 97, head_dim=16, query_pre_attn_scalar=12, sliding_window=12, attn_logit_softcapping=None,
    final_logit_softcapping=None, attention_bias=True, tie_word_embeddings=False,
    layer_types=["full_attention", "sliding_attention", "sliding_attention"]), 32)
_case("gemma3", "Gemma3TextConfig", _sizes(64, 6, 4, 1, 88, 113, head_dim=20, query_pre_attn_scalar=24,
                                           sliding_window=12), 40, dtype="bfloat16")
_case("gemma3_linear", "Gemma3TextConfig", _sizes(
    72, 4, 6, 2, 88, 97, head_dim=16, query_pre_attn_scalar=16, sliding_window=16, tie_word_embeddings=False,
    final_logit_softcapping=20.0, attn_logit_softcapping=30.0, attention_bias=True,
    layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    rope_parameters={"sliding_attention": _rope("default"), "full_attention": _rope("linear", 1e6, factor=8.0)}), 44)
_PATTERN = ["sliding_attention", "sliding_attention", "full_attention"]
_case("gemma4_shared", "Gemma4TextConfig", _sizes(
    64, 6, 4, 1, 56, 97, head_dim=16, global_head_dim=32, sliding_window=12, layer_types=_PATTERN * 2,
    num_kv_shared_layers=3, use_double_wide_mlp=True, hidden_size_per_layer_input=12, vocab_size_per_layer_input=97,
    final_logit_softcapping=30.0), 40, dtype="bfloat16")
_case("gemma4_moe", "Gemma4TextConfig", _sizes(
    72, 3, 6, 2, 56, 101, head_dim=12, global_head_dim=24, num_global_key_value_heads=1, attention_k_eq_v=True,
    sliding_window=16, layer_types=_PATTERN, hidden_size_per_layer_input=0, vocab_size_per_layer_input=101,
    enable_moe_block=True, num_experts=6, top_k_experts=2, moe_intermediate_size=20), 40)
_case("gemma4_untied", "Gemma4TextConfig", _sizes(
    56, 4, 4, 2, 56, 97, head_dim=16, global_head_dim=16, sliding_window=10, tie_word_embeddings=False,
    layer_types=["sliding_attention", "full_attention"] * 2, attention_bias=True, num_kv_shared_layers=1,
    hidden_size_per_layer_input=8, vocab_size_per_layer_input=97), 32)

# --- Phi, OLMo, SmolLM, GLM, Granite ---------------------------------------------------------------------------------
_case("phi3", "Phi3Config", _sizes(64, 2, 4, 4, 88, 97, sliding_window=20, original_max_position_embeddings=256,
                                   pad_token_id=0), 40, dtype="bfloat16")
_case("phi3_longrope_long", "Phi3Config", _sizes(
    72, 2, 6, 6, 88, 101, original_max_position_embeddings=32, pad_token_id=0, rope_parameters=_rope(
        "longrope", short_factor=_factors(6, 1.0, 0.05), long_factor=_factors(6, 1.05, 0.9))), 44)
_case("phi3_longrope_short", "Phi3Config", _sizes(
    64, 2, 4, 1, 88, 97, original_max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=0,
    rope_parameters=_rope("longrope", short_factor=_factors(8, 1.0, 0.05), long_factor=_factors(8, 1.05, 0.9))), 32)
_case("phi4_mini_long", "Phi3Config", _sizes(
    64, 2, 4, 2, 72, 113, original_max_position_embeddings=32, tie_word_embeddings=True, pad_token_id=0,
    rope_parameters=_rope("longrope", partial_rotary_factor=0.75, short_factor=_factors(6, 1.0, 0.0),
                          long_factor=_factors(6, 1.0, 1.3))), 40, dtype="bfloat16")
_case("olmo2", "Olmo2Config", _sizes(64, 2, 4, 4, 88, 97, rms_norm_eps=1e-6), 30, dtype="bfloat16")
_case("olmo2_odd", "Olmo2Config", _sizes(
    72, 4, 6, 1, 88, 131, head_dim=16, attention_bias=True, tie_word_embeddings=True,
    rope_parameters=_rope("linear", factor=2.0)), 28)
_case("smollm3", "SmolLM3Config", _sizes(64, 4, 4, 1, 88, 97, head_dim=24, rope_parameters=_rope("default", 5e6)), 30,
      dtype="bfloat16")
_case("smollm3_window", "SmolLM3Config", _sizes(
    72, 3, 6, 2, 88, 113, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, use_sliding_window=True,
    sliding_window=12, no_rope_layers=[1, 0, 1], rope_parameters=_rope("default", 1e5)), 36)
_case("glm", "GlmConfig", _sizes(64, 2, 4, 2, 88, 97, head_dim=16, pad_token_id=0), 30, dtype="bfloat16")
_case("glm_odd", "GlmConfig", _sizes(72, 3, 6, 1, 56, 113, head_dim=20, pad_token_id=0, attention_bias=False,
                                     tie_word_embeddings=True), 30)
_case("glm4", "Glm4Config", _sizes(64, 2, 4, 2, 88, 97, head_dim=16, pad_token_id=0), 30, dtype="bfloat16")
_case("glm4_odd", "Glm4Config", _sizes(72, 3, 6, 1, 56, 113, head_dim=24, pad_token_id=0, attention_bias=False,
                                       tie_word_embeddings=True, rope_parameters=_rope(
                                           "default", partial_rotary_factor=1.0)), 30)
_case("granite", "GraniteConfig", _sizes(64, 3, 4, 2, 88, 97, embedding_multiplier=0.75, logits_scaling=1.7,
                                         residual_multiplier=0.62, attention_multiplier=0.0625,
                                         tie_word_embeddings=True), 30, dtype="bfloat16")
_case("granite_odd", "GraniteConfig", _sizes(
    72, 2, 6, 1, 88, 131, head_dim=16, embedding_multiplier=6.0, logits_scaling=0.6, residual_multiplier=0.5,
    attention_multiplier=0.2, attention_bias=True, mlp_bias=True), 28)

# --- gpt-oss ---------------------------------------------------------------------------------------------------------
_YARN_OSS = dict(beta_fast=32.0, beta_slow=1.0, truncate=False)
_case("gpt_oss", "GptOssConfig", _sizes(
    64, 2, 4, 1, 40, 97, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
    rope_parameters=_rope("yarn", 150000.0, factor=8.0, original_max_position_embeddings=32, beta_fast=4.0, beta_slow=0.25,
                          truncate=False)), 44)
_case("gpt_oss_odd", "GptOssConfig", _sizes(
    72, 3, 6, 2, 28, 113, head_dim=20, num_local_experts=6, num_experts_per_tok=4, sliding_window=10,
    swiglu_limit=1.5, rope_parameters=_rope(
        "yarn", 150000.0, factor=4.0, original_max_position_embeddings=64, **_YARN_OSS)), 32, dtype="bfloat16")
_case("gpt_oss_mxfp4", "GptOssConfig", _sizes(
    64, 2, 4, 2, 96, 97, head_dim=24, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
    rope_parameters=_rope("yarn", 150000.0, factor=4.0, original_max_position_embeddings=64, **_YARN_OSS)), 30,
    dtype="bfloat16", mxfp4=True)


def select(words: list[str]) -> list[Case]:
    """Cases whose name or config class contains one of the words; all of them without words."""
    if not words:
        return list(CASES)
    return [c for c in CASES if any(w.lower() in c.name or w.lower() in c.config_class.lower() for w in words)]
