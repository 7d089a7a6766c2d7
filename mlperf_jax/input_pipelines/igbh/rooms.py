"""How much room the samples of IGBH get: constants, as shapes never come from the data.

They were measured on a generated graph with a 17th of the papers and authors, all nodes of the small types, and edges by
power laws, as nobody publishes the counts of the real one (`scripts/bench_sampling.py` says how). There a seed brings
fewer different nodes than of the full graph, where samples meet themselves less often. `Igbh.check` says what share
of its room the real graph needs, and what finds no room is counted, in training beside the loss, and in evaluation.

Shape legend: S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.igbh.sampling_shape import Shape
from mlperf_jax.input_pipelines.igbh.sizes import Size

Rooms = Mapping[tuple[int, tuple[int, ...]], Shape]  # by S and fan-outs

# scripts/bench_sampling.py --shape --papers 16000000 --seeds 512
ROOMS: Rooms = {
    (512, (15, 10, 5)): Shape(
        {
            "paper": (512, 7_288, 100_160, 722_768),
            "author": (0, 1_864, 27_776, 308_264),
            "fos": (0, 2_384, 32_208, 239_208),
            "institute": (0, 0, 904, 8_456),
            "journal": (0, 408, 4_160, 30_880),
            "conference": (0, 104, 736, 3_808),
        },
        {
            "paper__cites__paper": (7_464, 75_184, 533_792),
            "author__rev_written_by__paper": (1_864, 28_136, 321_072),
            "paper__written_by__author": (0, 10_296, 116_840),
            "institute__rev_affiliated_to__author": (0, 1_008, 14_240),
            "author__affiliated_to__institute": (0, 0, 4_488),
            "fos__rev_topic__paper": (2_424, 36_000, 393_920),
            "paper__topic__fos": (0, 23_768, 174_088),
            "journal__rev_published__paper": (416, 4_664, 63_960),
            "paper__published__journal": (0, 4_072, 23_320),
            "conference__rev_venue__paper": (104, 896, 11_184),
            "paper__venue__conference": (0, 968, 4_336),
        },
    ),
}
MEANS: Rooms = {
    (512, (15, 10, 5)): Shape(
        {
            "paper": (512, 6_724, 92_547, 670_800),
            "author": (0, 1_534, 25_451, 285_045),
            "fos": (0, 2_024, 29_610, 225_371),
            "institute": (0, 0, 689, 7_763),
            "journal": (0, 301, 3_689, 29_334),
            "conference": (0, 50, 585, 3_579),
        },
        {
            "paper__cites__paper": (6_949, 69_030, 492_527),
            "author__rev_written_by__paper": (1_534, 25_537, 295_832),
            "paper__written_by__author": (0, 8_470, 105_936),
            "institute__rev_affiliated_to__author": (0, 775, 12_755),
            "author__affiliated_to__institute": (0, 0, 3_446),
            "fos__rev_topic__paper": (2_057, 32_650, 362_748),
            "paper__topic__fos": (0, 20_238, 158_168),
            "journal__rev_published__paper": (304, 4_030, 58_529),
            "paper__published__journal": (0, 3_013, 19_954),
            "conference__rev_venue__paper": (50, 676, 9_784),
            "paper__venue__conference": (0, 497, 3_173),
        },
    ),
}


def of(rooms: Rooms, size: Size, seeds: int, fanouts: tuple[int, ...]) -> Shape:
    """The room for S seeds of a graph of this size, which may lack some types.

    Raises:
        UserError: none was measured for so many seeds with these fan-outs.
    """
    if (seeds, fanouts) not in rooms:
        known = " or ".join(f"{s} with {list(f)}" for s, f in rooms)
        raise UserError(
            f"sample_seeds {seeds} with fanouts {list(fanouts)}: room was measured for {known} alone"
        )
    found, keys = rooms[seeds, fanouts], [relation.key for relation in size.relations]
    return Shape(
        {kind: found.nodes[kind] for kind in size.nodes}, {key: found.edges[key] for key in keys}
    )
