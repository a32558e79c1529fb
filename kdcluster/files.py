"""Small things about files that both halves need: safe writes, locks, digests, and where the shipped files lie."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from kdcluster.errors import Damaged
from kdcluster.ownership import own_text, umask

log = logging.getLogger(__name__)

CHECK = "crc32"
"""The field of a JSON object that has the check sum of the others."""


YAML = (".yaml", ".yml")


def is_experiment(path: Path) -> bool:
    """Whether a YAML file looks like an experiment, without reading YAML: it may be anybody's."""
    if path.suffix not in YAML or not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16)
    except OSError:
        return False
    return all(re.search(rf"^{key}\s*:", text, re.MULTILINE) for key in ("teacher", "student"))


def shipped(relative: str) -> Path:
    """Where `jobs/…`, `configs/…` or `slurm/…` lie: inside the package (wheel) or beside it (checkout)."""
    package = Path(__file__).resolve().parent
    inside = package / relative
    return inside if inside.exists() else package.parent / relative


@contextmanager
def aside(path: Path, *, sync: bool = True, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` at the end: aside, synced, renamed.

    A reader sees the old content or the new one, never a part; after a crash or a full disk the old one is still
    there.

    Args:
        path: a link is replaced, and what it leads to stays as it is.
        sync: False leaves out the fsync, for a heartbeat that the next second writes again.
        mode: of the file.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".aside")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename last: it is an entry of the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_aside(path: Path, content: str | bytes, *, sync: bool = True) -> None:
    """`aside` for content that is at hand."""
    with aside(path, sync=sync) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that the user has named: where a link leads, with the mode that it has; a device as it is.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return
    target = Path(os.path.realpath(path))
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~umask()
    with aside(target, mode=mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """`write_aside` for one JSON document; an object gets a check sum, which `read_json` holds it against.

    In ASCII: a path that is not UTF-8 can be read back from that alone.
    """
    if isinstance(value, dict):
        value = {**value, CHECK: _check_sum(json.loads(json.dumps(value)))}  # of what is read again: keys are text
    write_aside(path, json.dumps(value, indent=1, sort_keys=True) + "\n", sync=sync)


def _check_sum(value: Any) -> int:
    """Of what a document says, however it is laid out."""
    return zlib.crc32(_SORTED.encode(value).encode())


_SORTED = json.JSONEncoder(sort_keys=True)


def read_json(path: Path, *, own: bool = False) -> Any:
    """The document in `path`, or None where there is none (yet); `own`: as `own_text` reads.

    Raises:
        Damaged: what is there cannot be read, is no document, or was changed by something else than `write_json`.
    """
    try:
        content = own_text(path).encode() if own else path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise Damaged(path, "it is a link to nowhere") from None
        return None
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise Damaged(path, f"it is not JSON ({error})") from None
    return document(path, content)


def document(path: str | Path, content: bytes) -> Any:
    """What the content of a JSON file says.

    Raises:
        Damaged: it is no document, or was changed by something else than `write_json`.
    """
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(path, f"it is not JSON ({error})") from None
    if value is None:
        raise Damaged(path, "it is empty (null)")
    if isinstance(value, dict) and CHECK in value:  # those of earlier versions have none
        check = value.pop(CHECK)
        if check != _check_sum(value):
            raise Damaged(path, "its check sum does not hold: something has changed it")
    return value


def next_numbered(folder: Path) -> int:
    """One more than the highest of the names in a folder that are numbers; 1 where there is none."""
    return 1 + max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)


def remove_asides(folder: Path, *names: str) -> None:
    """Remove what `aside` left of some files (patterns) when its process was killed; only for who alone writes them."""
    for name in names:
        for path in folder.glob(f".{name}.????????.aside"):
            if path.is_file():
                path.unlink(missing_ok=True)


def acquire(lock: FileLock, without: str, timeout_s: float = -1) -> None:
    """Take a lock, as far as its file system has locks; where it has none, a warning says what to keep to.

    Raises:
        filelock.Timeout: somebody else has it for so long; -1: wait for ever.
        OSError: it cannot be taken though there are locks (no permission, a disk that fails): nothing protects then.
    """
    try:
        lock.acquire(timeout_s)
    except Timeout:
        raise
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        log.warning("no file locks in %s (%s): %s", Path(lock.lock_file).parent, error, without)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content; remembered by path, size and mtime, since weights are large.

    The memory lies in the user's cache folder and is only ever a shortcut: where it cannot be written, the
    file is read again next time.
    """
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    if len(known := recall("digests", key)) == 64:
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    remember("digests", key, digest)
    return digest


def recall(kind: str, key: str) -> str:
    """What `remember` kept in the user's cache folder; empty: nothing, or what cannot be read."""
    try:
        return _remembered(kind, key).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def remember(kind: str, key: str, text: str) -> None:
    """Keep what can be found out again."""
    path = _remembered(kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, text)
    except OSError:
        pass  # a read-only home is no reason to refuse a plan


def _remembered(kind: str, key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kdcluster" / kind / f"{hashlib.sha256(os.fsencode(key)).hexdigest()}.{kind.removesuffix('s')}"


def trainer_code() -> str:
    """SHA-256 over the trainer's source: says whether a finished run was made by other code than today's."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).resolve().parent / "train").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
