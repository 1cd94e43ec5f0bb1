"""Run by test_verification in Triton's interpreter: the gate's verdict on mutated copies of the package.

python gate_script.py FOLDER; prints a JSON object, name of the mutant -> what the gate raised, null if nothing.
"""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    """A mistake: in ``file``, each ``old`` (which must occur once) becomes ``new``."""

    file: str
    edits: tuple[tuple[str, str], ...]


def mistake(file, *edits):
    return Mutant(file, edits)


SCAN, SIFT, COLLECT, TILES = (f"kernels/{name}.py" for name in ("scan", "sift", "collect", "tiles"))
ATOMIC, REFERENCE = "kernels/atomic.py", "reference.py"
REGIONS, PAIRS = "kernels/regions.py", "kernels/pairs.py"
IMPLEMENTATIONS = {ATOMIC: "atomic", REFERENCE: "reference"}
_IDS = "ids = tl.load(topk_ids_ptr + slots, mask=slots < num_slots, other=-1)"
_CLAMPED = "ids = tl.where(slots < num_slots, tl.minimum(tl.maximum(ids, 0), num_experts - 1), -1)"
_COUNTS = "tl.store(counts_ptr + first + owned, counts, mask=owned < num_owned)"
_WEIGHTS = "tl.load(topk_weights_ptr + slots,"
_OWNED = "num_owned = tl.minimum(EXPERT_BLOCK, num_experts - first)"
#: None of them writes outside its buffers by more than the guards: the process must live.
MUTANTS = {
    "rank-off-by-one": mistake(SCAN, ("(tl.cumsum(ones, axis=1) - ones)", "tl.cumsum(ones, axis=1)")),
    "order-reversed-in-a-row": mistake(SCAN, ("tl.cumsum(ones, axis=1)", "tl.cumsum(ones, axis=1, reverse=True)")),
    "ids-not-dropped": mistake(SCAN, (_IDS, f"{_IDS}\n        {_CLAMPED}")),
    "counts-not-written": mistake(SCAN, (_COUNTS, "pass")),
    "counts-of-the-last-expert-not-written": mistake(
        SCAN, (_COUNTS, _COUNTS.replace("owned < num_owned", "first + owned < num_experts - 1"))
    ),
    "weights-of-slot-0": mistake(SCAN, (_WEIGHTS, _WEIGHTS.replace("slots", "slots * 0"))),
    "last-slot-dropped": mistake(SCAN, (_IDS, _IDS.replace("slots < num_slots", "slots < num_slots - 1"))),
    "one-written-beyond-the-counts": mistake(
        SCAN,
        (
            _COUNTS,
            f"{_COUNTS}\n"
            "    beyond = slot_index_ptr + owned.to(tl.int64) * num_slots + counts\n"
            "    tl.store(beyond, 0, mask=(owned < num_owned) & (counts < num_slots))",
        ),
    ),
    "ids-past-the-end-claimed": mistake(SCAN, (_OWNED, "num_owned = first * 0 + EXPERT_BLOCK")),
    "kernel-raises": mistake(SCAN, (_IDS, "ids = tl.no_such_function(slots)")),
    "sift-forgets-the-hits-of-earlier-warps": mistake(SIFT, ("return inclusive - sums, ", "return inclusive * 0, ")),
    "sift-forgets-the-earlier-hits-of-a-lane": mistake(
        SIFT, ("+ ((placed >> shift) & 15).to(tl.int32)", "+ ((placed >> shift) & 0).to(tl.int32)")
    ),
    "sift-takes-only-the-hits-loaded-ahead": mistake(
        SIFT, ("for _ in tl.range(HITS, rounds):", "for _ in tl.range(HITS, rounds * 0):")
    ),
    "sift-counts-itself-among-many-hits": mistake(
        SIFT, ("tl.cumsum(units, axis=1) - units", "tl.cumsum(units, axis=1)")
    ),
    "collect-reverses-the-hits-of-a-lane": mistake(
        COLLECT, ("tl.cumsum(ones, axis=1) - ones", "tl.cumsum(ones, axis=1, reverse=True) - ones")
    ),
    "collect-counts-itself": mistake(
        COLLECT, ("((tl.cumsum(units, axis=0) - units) >> shift)", "(tl.cumsum(units, axis=0) >> shift)")
    ),
    "collect-places-only-the-first-of-a-long-list": mistake(
        COLLECT, ("for start in tl.range(0, num_hits, LONG):", "for start in tl.range(0, LONG, LONG):")
    ),
    "tiles-keep-their-counts": mistake(
        TILES, ("sums[None, :] + tl.cumsum(counts, axis=0) - counts", "tl.cumsum(counts, axis=0)")
    ),
    "tiles-reverse-a-tile": mistake(
        TILES,
        ("* TILE + in_tile", "* TILE + (TILE - 1 - in_tile)"),
        ("local = (keys % TILE).to(tl.int32)", "local = TILE - 1 - (keys % TILE).to(tl.int32)"),
    ),
    "tiles-forget-the-smaller-experts": mistake(TILES, ("earlier - (counted >> 16)", "earlier")),
    "tiles-ids-not-dropped": mistake(TILES, ("tl.minimum(first + BINS, num_experts)", "first + BINS")),
    "atomic-weights-of-slot-0": mistake(ATOMIC, (_WEIGHTS, _WEIGHTS.replace("slots", "slots * 0"))),
    "atomic-ids-not-dropped": mistake(ATOMIC, (_IDS, f"{_IDS}\n    {_CLAMPED}")),
    "regions-one-too-far": mistake(
        REGIONS, ("tl.store(flat.offsets + experts, starts,", "tl.store(flat.offsets + experts, starts + 1,")
    ),
    "regions-padding-not-written": mistake(REGIONS, ("padding = ranks < sizes[:, None]", "padding = ranks < 0")),
    "regions-tail-not-written": mistake(
        REGIONS, ("tl.store(slots_ptr + places, num_slots, mask=places < flat.capacity)", "pass")
    ),
    "regions-labels-of-the-next-expert": mistake(
        REGIONS, ("labels = experts + flat.FIRST_ID", "labels = experts + flat.FIRST_ID + 1")
    ),
    "regions-of-ids-outside-the-range": mistake(
        REGIONS, ("valid = (ids >= 0) & (ids < num_experts)", "valid = ids >= 0")
    ),
    "regions-start-after-their-own-slots": mistake(
        REGIONS, ("of_slots[column][:, None] < first", "of_slots[column][:, None] <= first")
    ),
    "regions-of-columns-start-after-their-own-slots": mistake(
        REGIONS, ("(of_slots[column] < first + expert)", "(of_slots[column] <= first + expert)")
    ),
    "regions-of-many-slots-not-padded": mistake(REGIONS, ("sizes = _padded(counted, flat).to", "sizes = counted.to")),
    "regions-forget-what-was-counted-before": mistake(REGIONS, ("counts += of_experts", "counts = of_experts")),
    "regions-count-one-too-many": mistake(REGIONS, ("counts += of_experts", "counts += of_experts + 1")),
    "pairs-count-the-slot-itself": mistake(
        PAIRS, ("slots[:, None] < slots[None, :]", "slots[:, None] <= slots[None, :]")
    ),
    "pairs-open-one-block-an-expert": mistake(PAIRS, ("ranks % flat.BLOCK == 0", "ranks == 0")),
    "pairs-forget-full-blocks": mistake(PAIRS, ("smaller + ranks // flat.BLOCK", "smaller")),
    "pairs-place-dropped-slots": mistake(PAIRS, ("tl.where(valid, blocks", "tl.where(slots < num_slots, blocks")),
    "pairs-labels-of-the-next-expert": mistake(PAIRS, ("owners + flat.FIRST_ID", "owners + flat.FIRST_ID + 1")),
    "pairs-last-place-not-written": mistake(
        PAIRS, ("local < flat.capacity - first", "local < flat.capacity - first - 1")
    ),
    "reference-order-reversed": mistake(REFERENCE, (".nonzero().squeeze(1)", ".nonzero().squeeze(1).flip(0)")),
}


def mutate(mutant, folder):
    """Copy the package's source into ``folder``, mistake included."""
    shutil.copytree(ROOT / "src", folder)
    path = folder / "moe_align" / mutant.file
    source = path.read_text()
    for old, new in mutant.edits:
        assert source.count(old) == 1, f"{mutant.file}: expected once, found {source.count(old)} times: {old}"
        source = source.replace(old, new)
    path.write_text(source)


def verdict(mutant, folder):
    """What the gate raises for the package in ``folder``."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "moe_align"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        from asv_bench_gpu.verification import verify

        import moe_align
        from benchmarks import verification

        assert moe_align.__file__.startswith(str(folder))
        # The interpreter is slow: kernels in which there is no mistake are not run.
        wrong, strategy = IMPLEMENTATIONS.get(mutant.file, "deterministic"), Path(mutant.file).stem

        def only_the_mistake(name):
            real = getattr(moe_align, name)

            def align(*arguments, implementation="deterministic", run_config=None, **keywords):
                named = (run_config or {}).get("strategy", "scan")
                flat = mutant.file in (REGIONS, PAIRS) and name != "align_rows"
                if implementation == wrong and (wrong != "deterministic" or named == strategy or flat):
                    return real(*arguments, implementation=implementation, run_config=run_config, **keywords)
                return real(*arguments, implementation="reference", **keywords)

            setattr(moe_align, name, align)

        for name in ("align_rows", "align_blocks", "align_offsets"):
            only_the_mistake(name)
        try:
            verify(verification.comparisons("cpu"))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None
    finally:
        sys.path.remove(str(folder))


def main():
    verdicts = {}
    for number, (name, mutant) in zip(itertools.count(), MUTANTS.items()):
        folder = Path(sys.argv[1], str(number))
        mutate(mutant, folder)
        verdicts[name] = verdict(mutant, folder)
        print(name, verdicts[name], file=sys.stderr, flush=True)
    print(json.dumps(verdicts))


if __name__ == "__main__":
    main()
