"""How much room the samples of IGBH get: constants, as shapes never come from the data.

They were measured on a generated graph with a 17th of the papers and authors, all nodes of the small types, and edges by
power laws, as nobody publishes the counts of the real one (`scripts/bench_sampling.py` says how). There a seed brings
fewer different nodes than of the full graph, where samples meet themselves less often. `Igbh.check` says what share
of its room the real graph needs, and what finds no room is counted, in training beside the loss, and in evaluation.

Shape legend: S seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

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

    Of other numbers of seeds, and other fan-outs, it is in proportion: what a hop brings goes by S and by the product of
    the fan-outs so far. Fewer seeds meet fewer nodes twice, so that they need a little more.

    Raises:
        UserError: none was measured for so many hops.
    """
    known = {len(key[1]): key for key in rooms}
    if len(fanouts) not in known:
        raise UserError(
            f"fanouts {list(fanouts)} are {len(fanouts)} hops: room was measured for "
            f"{' or '.join(map(str, known))}"
        )
    key = known[len(fanouts)]
    found, (measured, others) = rooms[key], key
    ratios = (mine / theirs for mine, theirs in zip(fanouts, others, strict=True))
    factors = list(itertools.accumulate(ratios, lambda a, b: a * b, initial=seeds / measured))

    def scaled(counts: tuple[int, ...], factors: Sequence[float]) -> tuple[int, ...]:
        """Each hop's own part times its factor, added up again."""
        parts = np.diff(counts, prepend=0) * np.array(factors)
        return tuple(np.ceil(np.cumsum(parts) - 1e-6).astype(int).tolist())

    return Shape(
        {kind: scaled(found.nodes[kind], factors) for kind in size.nodes},
        {
            relation.key: scaled(found.edges[relation.key], factors[1:])
            for relation in size.relations
        },
    )
