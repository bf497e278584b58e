import os
import threading

import pytest

from kit.textfile import replace_text
from kit.whole import whole, whole_folder


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(OSError), whole(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise OSError
    with pytest.raises(OSError), whole_folder(tmp_path / "made") as partial:
        (partial / "b").write_text("half")
        raise OSError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "before"


def test_links_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    replace_text(tmp_path / "link.txt", "through")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "a.txt").read_text() == "through"
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    replace_text(tmp_path / "pipe", "said")
    reader.join(5)
    assert read == ["said"] and (tmp_path / "pipe").is_fifo()
