"""Files and names that mean harm: refused, or shown as what they are."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from metarun.config.errors import ConfigError, report_error
from metarun.config.words import make_inert
from metarun.datasets.storage import archives
from metarun.datasets.storage.packing import Form, convert
from metarun.engine import checkpoint
from metarun.runs.folder import RunFolder
from metarun.runs.log import log_to, say, speak

NAME = "a\x1b]0;title\x07\x1b[2J\u202egnp.exe\u2066\r"  # sets the title, clears the screen, turns the rest around
SHOWN = r"a\x1b]0;title\x07\x1b[2J\u202egnp.exe\u2066\r"


class Code:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_checkpoint_does_not_run(form: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "it ran", tmp_path / "last.pt"
    content = {"tensors": {}, "facts": "{}", "more": Code(mark)}
    if form == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(ConfigError, match="cannot be read, it is damaged or not metarun's"):
        checkpoint.load(file)
    assert not mark.exists()
    torch.load(file, weights_only=False) if form == "torch" else pickle.loads(file.read_bytes())
    assert mark.exists()  # it would have


@pytest.mark.parametrize("file", ["config.yaml", "choices.json"])
def test_a_tag_in_a_runs_files_makes_no_object(file: str, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    (tmp_path / file).write_text(f"algo: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(ConfigError, match=f"{file} is damaged: "):
        RunFolder(tmp_path).config() if file == "config.yaml" else RunFolder(tmp_path).choices()
    assert not mark.exists()


def test_a_file_of_an_archive_that_would_fill_the_memory_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 MB of zeros in 20 KB; its limit is made small, because a larger bomb takes seconds to make."""
    monkeypatch.setattr(archives, "LARGEST", 10**6)
    with zipfile.ZipFile(tmp_path / "val.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("a/1.png", bytes(2 * 10**7))
    tracemalloc.start()
    with pytest.raises(ConfigError, match="no picture is that large"):
        list(archives.contents(tmp_path / "val.zip", ["a/1.png"]))
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_a_picture_of_50000_by_50000_pixels_is_refused_undecoded() -> None:
    """Its file has a hundred bytes, its pixels would have 2.5 GB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    bomb = io.BytesIO()
    bomb.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))))
    bomb.write(chunk(b"IEND", b""))
    reason = convert(bomb.getvalue(), Form(8, 1, "crop", "bilinear"))
    assert isinstance(reason, str)
    assert "2500000000 pixels" in reason


def test_names_do_not_steer_the_terminal_or_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_inert("Ünïcode ± λ 木\n\tb") == "Ünïcode ± λ 木\n\tb"
    assert make_inert(NAME) == SHOWN
    assert report_error(ConfigError(f"{NAME} cannot be used")) == 2
    assert capsys.readouterr().err == f"metarun: {SHOWN} cannot be used\n"
    handler, others = log_to(tmp_path), say.handlers[:]
    say.handlers = [handler]  # pytest's own would pass for the terminal's
    with speak():
        say.info("class %s", NAME)
    say.handlers = others
    say.removeHandler(handler)
    handler.close()
    assert (tmp_path / "train.log").read_text().endswith(f"class {SHOWN}\n")
    assert SHOWN in capsys.readouterr().out
