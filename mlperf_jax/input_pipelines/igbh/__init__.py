"""IGBH, the graph of the R-GAT benchmark: its folders, its in-edges, the split of its papers, and its neighbour sampler."""
