"""How sure a share is that was counted in a sample."""

import math


def clopper_pearson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share (Clopper and Pearson, 1934, https://doi.org/10.1093/biomet/26.4.404)."""
    tail = (1 - confidence) / 2

    def at_least(count: int, share: float) -> float:
        return sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(count, total + 1))

    def share_where(count: int, probability: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if at_least(count, middle) < probability else (low, middle)
        return low

    low = share_where(successes, tail) if successes else 0.0
    high = share_where(successes + 1, 1 - tail) if successes < total else 1.0
    return low, high
