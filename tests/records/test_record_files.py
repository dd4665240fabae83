import errno
import os

import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.jsonl import RecordWriter, read_records


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "run" / "trials.jsonl"
    records = [{"id": 0, "text": "line\nbreak é 注意"}, {"id": 1, "nested": {"a": [1.5, None]}}]
    with RecordWriter(path) as writer:
        for record in records:
            writer.append(record)
    assert read_records(path) == records
    assert path.read_bytes().count(b"\n") == 2


def test_a_record_is_on_the_disk_when_append_returns(tmp_path):
    writer = RecordWriter(tmp_path / "trials.jsonl")
    writer.append({"id": 0})
    assert read_records(tmp_path / "trials.jsonl") == [{"id": 0}]  # the writer is still open
    writer.close()


def test_no_file_means_no_records(tmp_path):
    assert read_records(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("torn", [b'{"id":2,"val', b'{"id":2}', b'{"text":"\xe6\xb3', b"\0\0\0\0"])
def test_a_torn_last_line_is_passed_over_and_dropped_on_append(tmp_path, torn):
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b'{"id":0}\n{"id":1}\n' + torn)
    assert read_records(path) == [{"id": 0}, {"id": 1}]
    with RecordWriter(path) as writer:
        writer.append({"id": 3})
    assert path.read_bytes() == b'{"id":0}\n{"id":1}\n{"id":3}\n'


@pytest.mark.parametrize("damage", [b"{torn{\n", b"\xff\xff\n", b"\n", b"7\n"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damage):
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b'{"id":0}\n' + damage + b'{"id":2}\n')
    with pytest.raises(UserError, match=r"trials\.jsonl, line 2 is not a record"):
        read_records(path)


def test_a_full_disk_keeps_earlier_records_and_later_appends_work(tmp_path, file_size_limit):
    path = tmp_path / "trials.jsonl"
    with RecordWriter(path) as writer:
        writer.append({"id": 0})
        # The system takes the first 100 bytes of the line and refuses the rest.
        with file_size_limit(100), pytest.raises(UserError, match=r"writing .*trials\.jsonl"):
            writer.append({"id": 1, "text": "x" * 500})
        assert path.read_bytes() == b'{"id":0}\n'
        writer.append({"id": 2})
    assert read_records(path) == [{"id": 0}, {"id": 2}]


def test_a_failed_sync_is_a_full_disk_too(tmp_path, monkeypatch):
    path = tmp_path / "trials.jsonl"
    with RecordWriter(path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            with pytest.raises(UserError, match="the disk is full"):
                writer.append({"id": 0})
        writer.append({"id": 1})
    assert read_records(path) == [{"id": 1}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused_and_writes_nothing(tmp_path, value):
    with RecordWriter(tmp_path / "trials.jsonl") as writer:
        with pytest.raises(ValueError, match="JSON"):
            writer.append({"loss": value})
        writer.append({"loss": 1.0})
    assert read_records(tmp_path / "trials.jsonl") == [{"loss": 1.0}]


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"opening .*: a file of that name is in the way"):
        RecordWriter(tmp_path / "file" / "trials.jsonl")
    with pytest.raises(UserError, match="folder"):
        RecordWriter(tmp_path)
