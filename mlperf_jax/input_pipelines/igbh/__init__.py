"""IGBH, the heterogeneous graph of papers and what they are connected with."""
