"""From weights to words: the cache of keys and values, sampling, the batched engine, text in whole characters."""
