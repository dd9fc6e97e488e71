"""Generated sets of graphs, embedded: what graph-level methods are tried on where there is no network."""

import torch

from gen_graph.graphset import GraphSet

# Three motifs of 5 nodes and 6 edges each. House and K_{2,3} have the same degrees too: 2, 2, 2, 3, 3.
HOUSE = ((0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (1, 4))
BOW_TIE = ((0, 1), (1, 2), (2, 0), (0, 3), (3, 4), (4, 0))
BICLIQUE = ((0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4))


def motifs() -> GraphSet:
    """300 graphs in 3 equal classes by the motif that is planted in a random tree, made by a fixed seed.

    A graph has n = 10 to 40 nodes, uniformly, and n // 10 motifs, all of its class: 0 houses, 1 bow ties (two triangles
    that share a node), 2 bicliques K_{2,3}. The other nodes form a random recursive tree, with one random chord for
    each 10 of them; one edge ties each motif to it. All motifs have 5 nodes and 6 edges, so that numbers of nodes and
    edges tell nothing. Node labels, one-hot: 0 inner, 1 end (one edge), 2 for a random 3 % of the nodes; a linear SVM
    on their counts is at chance, while a supervised GIN learns the classes (80 to 95 % from 240 graphs). Nodes stand in
    random order.
    """
    graphs = 300
    generator = torch.Generator().manual_seed(0)

    def below(limit: torch.Tensor) -> torch.Tensor:  # random integers, each in 0..limit - 1
        return (torch.rand(len(limit), dtype=torch.float64, generator=generator) * limit).long()

    y = torch.arange(graphs) % 3
    sizes = 10 + below(torch.full((graphs,), 31))
    ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    planted = sizes // 10
    trees = sizes - 5 * planted  # a graph's first nodes are its tree, then come its motifs
    batch = torch.arange(graphs).repeat_interleave(sizes)
    place = torch.arange(len(batch)) - ptr[batch]

    child = ((place > 0) & (place < trees[batch])).nonzero()[:, 0]
    tree = torch.stack([child, ptr[batch[child]] + below(place[child])])  # each node hangs on an earlier one
    chord = torch.arange(graphs).repeat_interleave(trees // 10)
    chords = torch.stack([ptr[chord] + below(trees[chord]) for _ in range(2)])
    host = torch.arange(graphs).repeat_interleave(planted)
    number = torch.arange(len(host)) - (planted.cumsum(0) - planted)[host]
    start = ptr[host] + trees[host] + 5 * number
    shapes = torch.tensor([HOUSE, BOW_TIE, BICLIQUE])  # (3, 6, 2)
    motif = (start[:, None, None] + shapes[y[host]]).reshape(-1, 2).T
    ties = torch.stack([start + below(torch.full_like(start, 5)), ptr[host] + below(trees[host])])

    moved = (batch + torch.rand(len(batch), dtype=torch.float64, generator=generator)).argsort().argsort()
    edges = moved[torch.cat([tree, chords, motif, ties], dim=1)]
    edges = torch.cat([edges, edges.flip(0)], dim=1)[:, (edges[0] != edges[1]).repeat(2)]
    key = torch.unique(edges[1] * len(batch) + edges[0])  # each edge once, sorted by target
    degree = torch.bincount(key // len(batch), minlength=len(batch))
    label = (degree == 1).long()
    label[torch.rand(len(batch), generator=generator) < 0.03] = 2
    return GraphSet(torch.eye(3)[label], torch.stack([key % len(batch), key // len(batch)]), ptr, y)
