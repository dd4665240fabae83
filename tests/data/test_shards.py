import pickle
import shutil

import numpy as np
import pytest

from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards, write_shards

LENGTH = 8


@pytest.fixture
def rows():
    # Ids that 16 bits cannot hold.
    return np.random.default_rng(0).integers(0, 1 << 20, (50, LENGTH), dtype=np.int32)


@pytest.fixture
def starts():
    return np.array([0, 3, 8, 9, 30, 31, 100, 399], dtype=np.int64)


@pytest.fixture
def folder(rows, starts, tmp_path):
    write_shards(tmp_path / "shards", rows, starts, vocab_size=1 << 20, num_bytes=99, separator=2, shard_sequences=7)
    return tmp_path / "shards"


def positions_by_definition(starts, num_sequences):
    """Count up from 0; begin again at every document and at every sequence."""
    found, position = [], 0
    for place in range(num_sequences * LENGTH):
        position = 0 if place in set(starts.tolist()) or place % LENGTH == 0 else position + 1
        found.append(position)
    return np.array(found, dtype=np.int32).reshape(num_sequences, LENGTH)


def test_rows_in_any_order_with_repeats(folder, rows):
    shards = TokenShards.open(folder)
    assert (shards.num_sequences, shards.sequence_length, shards.num_tokens) == (50, LENGTH, 400)
    for indices in ([0], [49, 0, 7, 6, 7], list(range(50)), [], list(np.random.default_rng(1).permutation(50))):
        found = shards.rows(np.array(indices, dtype=np.int64))
        assert found.dtype == np.int32
        assert np.array_equal(found, rows[indices])
    found[:] = 0  # a copy: the files stay as they are
    assert np.array_equal(TokenShards.open(folder).rows(np.arange(50)), rows)


def test_positions_restart_at_documents_and_at_sequences(folder, starts):
    shards = TokenShards.open(folder)
    expected = positions_by_definition(starts, 50)
    for indices in ([0, 1, 2], [49, 12, 3, 3], list(np.random.default_rng(2).permutation(50)), []):
        found = shards.positions(np.array(indices, dtype=np.int64))
        assert found.dtype == np.int32
        assert np.array_equal(found, expected[indices])


def test_equal_content_has_an_equal_digest_and_other_content_another(folder, rows, starts, tmp_path):
    options = {"vocab_size": 1 << 20, "separator": 2, "shard_sequences": 7}
    digest = TokenShards.open(folder).digest

    def digest_of(name, rows, starts, **changes):
        write_shards(tmp_path / name, rows, starts, **(options | changes))
        return TokenShards.open(tmp_path / name).digest

    assert digest_of("same", rows, starts, corpus="called otherwise") == digest
    other = rows.copy()
    other[20, 3] ^= 1
    digests = {
        digest,
        digest_of("ids", other, starts),
        digest_of("starts", rows, starts[1:]),
        digest_of("separator", rows, starts, separator=None),
        digest_of("length", rows.reshape(25, 16), starts),
    }
    assert len(digests) == 5


@pytest.mark.parametrize("kind", [".ids.npy", ".starts.npy"])
def test_a_flipped_byte_is_found_and_its_shard_named(folder, kind):
    TokenShards.open(folder).verify()
    path = folder / f"shard-00000{kind}"
    good = path.read_bytes()
    for place in (7, 60, 127, 130, len(good) - 1):  # in the version, the header, its end, and the content
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(UserError, match=rf"the shard .*shard-00000{kind} is not what was written"):
            TokenShards.open(folder).verify()
    path.write_bytes(good)
    TokenShards.open(folder).verify()


def test_ids_without_a_row_are_refused_and_all_others_accepted(folder, rows):
    shards = TokenShards.open(folder)
    shards.check_ids(int(rows.max()) + 1, "the model")
    with pytest.raises(UserError, match=rf"has token id {rows.max():,}, and the model has {rows.max():,} embedding"):
        shards.check_ids(int(rows.max()), "the model")


def test_a_shard_cut_short_or_missing_is_found_at_once(folder):
    path = folder / "shard-00004.ids.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"the shard .*shard-00004.ids.npy has 348 bytes instead of 352"):
        TokenShards.open(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"the shard .*shard-00004.ids.npy is missing: delete the folder and prepare"):
        TokenShards.open(folder)


def test_a_manifest_cut_edited_or_missing_is_refused(folder):
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"manifest.json is not valid JSON"):
        TokenShards.open(folder)
    for edited in (text.replace('"separator": 2', '"separator": 3'), "[]", "7"):
        path.write_text(edited)
        with pytest.raises(UserError, match=r"manifest.json is not what was written \(its digest differs\)"):
            TokenShards.open(folder)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"manifest.json has schema version 1 and this slm_ray reads version 2: delete"):
        TokenShards.open(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"manifest.json does not exist"):
        TokenShards.open(folder)


def test_shards_can_be_moved_copied_and_sent(folder, rows, tmp_path):
    copy = TokenShards.open(folder).copy_to(tmp_path / "copy")
    assert np.array_equal(pickle.loads(pickle.dumps(copy)).rows(np.arange(50)), rows)
    assert np.array_equal(copy.ids, rows)
    assert copy.document_starts.tolist() == [0, 3, 8, 9, 30, 31, 100, 399]
    shutil.move(folder, tmp_path / "elsewhere")
    assert np.array_equal(TokenShards.open(tmp_path / "elsewhere").rows(np.arange(50)), rows)
