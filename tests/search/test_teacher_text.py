"""Text that the teacher writes itself, among the text that weights are fitted on."""

import json

import numpy as np
import pytest

from slm_ray.config.base import build_config
from slm_ray.config.errors import UserError
from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.shards import TokenShards, write_shards
from slm_ray.evaluate.teacher_text import ASIDE_TOKENS, CORPUS_TEXTS, first_tokens, mix, write
from slm_ray.models.teachers import load_teacher
from slm_ray.runtime.progress import Console
from slm_ray.search.config import SearchConfig
from slm_ray.search.inputs import prepare_inputs, tokens_to_write, written_sequences
from tests.search.tiny_run import outcome_of


@pytest.fixture
def packed(tmp_path):
    def write(ids):
        write_shards(tmp_path / "tokens", ids, np.array([0]), vocab_size=1000)
        return TokenShards.open(tmp_path / "tokens")

    return write


def rows(first, count):
    return np.arange(first, first + 4 * count, dtype=np.int32).reshape(count, 4)


def test_a_share_of_the_sequences_is_the_teachers_evenly_in_between(packed):
    mixed = mix(packed(rows(0, 3)), rows(100, 3), 3)
    assert mixed.ids[:, 0].tolist() == [0, 100, 4, 104, 8, 108] and mixed.written_tokens == 12
    assert mix(packed(rows(0, 3)), rows(100, 1), 3).ids[:, 0].tolist() == [0, 100, 4, 100, 8, 100]  # taken again
    assert mix(packed(rows(0, 4)), rows(100, 9), 2).ids[:, 0].tolist() == [0, 4, 100, 8, 12, 104]


def test_without_a_share_the_text_is_the_corpus_own(packed):
    own = packed(rows(0, 3))
    assert mix(own, None, 0).digest == own.digest and mix(own, None, 0).written_tokens == 0
    assert tokens_to_write(SearchConfig().replace(teacher_text=0.0)) == 0


def test_corpus_and_teacher_together_make_up_the_tokens():
    config = SearchConfig().replace(teacher_text=0.5, reconstruct_tokens=8192)
    assert written_sequences(config) == 8
    assert tokens_to_write(config) == 4096 + ASIDE_TOKENS  # those put aside too
    assert tokens_to_write(SearchConfig().replace(reconstruct="none")) == 0
    assert tokens_to_write(SearchConfig().replace(teacher_text=0.5, reconstruct_tokens=10**7)) == 16384 + ASIDE_TOKENS


def test_the_teacher_writes_tokens_of_its_own_the_same_every_time(tiny):
    teacher = load_teacher(str(tiny.teacher), tiny.cache)
    texts = write(teacher, "fp32", 65, 12)
    assert texts.shape == (65, 12) and texts.dtype == np.int32
    told = []
    assert np.array_equal(texts, write(teacher, "fp32", 65, 12, told.append))
    assert told == sorted(told) and told[-1] == 65 and 64 in told and 0 < told[1] < 64  # within a batch too
    tokenizer = teacher.tokenizer()
    assert not set(first_tokens(tokenizer, 10**6, 50)) & set(tokenizer.all_special_ids)
    ids = texts[:, 1:].flatten()
    assert 0 <= ids.min() and ids.max() < len(tokenizer) and len(set(ids.tolist())) > 20


@pytest.mark.slow
def test_a_search_fits_on_both_and_is_the_same_from_the_cache(command, tiny, tmp_path):
    more = ("--trials", "6", "--winners", "1", "--reconstruct-tokens", "1024", "--teacher-text", "0.5")
    assert command(tiny.arguments(tmp_path / "run", *more)) == 0
    assert command(tiny.arguments(tmp_path / "again", *more)) == 0
    results = {run: json.loads((tmp_path / run / "result.json").read_text()) for run in ("run", "again")}
    assert outcome_of(tmp_path / "run") == outcome_of(tmp_path / "again")
    record = next(one for one in results["run"]["front"] if one["winner"] == 0)["reconstruction"]
    assert record["tokens"] == 1024 and record["written_tokens"] == 512
    before, after = record["before"]["teacher_text_perplexity"], record["after"]["teacher_text_perplexity"]
    fell = record["after"]["calibration_perplexity"] < record["before"]["calibration_perplexity"]
    assert record["kept"] == (after < before and fell)
    written = results["run"]["spent"]["forward_tokens"] - results["again"]["spent"]["forward_tokens"]
    assert written >= 512 + ASIDE_TOKENS  # the second run found it in the cache
    card = (tmp_path / "run/winners/0/README.md").read_text()
    assert ("512 tokens that the teacher wrote and 512 train tokens" in card) == record["kept"]


def test_a_blend_with_the_teachers_own_text(tiny, tmp_path):
    options = {
        "teacher": str(tiny.teacher), "data": f"{tiny.corpus}:3,teacher:1", "space": str(tiny.space), "params": "0.5",
        "sequence_length": 32, "calibration_tokens": 512, "held_out_tokens": 256, "precision": "fp32",
    }  # fmt: skip
    inputs = prepare_inputs(build_config(SearchConfig, options), Console())
    (_, own), (share, written) = inputs.corpus.shares
    assert (own.name, written.name, share) == (str(tiny.corpus), "teacher", 0.25)
    assert len(list(written)) == CORPUS_TEXTS
    alone = prepare_tokens(written, inputs.teacher.tokenizer(), "calibration", num_tokens=128, sequence_length=32)
    assert np.array_equal(inputs.calibration.ids[2::4], alone.ids)
    assert inputs.corpus_record().name == options["data"]
    with pytest.raises(UserError, match="is what a teacher writes itself, and none is here"):
        load_corpus("teacher")
