"""The device that a benchmark measures on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from seqmill.errors import UserError
from seqmill.models.checkpoint import require_device


def require_measured(device: str, devices: Iterable[str], subject: str) -> None:
    """Refuse a device that is not measured on, or is not there.

    Args:
        subject: what is measured, and its verb, as the message says: "prompts are".

    Raises:
        UserError: the device is not one of `devices`, or torch does not see it.
    """
    known = tuple(devices)
    if device not in known:
        raise UserError(f"--device {device}: {subject} measured on {' and '.join(known)}")
    require_device(device)


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Hold this process to one thread of torch's if it computes on the CPU, and no longer than within."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
