"""What there is to measure on: prints its answer as JSON. `python _device.py name | matmul_flops`"""

import json
import sys
import time

import torch


def name() -> str | None:
    """The GPU's name; None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def matmul_flops(size: int = 8192, repeats: int = 50) -> float:
    """The best that a plain matmul in bf16 reaches: an estimate of the peak where no data sheet is known here."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        torch.cuda.synchronize()
        best = max(best, 2 * size**3 * repeats / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    print(json.dumps({"name": name, "matmul_flops": matmul_flops}[sys.argv[1]]()))
