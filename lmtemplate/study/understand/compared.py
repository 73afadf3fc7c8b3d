"""Numbers by hand and by torch -> the largest difference of each part."""

from torch import Tensor


class Comparisons:
    """Part -> the largest difference between its numbers by hand and by torch.

    As a share of the part's largest number where that is above 1: float32 keeps about 7 digits.
    """

    def __init__(self) -> None:
        self.differences: dict[str, float] = {}

    def hold(self, part: str, by_hand: Tensor, by_torch: Tensor) -> float:
        """Keep and return the difference; NaN where one of the numbers is NaN."""
        by_hand, by_torch = by_hand.detach().double(), by_torch.detach().double()
        scale = max(1.0, by_torch.abs().max().item())
        found = (by_hand - by_torch).abs().max().item() / scale
        before = self.differences.get(part, 0.0)
        self.differences[part] = before if found <= before else found
        return found

    @property
    def largest(self) -> float:
        """NaN where a difference is NaN."""
        return max(self.differences.values(), key=lambda one: (one != one, one))
