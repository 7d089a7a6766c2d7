"""Kills, hangs up, fills the disk and takes stderr away at random instants, and says what was lost: nothing.

python scripts/stress.py --minutes 60                            # every benchmark, every damage
python scripts/stress.py --benchmarks bert rgat --damage kill full
python scripts/stress.py --seed 3 --round 17                     # a round that is told of, once more

A round is one tiny run of a few steps, in processes of its own: a damage is done to it at a random instant, it is
taken up with `--resume`, up to three times, and then brought to its end. It must end with the bits, log lines
and scalars of a run that nobody disturbed; nothing that was on the disk before a damage may be gone after it; exit
codes must be those of docs/resume.md, messages one sentence; and no process, lock or temporary file may stay. All
that is random comes from the seed and the round's number; the clock alone decides the rest.

Exit code 1: something was lost; its folder is kept, and where is said. A disk is filled and a folder made
read-only by mounting, where this user may; it is said where not.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from mlperf_jax import benchmarks
from scripts import damages, forks, losses
from scripts.damages import DAMAGES, Launch, When

RUN_SEED = 7  # of every run: those that are compared are one
MOST = 3  # damages of a round
# of each benchmark: steps that hold two evaluations and some checkpoints, and take seconds
FEW = {
    "resnet": "--eval-every 1 --eval-offset 0 --max-samples 2816 --checkpoint-every 7",
    "unet3d": "--eval-first 32 --eval-every 32 --max-samples 96 --checkpoint-every 3",
    "retinanet": "--max-samples 528 --checkpoint-every 6",
    "gpt3": "--eval-every 64 --max-samples 160 --checkpoint-every 3",
    "llama2_70b_lora": "--eval-every 40 --max-samples 120 --checkpoint-every 4",
    "llama31_405b": "--eval-every 64 --max-samples 160 --checkpoint-every 3",
    "llama31_8b": "--eval-every 64 --max-samples 160 --checkpoint-every 3",
    "bert": "--eval-every 96 --max-samples 320 --checkpoint-every 3",
    "dlrm_dcnv2": "--max-samples 7680 --checkpoint-every 5",
    "stable_diffusion": "--eval-every 128 --max-samples 320 --checkpoint-every 3",
    "rgat": "--max-samples 5120 --checkpoint-every 4",
}
ADVICE = "leave --resume out to begin one"


def main() -> int:
    given = parser().parse_args()
    work = given.work.resolve()
    mounts = damages.may_mount(work / "mounted")
    if not mounts and {"full", "read-only"} & set(given.damage):
        print("no mounts here: file sizes are limited and permissions taken, instead of disks")
    if given.forked:
        forks.prepare(given.benchmarks, work / "cache")
    stress = Stress(given, work, mounts)
    end = time.monotonic() + 60 * given.minutes
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the child too
    numbers = range(given.rounds) if given.round is None else [given.round]
    try:
        for number in numbers:
            if time.monotonic() > end:
                break
            stress.play(number)
    except KeyboardInterrupt:
        print("stopped")
    print(stress.table())
    return int(bool(stress.lost))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    made.add_argument("--minutes", type=float, default=60, help="begin no round after them")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--rounds", type=int, default=10**6, help="at most so many")
    made.add_argument("--round", type=int, help="only the one of this number")
    names = benchmarks.names()
    made.add_argument("--benchmarks", nargs="+", choices=names, default=names, metavar="NAME")
    made.add_argument("--damage", nargs="+", choices=DAMAGES, default=list(DAMAGES))
    forked = "begin processes as forks of this one: half the time, without their first seconds"
    made.add_argument("--forked", action="store_true", help=forked)
    made.add_argument("--work", type=pathlib.Path, help="default: %(default)s")
    made.set_defaults(work=pathlib.Path(tempfile.gettempdir()) / "mlperf_jax_stress")
    return made


@dataclass
class Tally:
    """What came of one damage to one benchmark."""

    rounds: int = 0
    resumed: int = 0
    lost: int = 0


@dataclass(frozen=True)
class Undisturbed:
    """A run that is let alone: its set's folder, and how many seconds, lines, steps and names it takes."""

    folder: pathlib.Path
    all_of_it: dict[str, float]
    step: int


@dataclass
class Round:
    """One run, from its beginning to its end.

    Attributes:
        name: of the benchmark.
        place: a folder of its own: the set's is `disk/set` in it.
        done: what was done to it, for a line of output.
        findings: what was lost.
        removed: whether its folder was: it may begin anew.
        prefixes: what its log may never lose again.
        last: the damage that was done last.
    """

    name: str
    place: pathlib.Path
    rng: random.Random
    done: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    removed: bool = False
    prefixes: list[bytes] = field(default_factory=list)
    last: str = ""

    @property
    def above(self) -> pathlib.Path:
        return self.place / "disk"

    @property
    def folder(self) -> pathlib.Path:
        return self.above / "set"


class Stress:
    """The rounds, and what came of them."""

    def __init__(self, given: argparse.Namespace, work: pathlib.Path, mounts: bool) -> None:
        self.given, self.work, self.mounts = given, work, mounts
        self.tallies = {
            name: {damage: Tally() for damage in given.damage} for name in given.benchmarks
        }
        self.lost = 0
        self._undisturbed: dict[str, Undisturbed] = {}
        self._seconds: dict[str, float] = {}

    # -- runs ----------------------------------------------------------------------------------

    def words(self, round_: Round) -> list[str] | None:
        """The command that brings the run on; None when it is finished."""
        folder = round_.folder
        left = losses.look(folder)
        if left.result is not None:
            return None
        if left.trained:
            return ["evaluate", str(folder)]
        there = folder.is_dir() and any(folder.iterdir())
        return [*self._run(round_.name, folder), *(["--resume"] if there else [])]

    def _run(self, name: str, folder: pathlib.Path) -> list[str]:
        where = ["--tiny", "--data-dir", str(self.work / "data"), "--output", str(folder)]
        how = ["--seed", str(RUN_SEED), "--log-every", "1", "--show", "plain"]
        return ["run", name, *where, *how, *shlex.split(FEW.get(name, ""))]

    def launch(self, words: Sequence[str], round_: Round) -> Launch:
        return self._begin(words, round_, round_.place)

    def _begin(self, words: Sequence[str], round_: Round, place: pathlib.Path) -> Launch:
        return Launch(words, round_.folder, place, self.work / "cache", self.given.forked)

    def limit(self, name: str) -> float:
        """Seconds after which a run hangs: machines may be busy."""
        return 300 + 20 * self._seconds.get(name, 30)

    def undisturbed(self, name: str) -> Undisturbed:
        """The run that others of a benchmark are compared with, made once."""
        if name in self._undisturbed:
            return self._undisturbed[name]
        round_ = Round(name, self.work / "undisturbed" / name, random.Random(0))
        shutil.rmtree(round_.place, ignore_errors=True)
        counts = dict.fromkeys(("second", "line", "step", "name"), 0.0)
        while (words := self.words(round_)) is not None:
            launch = self.launch(words, round_)
            launch.run(1800)
            if launch.code not in losses.ENDS:
                raise SystemExit(f"{name} does not run at all:\n{launch.said()}")
            for what, count in {**launch.watch.counts, "second": launch.seconds}.items():
                counts[what] = max(counts[what], count)
        for finding in losses.rubbish(round_.folder):
            self.tell(f"{name}, undisturbed: {finding}")
        self._seconds[name] = counts["second"]
        found = Undisturbed(round_.folder, counts, losses.look(round_.folder).step or 1)
        self._undisturbed[name] = found
        print(
            f"{name} undisturbed: {counts['second']:.0f} s, {counts['line']:.0f} lines", flush=True
        )
        return found

    # -- rounds --------------------------------------------------------------------------------

    def plan(self, number: int) -> tuple[str, list[str], random.Random]:
        """The benchmark of a round, what is done to it, and what is random in it.

        The first damages of many rounds in a row go through all pairs.
        """
        names, kinds = self.given.benchmarks, self.given.damage
        rng = random.Random(f"{self.given.seed}/{number}")
        name = names[number % len(names)]
        first = kinds[(number % len(names) + number // len(names)) % len(kinds)]
        return name, [first, *rng.choices(kinds, k=rng.randrange(MOST))], rng

    def play(self, number: int) -> None:
        """A round, and a line about it."""
        name, kinds, rng = self.plan(number)
        self.undisturbed(name)
        round_ = Round(name, self.work / "rounds" / str(number), rng)
        shutil.rmtree(round_.place, ignore_errors=True)
        with contextlib.ExitStack() as last_first:
            last_first.enter_context(damages.disk(round_.above, self.mounts and "full" in kinds))
            for kind in kinds:
                before = len(round_.findings)
                self.tallies[name][kind].rounds += 1
                goes_on = self.struck(kind, round_)
                self.tallies[name][kind].lost += len(round_.findings) > before
                if not goes_on:
                    break
            if not round_.findings:
                self.bring_to_an_end(round_)
                self.tallies[name][kind].lost += bool(round_.findings)
            if (
                round_.findings and self.mounts and "full" in kinds
            ):  # the disk goes, the folder stays
                shutil.copytree(round_.above, round_.place / "kept", dirs_exist_ok=True)
        verdict = f"LOST, see {round_.place}" if round_.findings else "nothing lost"
        print(f"round {number} {name}: {'; '.join(round_.done)}; {verdict}", flush=True)
        for finding in round_.findings:
            self.tell(f"--seed {self.given.seed} --round {number}: {finding}")
        if not round_.findings:
            shutil.rmtree(round_.place, ignore_errors=True)

    def tell(self, finding: str) -> None:
        self.lost += 1
        print(f"  {finding}", flush=True)

    def struck(self, kind: str, round_: Round) -> bool:
        """Does one damage to the run; False where it was finished before, or lost something."""
        words = self.words(round_)
        if words is None:
            return False
        damage, when = DAMAGES[kind], When.any(round_.rng)
        whole = self.undisturbed(round_.name)
        begun = losses.look(round_.folder)
        left = 1 - min(1.0, (begun.step or 0) / whole.step)
        launch = self.launch(words, round_)
        scene = damages.Scene(
            launch,
            round_.folder,
            round_.above,
            self.mounts,
            lambda more: self.second([*words, *more], round_),
            round_.rng,
        )
        came, before, found = False, begun, begun
        limit = self.limit(round_.name)
        try:
            came = launch.run(limit, lambda: when.reached(launch, whole.all_of_it, left))
            if came:
                before = losses.look(round_.folder)
                damage.do(scene)
                launch.run(limit)
        except TimeoutError as error:
            round_.findings.append(str(error))
        finally:
            for undo in reversed(scene.undo):
                undo()
        round_.done.append(f"{kind} at {when if came else 'its end'}: {launch.code}")
        expected = losses.ENDS | (damage.codes if came else frozenset())
        if self.moved_away(round_, launch):
            expected, begun, before = expected | {2}, losses.Left(), losses.Left()
        if came and kind == "removed":
            round_.removed, begun, before = True, losses.Left(), losses.Left()
        self.judge(round_, launch, expected, begun, before, found)
        round_.last = kind
        if came and scene.second is not None and {scene.second, launch.code} <= losses.ENDS:
            round_.findings.append("two processes trained the same run")
        return not round_.findings

    def moved_away(self, round_: Round, launch: Launch) -> bool:
        """Follows the advice of a run whose folder was removed, if that is what it says: to move the rest away."""
        told = round_.removed and launch.code == 2 and " away" in launch.said()
        if told and round_.folder.exists():
            number = len(list(round_.place.glob("moved_*")))
            shutil.move(round_.folder, round_.place / f"moved_{number}")
        return told

    def second(self, words: Sequence[str], round_: Round) -> int:
        """The exit code of another process on the same folder."""
        launch = self._begin(words, round_, round_.place / "second")
        launch.run(self.limit(round_.name))
        found = losses.misbehaved(launch.code, launch.said(), losses.ENDS | {2}, losses.Left())
        round_.findings += (f"a second process: {finding}" for finding in found)
        return launch.code

    def judge(
        self,
        round_: Round,
        launch: Launch,
        expected: frozenset[int],
        begun: losses.Left,
        before: losses.Left,
        found_there: losses.Left | None = None,
    ) -> losses.Left:
        """Adds what a process has lost, or said and should not have; keeps its words.

        Args:
            round_, launch, expected: whose, which, and the exit codes it may end with.
            begun: what it must have kept of what there was when it began; nothing, if that was taken away.
            before: the same of the instant before the damage.
            found_there: what there was when it began, if that is something else.
        """
        if round_.last and "--resume" in launch.words and launch.code != 2:
            self.tallies[round_.name][round_.last].resumed += 1
        after = losses.look(round_.folder)
        text = launch.said()
        number = len(list(round_.place.glob("launch_*.txt")))
        about = f"{shlex.join(launch.words)}\nexit code {launch.code}\n{text}"
        (round_.place / f"launch_{number}.txt").write_text(about)
        found = [*losses.misbehaved(launch.code, text, expected, after)]
        found += losses.gone(begun, before, after)
        if "--resume" in launch.words and "resumed" in text:
            found += losses.went_back(found_there or begun, text)
        found += losses.strays(launch.pid)
        if losses.held(round_.folder):
            found.append("its lock outlives its owner")
        round_.findings += found
        round_.prefixes.append(after.log[: after.offset])
        launch.end()
        return after

    def bring_to_an_end(self, round_: Round) -> None:
        """Resumes the run until it is finished, and compares it; nothing is done to it any more."""
        without = False
        for _ in range(5):
            words = self.words(round_)
            if words is None or round_.findings:
                break
            words = [word for word in words if not (without and word == "--resume")]
            begun = losses.look(round_.folder)
            launch = self.launch(words, round_)
            try:
                launch.run(self.limit(round_.name))
            except TimeoutError as error:
                round_.findings.append(str(error))
            text = launch.said()
            refused = launch.code == 2
            without = refused and ADVICE in text
            moved = self.moved_away(round_, launch)
            begun = losses.Left() if moved else begun
            fine = losses.ENDS | ({2} if without or moved else frozenset())
            self.judge(round_, launch, fine, begun, begun)
            round_.done.append(f"{'resumed' if '--resume' in words else words[0]}: {launch.code}")
            self._seconds[round_.name] = max(self._seconds[round_.name], launch.seconds)
        if round_.findings:
            return
        if self.words(round_) is not None:
            round_.findings.append("undecided: neither finished, nor resumed, nor refused")
            return
        round_.findings += losses.differs(round_.folder, self.undisturbed(round_.name).folder)
        round_.findings += losses.rubbish(round_.folder)
        log = losses.look(round_.folder).log
        if not round_.removed and not all(log.startswith(each) for each in round_.prefixes):
            round_.findings.append("lines of the log that were kept are others at the end")

    # -- the table -----------------------------------------------------------------------------

    def table(self) -> str:
        """Benchmark by damage: rounds, how many of them were resumed, how many lost something."""
        return "\n".join(self._rows())

    def _rows(self) -> Iterator[str]:
        kinds = self.given.damage
        yield f"\n{'rounds/resumed/lost':20}" + "".join(f"{kind:>11}" for kind in kinds)
        for name, row in self.tallies.items():
            cells = (f"{t.rounds}/{t.resumed}/{t.lost}" for t in row.values())
            yield f"{name:20}" + "".join(f"{cell:>11}" for cell in cells)
        lost = f"{self.lost} losses" if self.lost else "nothing"
        yield f"\nseed {self.given.seed}: lost {lost}"


if __name__ == "__main__":
    sys.exit(main())
