"""Groups the convertible nodes of a graph into segments that can each become one node.

Contracting a segment must never make a cycle: no path may leave a segment and come back. Two steps
see to that:

1. *Levels.* The level of a node is the greatest number of passes from a convertible to a native
   node on any path to it. A path that leaves the convertible nodes of a level ends on a higher one,
   so the connected convertible nodes of one level are a segment.
2. *Merging.* Two neighbouring segments become one where no path leads around the edge between
   them; two segments with a common producer, where no path joins them at all.

The first step is linear and does nearly all the work; the second works on the contracted graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

Graph = Mapping[str, Sequence[str]]
"""For each node its producers, control dependencies included, in any order; may hold loops."""


def partition(
    producers: Graph, convertible: Collection[str], dividing: Collection[str] = ()
) -> list[tuple[str, ...]]:
    """The segments of a graph.

    Parameters
    ----------
    producers : mapping of str to sequence of str
        For each node the nodes it reads.
    convertible : collection of str
        The nodes that may be in a segment. A node in a loop never is.
    dividing : collection of str
        Nodes whose readers do not all run (a Switch): to read one of them joins nothing.

    Returns
    -------
    list of tuple of str
        Disjoint segments; together they hold every convertible node outside of loops. Both the
        segments and the nodes in them come in topological order.
    """
    components = _components(producers)
    home = {name: i for i, members in enumerate(components) for name in members}
    inside = {
        i for i, members in enumerate(components) if len(members) == 1 and members[0] in convertible
    }
    inside = {i for i in inside if components[i][0] not in producers[components[i][0]]}
    reads: list[set[int]] = []
    for i, members in enumerate(components):
        reads.append({home[p] for name in members for p in producers[name]} - {i})
    groups = _by_level(reads, inside)
    divide = {home[name] for name in dividing if name in home}
    contracted = _Contracted(reads, groups, divide)
    contracted.merge()
    segments = [[components[i][0] for i in sorted(group)] for group in contracted.groups()]
    return [tuple(s) for s in sorted(segments, key=lambda s: home[s[0]])]


def _components(producers: Graph) -> list[list[str]]:
    """Strongly connected components, producers first (Tarjan 1972, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    open_nodes: list[str] = []
    is_open: set[str] = set()
    result: list[list[str]] = []
    for root in producers:
        if root in index:
            continue
        work = [(root, iter(producers[root]))]
        index[root] = low[root] = len(index)
        open_nodes.append(root)
        is_open.add(root)
        while work:
            name, rest = work[-1]
            for source in rest:
                if source not in index:
                    index[source] = low[source] = len(index)
                    open_nodes.append(source)
                    is_open.add(source)
                    work.append((source, iter(producers[source])))
                    break
                if source in is_open:
                    low[name] = min(low[name], index[source])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[name])
                if low[name] == index[name]:
                    members: list[str] = []
                    while not members or members[-1] != name:
                        members.append(open_nodes.pop())
                        is_open.discard(members[-1])
                    result.append(members[::-1])
    return result


def _by_level(reads: Sequence[Iterable[int]], inside: Collection[int]) -> list[list[int]]:
    """The connected convertible nodes of each level; `reads` is in topological order."""
    level: list[int] = []
    for i, sources in enumerate(reads):
        steps = (level[s] + (s in inside and i not in inside) for s in sources)
        level.append(max(steps, default=0))
    leader = list(range(len(reads)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for i in inside:
        for source in reads[i]:
            if source in inside and level[source] == level[i]:
                leader[find(i)] = find(source)
    groups: dict[int, list[int]] = defaultdict(list)
    for i in sorted(inside):
        groups[find(i)].append(i)
    return list(groups.values())


class _Contracted:
    """The graph with one node a segment; segments are numbered from 0, native nodes after them."""

    def __init__(
        self,
        reads: Sequence[Iterable[int]],
        groups: Sequence[Sequence[int]],
        dividing: Collection[int],
    ) -> None:
        self._members = {g: list(members) for g, members in enumerate(groups)}
        number = {i: g for g, members in enumerate(groups) for i in members}
        for i in range(len(reads)):
            number.setdefault(i, len(groups) + i)
        self._dividing = {number[i] for i in dividing}
        self._reads: dict[int, set[int]] = defaultdict(set)
        self._readers: dict[int, set[int]] = defaultdict(set)
        for i, sources in enumerate(reads):
            for source in sources:
                if number[source] != number[i]:
                    self._reads[number[i]].add(number[source])
                    self._readers[number[source]].add(number[i])

    def groups(self) -> Iterable[list[int]]:
        """The nodes of each segment."""
        return self._members.values()

    def merge(self) -> None:
        """Merges segments as long as any two may be merged."""
        while self._merge_neighbours() or self._merge_siblings():
            pass

    def _merge_neighbours(self) -> bool:
        for group in list(self._members):
            for source in sorted(self._reads[group]):
                if source in self._members and not self._reaches(source, group, around=True):
                    self._join(source, group)
                    return True
        return False

    def _merge_siblings(self) -> bool:
        for source, readers in list(self._readers.items()):
            if source in self._dividing:
                continue
            segments = sorted(r for r in readers if r in self._members)
            for i, a in enumerate(segments):
                for b in segments[i + 1 :]:
                    if not self._reaches(a, b) and not self._reaches(b, a):
                        self._join(a, b)
                        return True
        return False

    def _reaches(self, start: int, end: int, around: bool = False) -> bool:
        """Whether a path leads from `start` to `end`; `around`: one of more than one edge."""
        stack = [r for r in self._readers[start] if not (around and r == end)]
        seen = set(stack)
        while stack:
            node = stack.pop()
            if node == end:
                return True
            for reader in self._readers[node]:
                if reader not in seen:
                    seen.add(reader)
                    stack.append(reader)
        return False

    def _join(self, kept: int, gone: int) -> None:
        self._members[kept] += self._members.pop(gone)
        for sources, readers in ((self._reads, self._readers), (self._readers, self._reads)):
            for other in sources.pop(gone, set()):
                readers[other].discard(gone)
                if other != kept:
                    readers[other].add(kept)
                    sources[kept].add(other)
