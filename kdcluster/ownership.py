"""Whose a file is: what this user alone can have written may say what is run, and what others can is only read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.wording import quoted

TEMPORARY = Path("/tmp")


def foreign(path: Path) -> str:
    """Why others than this user can say what lies at a path, or below it; empty where none can.

    As sshd's StrictModes looks at what decides about a user: whose it is, and who may write it.
    """
    return next((why for one in _tree(path) if (why := _foreign(one, one.stat()))), "")


def _tree(path: Path) -> Iterator[Path]:
    """What is there; a link that leads nowhere decides nothing."""
    below = (Path(base) / name for base, folders, files in os.walk(path) for name in (*folders, *files))
    yield from filter(Path.exists, [path, *below])


def _foreign(path: Path, found: os.stat_result) -> str:
    if found.st_uid != os.geteuid():
        return f"{path} belongs to another user (uid {found.st_uid})"
    if found.st_mode & 0o022:
        return f"others may write {path} (mode {stat.S_IMODE(found.st_mode):o})"
    return ""


def refuse_foreign(path: Path, why: str | None = None) -> None:
    """Refuse to go on with what others than this user can change.

    Args:
        path: a file, or a folder with all below it.
        why: what is known of it; None: it is looked at.

    Raises:
        ConfigError: with what to do.
    """
    if why := foreign(path) if why is None else why:
        raise ConfigError(
            f"{why}: whoever can write there could run programs as you, so it is only read; to start it, "
            f"chmod -R go-w {quoted(str(path))} if all in it is yours, or take another --runs-dir"
        )


def own_text(path: Path) -> str:
    """The content of a file that says what is to be run: of just the file that was looked at, whatever moves there.

    Raises:
        ConfigError: others than this user can say what it is.
        OSError: it cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        refuse_foreign(path, _foreign(path, os.fstat(file.fileno())))
        return file.read()


def keep_to_oneself() -> None:
    """Whatever the umask: others write nothing of what this process and its children make from now on."""
    os.umask(umask() | 0o022)


def shared_folder(path: Path) -> Path:
    """A folder as open as the one that it lies in, made where there is none: its users put things side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir()
        path.chmod(stat.S_IMODE(path.parent.stat().st_mode))
    return path


def umask() -> int:
    """What new files of this process are not allowed; it can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def own_folder() -> Path:
    """This user's folder on this machine, closed to others: /tmp/kdcluster-UID, made where it is not there.

    The same one for all processes of the user, so that locks in it meet: TMPDIR differs from shell to shell, and
    XDG_RUNTIME_DIR is unset in batch and cron jobs and goes with the last log-out. Its name can be guessed, so
    whose it is counts: what somebody else has put there is not used.

    Raises:
        KdclusterError: it is somebody else's, open to others, or no folder.
    """
    return _closed(TEMPORARY / f"kdcluster-{os.getuid()}")


def locks_folder() -> Path:
    """Where the locks of this machine's GPUs and cores lie: in `own_folder`, unless KDCLUSTER_LOCKS_DIR says otherwise.

    For containers that share a machine and not its /tmp; and tests must not wait for what else runs.

    Raises:
        KdclusterError: as `own_folder`.
    """
    named = os.environ.get("KDCLUSTER_LOCKS_DIR")
    return _closed(Path(named)) if named else own_folder()


def _closed(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise KdclusterError(
            f"{folder} cannot be made ({error.strerror}), and kdcluster keeps locks there; "
            f"KDCLUSTER_LOCKS_DIR can name another place for those of GPUs and cores"
        ) from None
    found = folder.lstat()  # in a sticky /tmp, nobody can put another one in the place of what is ours
    if not stat.S_ISDIR(found.st_mode):
        wrong = "is no folder"
    elif found.st_uid != os.getuid():
        wrong = f"belongs to another user (uid {found.st_uid})"
    elif found.st_mode & 0o077:
        wrong = f"is open to others (mode {stat.S_IMODE(found.st_mode):o})"
    else:
        return folder
    raise KdclusterError(
        f"{folder} {wrong}; kdcluster keeps its locks and Ray's sockets there, and others must not be able to; "
        f"remove it (rm -r {folder}), or have its owner or an administrator do so"
    )
