"""Records: one class for writer and reader, whole files and lines of files, versions, damage."""

from __future__ import annotations

import errno
import json
import os
from typing import ClassVar

import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.base import (
    SCHEMA_VERSION,
    Part,
    Record,
    RecordFile,
    find_record,
    read_lines,
    read_record,
    write_record,
)


class Cost(Part):
    """A part."""

    params: int


class Trial(Record):
    """A record."""

    FILE: ClassVar[str] = "trials.jsonl"
    id: int
    text: str = ""
    loss: float | None = None
    cost: Cost | None = None


class Result(Record):
    """A record that is a whole file."""

    FILE: ClassVar[str] = "result.json"
    best: Trial


def line(number):
    return Trial(id=number).model_dump_json().encode() + b"\n"


def ids(path):
    return [record.id for record in read_lines(path, Trial)]


def test_a_whole_file_comes_back(tmp_path):
    assert find_record(tmp_path, Result) is None
    result = Result(best=Trial(id=3, cost=Cost(params=5)))
    write_record(tmp_path, result)
    assert read_record(tmp_path, Result) == result == find_record(tmp_path, Result)
    with pytest.raises(UserError, match=r"trials\.jsonl does not exist"):
        read_record(tmp_path, Trial)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"best": {"version": 2, "id": 1}}, r"has schema version 1 and this slm_ray reads version 2: use the slm_ray"),
        ({"version": 1, "best": 3}, r"has schema version 1"),
        ({"version": SCHEMA_VERSION}, r"result\.json is damaged \(best: Field required\): restore it or start"),
        ({"version": SCHEMA_VERSION, "best": {"id": "x"}}, r"is damaged \(best.id: Input should be a valid integer"),
        ({"version": SCHEMA_VERSION, "best": {"id": 1}, "more": 1}, r"is damaged \(more: Extra inputs"),
        ([1], r"is damaged \(the whole"),
    ],
)
def test_other_versions_and_damage_are_one_sentence(content, says, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        read_record(tmp_path, Result)


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "run" / "trials.jsonl"
    records = [Trial(id=0, text="line\nbreak é 注意"), Trial(id=1, loss=1.5, cost=Cost(params=7))]
    with RecordFile[Trial](path) as writer:
        for record in records:
            writer.append(record)
        assert writer.end == path.stat().st_size
    assert read_lines(path, Trial) == records
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("torn", [b'{"id":2,"val', b'{"id":2}', b'{"text":"\xe6\xb3', b"\0\0\0\0"])
def test_a_torn_last_line_is_passed_over_and_dropped_on_append(tmp_path, torn):
    path = tmp_path / "trials.jsonl"
    path.write_bytes(line(0) + line(1) + torn)
    assert ids(path) == [0, 1]
    with RecordFile[Trial](path) as writer:
        writer.append(Trial(id=3))
    assert path.read_bytes() == line(0) + line(1) + line(3)


@pytest.mark.parametrize("damage", [b"{torn{\n", b"\xff\xff\n", b"\n", b"7\n"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damage):
    path = tmp_path / "trials.jsonl"
    path.write_bytes(line(0) + damage + line(2))
    with pytest.raises(UserError, match=r"trials\.jsonl, line 2 is (not a record|damaged)"):
        ids(path)


def test_a_full_disk_keeps_earlier_records_and_later_appends_work(tmp_path, file_size_limit):
    path = tmp_path / "trials.jsonl"
    with RecordFile[Trial](path) as writer:
        writer.append(Trial(id=0))
        # The system takes the first bytes of the line and refuses the rest.
        with file_size_limit(len(line(0)) + 50), pytest.raises(UserError, match=r"writing .*trials\.jsonl"):
            writer.append(Trial(id=1, text="x" * 500))
        assert path.read_bytes() == line(0)
        writer.append(Trial(id=2))
    assert ids(path) == [0, 2]


def test_a_failed_sync_is_a_full_disk_too(tmp_path, monkeypatch):
    path = tmp_path / "trials.jsonl"
    with RecordFile[Trial](path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            with pytest.raises(UserError, match="the disk is full"):
                writer.append(Trial(id=0))
        writer.append(Trial(id=1))
    assert ids(path) == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_recorded(value):
    with pytest.raises(ValueError, match="finite number"):
        Trial(id=0, loss=value)
