"""The one reader of JSON lines and the one atomic write."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivapo.files import json_lines, read_object, read_objects, write_atomically
from minivapo.interfaces import UserError

ROWS = st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5), max_size=3), max_size=6)


@given(ROWS, st.integers(0, 40))
def test_a_file_cut_anywhere_gives_the_lines_before_the_cut(tmp_path_factory, rows, back):
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    text = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    kept = text[: max(len(text) - back, 0)]
    path.write_bytes(kept)
    found, cut = read_objects(path)
    whole = kept.count(b"\n")
    assert found[:whole] == rows[:whole]
    assert len(found) in (whole, whole + 1)  # a line that lacks its line break alone is there
    assert cut == (bool(kept) and not kept.endswith(b"\n") and len(found) == whole)


@pytest.mark.parametrize("line", [b"garbage", b"[1]", b"\xff", b'"text"', b"NULL"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"lines\.jsonl, line 3: not a JSON object"):
        read_objects(path)
    with path.open("rb") as file:
        assert [found.row for found in json_lines(file)] == [{"a": 1}, None, {"a": 2}]


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "must hold a JSON object")])
def test_a_file_that_is_no_object(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_object(tmp_path / "x.json")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


def test_an_atomic_write_obeys_the_umask(tmp_path):
    for name in ("x.tmp", "x.json.tmp"):
        (tmp_path / name).write_text("mine")
    write_atomically(tmp_path / "x.json", b"new")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o666 & ~mask
    there = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert there == {"x.json": "new", "x.tmp": "mine", "x.json.tmp": "mine"}
