"""Words that options take and that other modules define, for the completions.

A build makes the files of completions before there are kernels and NumPy, without which those modules cannot be
imported: hence once more, and a test that both say the same.
"""

TYPES = (
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s",
    "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs", "q3_k", "q4_k", "q5_k",
)  # fmt: skip

PRE_TOKENIZERS = (
    "gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code",
    "roberta-bpe", "gigachat", "a.x-4.0", "mellum", "modern-bert", "jais", "trillion", "granite-docling", "exaone4",
    "mpt", "olmo", "smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2", "command-r",
    "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    "smaug-bpe", "dbrx", "glm4", "chatglm-bpe", "minicpm5", "jais-2", "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2",
    "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2", "qwen35", "ufakzeka", "laguna", "seed-coder",
    "bailingmoe", "bailingmoe2", "llada-moe", "exaone-moe", "tekken", "gpt-4o", "llama4", "kanana2", "talkie",
    "minimax-m2", "granite-embed-multi-97m", "deepseek-llm", "deepseek-coder", "deepseek-v3", "hunyuan-dense",
    "joyai-llm", "hy_v4", "spark2_5", "falcon", "poro-chat", "bloom", "gpt3-finnish", "viking", "superbpe", "chameleon",
)  # fmt: skip
