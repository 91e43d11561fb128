"""The one reader of JSON lines and the one atomic write."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivapo.files import (
    count_objects,
    json_lines,
    last_object,
    lines_from_end,
    read_object,
    read_objects,
    write_atomically,
)
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
    assert last_object(path) == (found[-1] if found else None)
    assert count_objects(path)[0] == len(found)
    for most in range(len(found) + 1):
        count, size = count_objects(path, most)
        path.write_bytes(kept[:size])
        assert count == len(found) and read_objects(path) == (found[:most], False)
        path.write_bytes(kept)


@given(st.binary(max_size=60).map(lambda x: x.replace(b"a", b"\n")), st.integers(1, 20))
def test_lines_are_the_same_from_the_end(tmp_path_factory, content, block):
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(content)
    with path.open("rb") as file:
        forward = file.readlines()
        backward = list(lines_from_end(file, block))[::-1]
    assert [text for _, text in backward] == forward
    assert [start for start, _ in backward] == [len(b"".join(forward[:i])) for i in range(len(forward))]


@pytest.mark.parametrize("line", [b"garbage", b"[1]", b"\xff", b'"text"', b"NULL"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"lines\.jsonl, line 3: not a JSON object"):
        read_objects(path)
    with pytest.raises(UserError, match=r"lines\.jsonl, line 3: not a JSON object"):
        count_objects(path)
    assert last_object(path) == {"a": 2}
    path.write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=r"lines\.jsonl, line 3: not a JSON object"):
        last_object(path)
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
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
