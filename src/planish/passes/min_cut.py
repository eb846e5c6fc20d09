"""The cheapest cut of a small directed graph: Dinic's algorithm.

E. A. Dinic, "Algorithm for solution of a problem of maximum flow in networks with power
estimation", Soviet Mathematics Doklady 11 (1970).
"""

from __future__ import annotations

from collections import deque

INFINITE = 1 << 60
"""A capacity that no cut can pay."""


class Network:
    """A flow network. Vertices are numbered; 0 is the source and 1 the sink."""

    def __init__(self) -> None:
        self._edges: list[list[int]] = [[], []]
        self._ends: list[int] = []
        self._capacity: list[int] = []

    def vertex(self) -> int:
        """Adds a vertex."""
        self._edges.append([])
        return len(self._edges) - 1

    def edge(self, start: int, end: int, capacity: int) -> None:
        """Adds an edge: a cut pays `capacity` if `start` is on the source's side and `end` not."""
        for a, b, c in ((start, end, capacity), (end, start, 0)):
            self._edges[a].append(len(self._ends))
            self._ends.append(b)
            self._capacity.append(c)

    def cut(self) -> tuple[int, set[int]]:
        """The least cost of a cut, and the smallest set of vertices on the sink's side for it."""
        total = 0
        while (levels := self._levels())[1] >= 0:
            cursor = [0] * len(self._edges)
            while flow := self._augment(levels, cursor):
                total += flow
        return total, self._sink_side()

    def _levels(self) -> list[int]:
        levels = [-1] * len(self._edges)
        levels[0] = 0
        queue = deque([0])
        while queue:
            vertex = queue.popleft()
            for edge in self._edges[vertex]:
                end = self._ends[edge]
                if self._capacity[edge] and levels[end] < 0:
                    levels[end] = levels[vertex] + 1
                    queue.append(end)
        return levels

    def _augment(self, levels: list[int], cursor: list[int]) -> int:
        """Sends flow along one path from source to sink; 0 if there is none left."""
        path: list[int] = []
        vertex = 0
        while vertex != 1:
            edges = self._edges[vertex]
            while cursor[vertex] < len(edges):
                edge = edges[cursor[vertex]]
                end = self._ends[edge]
                if self._capacity[edge] and levels[end] == levels[vertex] + 1:
                    break
                cursor[vertex] += 1
            else:
                if not path:
                    return 0
                vertex = self._ends[path.pop() ^ 1]
                cursor[vertex] += 1
                continue
            path.append(edge)
            vertex = end
        flow = min(self._capacity[e] for e in path)
        for e in path:
            self._capacity[e] -= flow
            self._capacity[e ^ 1] += flow
        return flow

    def _sink_side(self) -> set[int]:
        reached = {1}
        queue = deque([1])
        while queue:
            vertex = queue.popleft()
            for edge in self._edges[vertex]:
                start = self._ends[edge]
                if self._capacity[edge ^ 1] and start not in reached:
                    reached.add(start)
                    queue.append(start)
        return reached
