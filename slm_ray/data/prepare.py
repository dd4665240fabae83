"""Making the shards that are trained on: a corpus tokenised and packed in parallel by Ray Data."""

from __future__ import annotations

from pathlib import Path

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.block_maker import BlockMaker, make_plan
from slm_ray.data.documents import Corpus
from slm_ray.data.sample import check_request
from slm_ray.data.shard_work import complete, discard, is_complete, locked, take_name
from slm_ray.data.shards import TokenShards
from slm_ray.data.tokenizers import load_tokenizer, tokenizer_digest
from slm_ray.runtime.progress import Console

_FORMAT = 2  # raise it when the choice of documents, their packing or the files change


def prepare_shards(
    corpus: Corpus,
    tokenizer_folder: Path,
    part: str,
    *,
    sequence_length: int,
    num_tokens: int | None,
    cache: Path,
    console: Console,
    workers: int,
) -> TokenShards:
    """Tokenise a part of a corpus and pack its documents, one behind the other, into shards of sequences.

    The shards are found again in the cache by what they are made from. A preparation that was killed goes on behind its
    last finished shard. Each worker holds one block of text at a time, whatever the size of the corpus, and what comes
    out is the same for any number of workers. Ray must have been started by the caller.

    Args:
        corpus: Where the text comes from.
        tokenizer_folder: A folder with a fast tokenizer; its EOS, if it has one, ends each document.
        part: ``calibration``, ``train`` or ``held_out``.
        sequence_length: Tokens per sequence, at least 2.
        num_tokens: At least so many tokens, where the part has them: of a corpus at hand a fair sample of its
            documents, of a remote stream its beginning. None takes the whole part.
        cache: The folder of all cached tokens; on a cluster, one that every node sees.
        console: Where to say how far it is.
        workers: Tasks at once, each with one CPU.

    Returns:
        The shards.

    Raises:
        UserError: The part has not one sequence, a size or the part's name is wrong, or a file cannot be read or
            written.
    """
    check_request(part, num_tokens, sequence_length)
    tokenizer = load_tokenizer(tokenizer_folder, local=True)
    plan = make_plan(corpus, part, num_tokens, sequence_length)
    made_from = {
        "corpus": corpus.identity,
        "tokenizer": tokenizer_digest(tokenizer),
        "separator": tokenizer.eos_token_id,
        "part": part,
        "num_tokens": plan.num_tokens,
        "sequence_length": sequence_length,
    }
    final = cache / f"{part}-shards-{digest_json({'format': _FORMAT, **made_from})}"
    if (found := _find(final, console)) is not None:
        return found
    work = cache / f".{final.name}.work"
    with locked(work, console):
        if final.exists():  # another process was quicker
            discard(work)
        elif is_complete(work):
            take_name(work, final)
        else:
            maker = BlockMaker(corpus, plan, made_from, tokenizer, work, console, workers)
            names = maker.make_blocks()
            complete(work, final, names, maker.backend, maker.about())
    return TokenShards.open(final)


def _find(final: Path, console: Console) -> TokenShards | None:
    """Shards that are there already; damaged ones are said and removed."""
    if not final.exists():
        return None
    try:
        return TokenShards.open(final)
    except UserError as error:
        console.line(f"{error}: making them again")
        discard(final)
        return None
