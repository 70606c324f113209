"""Disjoint-set forest (union-find) of integers."""


class Sets:
    """Union-find over integers."""

    def __init__(self, count: int):
        self.above = list(range(count))

    def find(self, item: int) -> int:
        while self.above[item] != item:
            self.above[item] = self.above[self.above[item]]
            item = self.above[item]
        return item

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        self.above[max(one, other)] = min(one, other)
