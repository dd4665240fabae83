"""Options for the text that a stage reads."""

from __future__ import annotations

from typing import Literal

from slm_ray.config.base import Config, option

DEFAULT_CORPUS = "python-docs"


class DataConfig(Config):
    """A corpus, and how its tokens are packed."""

    data: str = option(DEFAULT_CORPUS, "corpus: python-docs, python-docs-full, a file or folder, a hub id, or a "
                       "blend of these in proportions, as mine.jsonl:0.7,python-docs:0.2,teacher:0.1")  # fmt: skip
    text_field: str = option("text", "field of the text in JSONL, CSV, parquet, arrow and hub corpora")
    sequence_length: int = option(512, "tokens per sequence", ge=8)


class TrainDataConfig(DataConfig):
    """A corpus or prepared shards, read sequence by sequence."""

    shards: str | None = option(None, "folder of token shards prepared before, instead of --data's train part")
    documents: Literal["separate", "joined"] = option("separate", "attention stays inside a document, or not")
