"""How keys and values may be kept: the words that the command line, load() and the pages have in common."""

KV_DTYPES = ("f16", "f32")
