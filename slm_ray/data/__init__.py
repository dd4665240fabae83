"""Text in, packed tokens out: corpora, their split into parts by document, the token cache, and shards for training."""

from slm_ray.data.config import DEFAULT_CORPUS
from slm_ray.data.corpus import Corpus, Document
from slm_ray.data.load import load_corpus
from slm_ray.data.order import SequenceOrder
from slm_ray.data.prepare import prepare_shards
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.shards import TokenShards, digest_array, write_shards
from slm_ray.data.split import (
    CALIBRATION,
    HELD_OUT,
    PARTS,
    TRAIN,
    PartSummary,
    describe_parts,
    part_of,
    summarise_parts,
)
from slm_ray.data.tokenizers import load_tokenizer, tokenizer_digest

__all__ = [
    "CALIBRATION",
    "DEFAULT_CORPUS",
    "HELD_OUT",
    "PARTS",
    "TRAIN",
    "Corpus",
    "Document",
    "PartSummary",
    "SequenceOrder",
    "TokenShards",
    "describe_parts",
    "digest_array",
    "load_corpus",
    "load_tokenizer",
    "part_of",
    "prepare_shards",
    "prepare_tokens",
    "summarise_parts",
    "tokenizer_digest",
    "write_shards",
]
