"""Writing files so that nobody ever finds half of one, and finding out early that one cannot be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from showtell.errors import ShowtellError


def _is_device(path: Path) -> bool:
    """Whether the path is neither a file nor a folder, such as /dev/null or /dev/stdout."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def check_writable(path: str | os.PathLike[str]) -> Path:
    """The path, resolved, if a file can be written there; call it before long work. Leaves nothing behind.

    Raises ShowtellError: its folder is missing or cannot be written to, or the path is a folder or read-only.
    """
    try:
        target = Path(path).expanduser().resolve()
        if target.is_dir():
            raise ShowtellError(f"cannot write {path}: it is a folder; give a file name")
        if target.exists() and not os.access(target, os.W_OK):
            raise ShowtellError(f"cannot write {path}: permission denied")
        if _is_device(target):
            return target
        if not target.parent.is_dir():
            raise ShowtellError(f"cannot write {path}: there is no folder {target.parent}")
        # Asking for the permissions is not enough on every file system, so really make a file.
        with tempfile.TemporaryFile(dir=target.parent):
            return target
    except OSError as error:
        raise ShowtellError(f"cannot write {path}: {_reason(error)}") from None


def write(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write content (text as UTF-8) to path in one step: a reader sees the old file or the new one, whole.

    Follows links; keeps the permissions that a plain `open(path, "w")` would have given or left.
    Raises ShowtellError when it cannot be written; what was there before stays as it was.
    """
    target = check_writable(path)
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        if _is_device(target):  # written to, never replaced
            target.write_bytes(data)
            return target
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:80]}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise ShowtellError(f"cannot write {path}: {_reason(error)}") from None
    finally:
        if temporary is not None:
            os.unlink(temporary)
    return target


def share(folder: str | os.PathLike[str]) -> None:
    """Gives the weights in a model's folder and its parts' folders the permissions that new files have: safetensors
    leaves them to their owner alone."""
    for pattern in ("*.safetensors", "*/*.safetensors"):
        for path in Path(folder).glob(pattern):
            if path.stat().st_mode & 0o777 == 0o600:
                path.chmod(0o666 & ~_umask())


def _umask() -> int:
    value = os.umask(0o022)  # can only be read by setting it
    os.umask(value)
    return value
