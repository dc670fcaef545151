"""An ear for reads from a device, where there is none."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "item")


class NothingRead(TorchDispatchMode):
    """Fails on operations whose result, or its shape, the host would have to wait for on CUDA."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not any(name.startswith(read) for read in READS), f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            found = [x for x in args[1] if x is not None]
            assert all(x.dtype not in (torch.bool, torch.uint8) for x in found), "a boolean index waits for the device"
        return func(*args, **(kwargs or {}))
