"""Text files are read to the letter, and only files."""

import os

import pytest

from kit.errors import UserError
from kit.textfile import read_text, write_text


def test_a_text_comes_back_to_the_letter(tmp_path):
    text = "\ufeffone\r\ntwo\n\n三\0"
    write_text(tmp_path / "text.txt", text)
    assert read_text(tmp_path / "text.txt") == text


def test_what_has_no_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="is no file"):
            read_text(path)
