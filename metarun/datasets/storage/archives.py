"""Read a folder, a zip or a tar as named files. Nothing is unpacked, so no name in an archive can do harm."""

import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from metarun.config.errors import ConfigError
from metarun.datasets.storage.download import is_web_page

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST = 2**30  # bytes of one file in an archive: more is taken for a decompression bomb
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, RuntimeError, NotImplementedError)
REMEDY = "replace it by a whole copy"
ENDS = 2**20  # bytes at either end of an archive that its fingerprint reads


def is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ARCHIVES)


def names(place: Path, remedy: str = REMEDY) -> list[str]:
    """The files in a folder or archive, sorted, with "/" between folders.

    Raises ConfigError if it cannot be read, is damaged (the message ends with the `remedy`), or holds a link that leads
    elsewhere.
    """
    return sorted(name for name, _ in _entries(place, (), remedy))


def folders(place: Path) -> list[str]:
    """The folders in a folder or archive that `names` has read, sorted; of an archive, those that it lists."""
    if place.is_dir():
        found = [Path(above, name) for above, below, _ in os.walk(place, followlinks=True) for name in below]
        return sorted(path.relative_to(place).as_posix() for path in found)
    if place.name.lower().endswith(".zip"):
        with zipfile.ZipFile(place) as archive:
            listed = [info.filename.replace("\\", "/") for info in archive.infolist() if info.is_dir()]
    else:
        with tarfile.open(place) as tar:
            listed = [member.name for member in tar if member.isdir()]
    return sorted(str(PurePosixPath(name)) for name in listed)


def contents(place: Path, wanted: Collection[str], remedy: str = REMEDY) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the wanted files, in the order that is fastest to read. Raises ConfigError."""
    for name, content in _entries(place, wanted, remedy):
        if content is not None:
            yield name, content


def fingerprint(place: Path) -> str:
    """A hash that changes with the content: of an archive's size and both ends, or a folder's names, sizes and times.

    Raises ConfigError.
    """
    try:
        if place.is_dir():
            found = [(name, (place / name).stat()) for name in names(place)]
            parts = [
                f"{name} {stat.st_size} {stat.st_mtime_ns}".encode(errors="surrogateescape") for name, stat in found
            ]
        else:
            parts = [str(place.stat().st_size).encode(), *_read_ends(place)]
    except OSError as error:
        raise ConfigError(f"{error.filename or place} cannot be read ({error.strerror})") from error
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def _read_ends(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as file:
        start = file.read(ENDS)
        file.seek(max(0, path.stat().st_size - ENDS))
        return start, file.read()


def _entries(place: Path, wanted: Collection[str], remedy: str) -> Iterator[tuple[str, bytes | None]]:
    """Every file's name, with the content of those that are wanted."""
    chosen = frozenset(wanted)
    try:
        if place.is_dir():
            yield from _read_folder(place, chosen)
        elif place.name.lower().endswith(".zip"):
            yield from _read_zip(place, chosen)
        else:
            yield from _read_tar(place, chosen)
    except DAMAGE as error:
        cause = (
            "is a web page, not an archive" if is_web_page(place) else f"is damaged or cut short ({_shorten(error)})"
        )
        raise ConfigError(f"{place} {cause}: {remedy}") from error
    except OSError as error:
        raise ConfigError(f"{error.filename or place} cannot be read ({error.strerror or error})") from error


def _shorten(error: Exception) -> str:
    """The first line: tarfile has one for each of its methods."""
    return str(error).partition("\n")[0].rstrip(":")


def _read_folder(place: Path, wanted: frozenset[str]) -> Iterator[tuple[str, bytes | None]]:
    root = place.resolve()
    if wanted:  # the others do not matter: a single picture may lie beside anything
        for name in sorted(wanted, key=_place_in_walk):
            if not (place / name).resolve().is_relative_to(root):
                raise ConfigError(f"{place / name} is a link that leads out of {place}: put the files themselves there")
            if (place / name).is_file():
                yield name, (place / name).read_bytes()
        return
    for parent, folders, files in os.walk(place, onerror=_raise, followlinks=True):
        folders.sort()
        for name in sorted([*files, *folders]):
            path = Path(parent, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ConfigError(f"{path} is a link that leads out of {place}: put the files themselves there")
            if path.is_symlink() and Path(parent).resolve().is_relative_to(path.resolve()):
                raise ConfigError(f"{path} is a link to a folder that it is in: remove it")
            if name in files:
                yield path.relative_to(place).as_posix(), None


def _place_in_walk(name: str) -> list[tuple[bool, str]]:
    """Sorts as `os.walk` goes: a folder's files, then what is in its folders."""
    *folders, file = PurePosixPath(name).parts
    return [*((True, folder) for folder in folders), (False, file)]


def _read_zip(place: Path, wanted: frozenset[str]) -> Iterator[tuple[str, bytes | None]]:
    with zipfile.ZipFile(place) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                filename = info.filename.replace("\\", "/")  # some programs write backslashes
                name = _check_name(place, filename, info.file_size)
                yield name, _read_member(archive, info, name) if name in wanted else None


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    try:
        return archive.read(info)
    except DAMAGE as error:  # most do not name the file
        raise zipfile.BadZipFile(f"{name}: {error}") from error


def _read_tar(place: Path, wanted: frozenset[str]) -> Iterator[tuple[str, bytes | None]]:
    with tarfile.open(place) as archive:
        for member in archive:
            name = _check_name(place, member.name, member.size)
            if member.issym() or member.islnk():
                raise ConfigError(
                    f"{place} holds {name}, a link to {member.linkname}: it must hold the files themselves"
                )
            if member.isfile():
                file = archive.extractfile(member) if name in wanted else None
                yield name, file.read() if file else None


def _check_name(place: Path, name: str, size: int) -> str:
    """The name in normal form. Raises ConfigError if it leads out of the archive or the file is too large."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"{place} holds {name!r}, a path that leads out of it: get another copy")
    if size > LARGEST:
        raise ConfigError(
            f"{place} holds {name}, of {size / 2**30:.1f} GiB: no picture is that large, get another copy"
        )
    return str(path)


def _raise(error: OSError) -> None:
    raise error
