"""A word that other programs use for an option -> pyllama's own word for it.

What a person typed after llama.cpp, ollama, transformers, vLLM or OpenAI's API, on the command line or as an argument
in Python. Knows no option: the caller says which there are.
"""

from __future__ import annotations

from collections.abc import Collection

# ours: theirs, all with underscores and without leading dashes
_WORDS = {
    "context_length": "context ctx ctx_size c num_ctx n_ctx ctx_len context_size context_window max_context "
    "max_context_length max_model_len max_seq_len max_seq_length max_position_embeddings max_kv_size",
    "max_tokens": "n_predict n num_predict predict max_new_tokens new_tokens tokens n_tokens num_tokens max_length "
    "max_completion_tokens max_output_tokens max_gen_len max_token token_limit",
    "temperature": "temp t_sampling",
    "top_p": "topp nucleus",
    "top_k": "topk",
    "min_p": "minp",
    "seed": "s random_seed rng_seed",
    "repetition_penalty": "repeat_penalty repeat rep_pen penalty",
    "presence_penalty": "presence",
    "frequency_penalty": "frequency freq_penalty",
    "stop": "stop_sequence stop_sequences stop_strings stop_words r reverse_prompt stop_token",
    "stop_token_ids": "eos_token_id eos_token_ids stop_ids",
    "ignore_eos": "no_eos",
    "logprobs": "top_logprobs n_probs log_probs",
    "threads": "t n_threads num_threads num_thread thread nthreads cpu_threads omp_num_threads",
    "memory": "mem ram max_memory memory_limit memory_budget budget mem_limit max_ram gpu_memory_utilization",
    "kv_dtype": "cache_type ctk ctv cache_type_k cache_type_v kv_cache_dtype kv_cache_type type_k kv_type",
    "prompt": "p text input message query question",
    "file": "f prompt_file input_file",
    "system": "sys system_prompt system_message",
    "raw": "no_template no_chat_template no_conversation no_cnv completion",
    "quiet": "q silent no_progress",
    "verbose": "v debug timings",
    "json": "output_json format_json",
    "against": "kl_divergence_base kld_base base reference base_model",
    "chunks": "n_chunks num_chunks chunk",
    "stride": "ppl_stride",
    "host": "hostname listen bind address ip",
    "port": "p",
    "alias": "a served_model_name model_alias name",
    "api_key_file": "api_key key token auth",
    "cors": "allowed_origins cors_origin cors_origins allow_origin origins",
    "max_running": "parallel np n_parallel max_num_seqs max_concurrent max_batch slots",
    "max_waiting": "queue max_queue",
    "timeout": "request_timeout",
    "model": "m model_path model_name path hf hf_repo hfr repo repo_id checkpoint ckpt",
}
# Options of programs that compute elsewhere or change weights, and why there is none here.
_NOWHERE = {
    "pyllama computes on the CPU": "ngl n_gpu_layers gpu_layers num_gpu gpu device cuda main_gpu tensor_split",
    "pyllama reads weights past the page cache, or as far as --memory allows": "no_mmap mlock mmap use_mmap",
    "the weights stay as they were published": "quantize quantization load_in_4bit load_in_8bit dtype torch_dtype",
}


def plain(word: str) -> str:
    """--Ctx-Size -> ctx_size."""
    return word.lstrip("-").replace("-", "_").lower()


def meant(word: str, known: Collection[str]) -> str | None:
    """Which of `known`, named as in Python, a word stands for; None if none is near."""
    word = plain(word)
    if word in known:
        return word
    for ours, theirs in _WORDS.items():
        if ours in known and (word == ours or word in theirs.split()):
            return ours
    from difflib import get_close_matches  # costs a millisecond, and only a mistake pays it

    near = get_close_matches(word, known, 1, 0.75)
    return near[0] if near else None


def is_of_others(word: str) -> bool:
    """Whether some other program has an option of that name."""
    word = plain(word)
    return any(word in theirs.split() for theirs in (*_WORDS.values(), *_NOWHERE.values()))


def why_not(word: str) -> str | None:
    """Why there is no such option anywhere; None if it is not one of other programs'."""
    word = plain(word)
    return next((why for why, words in _NOWHERE.items() if word in words.split()), None)
