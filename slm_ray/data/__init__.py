"""Text in, packed tokens out: corpora, their split into parts by document, the token cache, and shards for training."""
