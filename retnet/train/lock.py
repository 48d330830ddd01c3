"""One run at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retnet.train.errors import TrainingError


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Inside, no other process can be inside for the same file, which must be there.

    The lock ends with the process, however that ends. TrainingError where another has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with file.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"another process is training in {str(file.parent)!r}; stop it, or wait for its end"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
