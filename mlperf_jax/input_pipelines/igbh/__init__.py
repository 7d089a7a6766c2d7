"""IGBH, the heterogeneous Illinois Graph Benchmark: its folders, who trains and validates, in-edges by destination."""
