"""Kills one run again and again, anywhere, and asks whether it ends as the run that nobody touched: to the bit.

    python -m tests.training.torture --kills 200
    python -m tests.training.torture --kills 50 --variant bf16 --seed 7     draws the same again; the clock is another

A run is started, killed by SIGKILL, resumed, killed again, until all kills are used up; then it may finish. Importing
torch and Lightning takes seconds, so this process does it once and forks; what is forked runs the real command line.
Half of the kills are aimed at the writing of a checkpoint, at a random byte of it or around its renaming; a third at a
random moment of the clock; the others while data is prepared, curves, samples or the summary are written.
"""

from __future__ import annotations

import argparse
import atexit
import faulthandler
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch

torch.set_num_threads(1)  # before any operation: a process with threads cannot be forked

from gptlab.training import lightning_setup  # noqa: E402

lightning_setup.import_lightning()

from gptlab import train  # noqa: E402 (what a forked run would import)
from gptlab.formats import checkpoint  # noqa: E402
from gptlab.system.errors import UserError  # noqa: E402
from tests.training.dying import Aim, arm, shared_marks, watch  # noqa: E402
from tests.training.runs_compared import differences  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
GPT = ("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16", "model.dropout=0.2")
BIGRAM = ("model=bigram", "model.block_size=16")
VARIANTS = {
    "gpt": GPT,
    "bf16": (*GPT, "precision=bf16"),
    "compiled": (*GPT, "compile.backend=aot_eager"),
    "llama": ("arch=llama", *GPT, "schedule=constant"),
    "bigram": (*BIGRAM, "schedule=constant"),
    "muon": (*GPT, "optim=muon", "schedule=wsd", "trainer.ema=0.9"),
    "bpe": (*GPT, "tokenizer=bpe", "tokenizer.vocab_size=270"),
}
POLICY = (
    "data=chat",
    "task.answer_tokens=6",
    "task.check=3",
    "task.samples=2",
    "reward.name=lexicon",
    "reward.argument=cat",
)
TUNED = {  # which begin with a model that answers
    "sft": ("data=chat",),
    "lora": ("data=chat", "lora.rank=2"),
    "dpo": ("data=chat", "task=dpo", "task.answer_tokens=6", "task.check=3"),
    "ppo": (*POLICY, "task=ppo", "task.updates=2", "trainer.val_every=4"),
    "grpo": (*POLICY, "task=grpo", "task.group=3", "task.kl_coef=0.1"),
}
HARD = (
    *("data=text", "trainer=cpu", "data.batch_size=6", "data.micro_batch_size=2", "data.test_fraction=0.05"),
    *("trainer.val_every=3", "trainer.log_every=1", "trainer.patience=1000", "trainer.diagnose_every=2"),
    *("trainer.sample_tokens=19", "schedule.warmup_steps=2", "trainer.checkpoint_every=2"),
)
PATIENCE = 120  # seconds that a life may take

# What a process was at, by the functions that it was in: the first of these that is found.
DOING = (
    (r"checkpoint\.py|_atomic_save|save_checkpoint", "writing a checkpoint"),
    (r"prepare\.py|corpora\.py|shards\.py|hf_tokenizers\.py", "preparing data"),
    (r"sampling\.py", "sampling"),
    (r"diagnostics\.py", "diagnostics"),
    (r"loggers\.py", "writing curves"),
    (r"evaluation_loop\.py", "validation"),
    (r"in training_step|in backward|in optimizer_step|automatic\.py", "training"),
    (r"training_epoch_loop\.py|fit_loop\.py.* in advance", "between batches"),
)


@dataclass
class Life:
    """One process of the run, from its start to its end."""

    code: int
    """Its exit status; negative: the signal that it died of."""
    started: int
    """The steps that had been made when it began to train; -1: it did not get so far, or it is not known."""
    step: int
    doing: str
    startup: float = 0.0
    """Seconds to its first validation or step."""
    seconds: float = 0.0


class Torture:
    """One run of a variant, in `folder`."""

    def __init__(self, folder: Path, variant: str, kills: int, seed: int, bad_disk: bool, fresh: int) -> None:
        self.folder, self.kills, self.bad_disk = folder, kills, bad_disk
        self.draw = random.Random(f"{seed} {variant}")
        self.run_dir, self.untouched, self.cache_dir = (folder / name for name in ("run", "untouched", "cache"))
        self.lives: list[Life] = []
        self.faults: Counter[str] = Counter()
        self.marks = shared_marks()
        self.max_steps = max(24, 2 * kills)
        text, words = random.Random(0), ["the", "a", "cat", "dog", "king", "queen", "sees", "loves", "old", "night"]
        lines = (" ".join(text.choices(words, k=text.randint(3, 7))) + ".\n" for _ in range(300))
        (folder / "text.txt").write_text("".join(lines))
        self.first: tuple[str, ...] | None = None
        """Makes the model of init_from."""
        file, own = "text.txt", VARIANTS.get(variant, ())
        if variant in TUNED:
            answers, pairs = write_examples(folder, self.draw)
            self.first = (*GPT, *HARD, "data=chat", f"data.path={answers}", "trainer.max_steps=20")
            file, own = (pairs if variant == "dpo" else answers).name, (f"init_from={folder / 'base'}",)
        places = (f"data.path={folder / file}", f"data.cache_dir={self.cache_dir}")
        limits = f"trainer.max_steps={self.max_steps}", f"seed={seed}"
        self.run = (*own, *HARD, *TUNED.get(variant, ()), *places, *limits)
        self.fresh = {self.draw.randrange(kills // 2 or 1) for _ in range(fresh)}  # lives that begin with an import

    # The processes.

    def live(self, arguments: tuple[str, ...], run_dir: Path, aim: Aim, delay: float | None, number: int) -> Life:
        """Run the command line in a process of its own, to its end; `delay` seconds after `aim.after`, kill it."""
        log, stack = self.folder / "log.txt", self.folder / "stack.txt"
        stack.write_text("")
        self.marks.clear()
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # in the child, until it can tell where it is
        child = os.fork()
        if child == 0:
            self._child(arguments, log, stack, run_dir, aim)
        signal.signal(signal.SIGUSR1, before)
        begin = time.monotonic()
        startup = 0.0
        since: float | None = None
        code: int | None = None
        while code is None:
            time.sleep(0.002)
            ended, status = os.waitpid(child, os.WNOHANG)
            now = time.monotonic()
            if not startup and self.marks.step >= 0:
                startup = now - begin
            if ended:
                code = os.waitstatus_to_exitcode(status)
            elif now - begin > PATIENCE:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise Failure(f"a process hung for {PATIENCE} s: {' '.join(arguments)}\n{tail(log)}")
            elif delay is not None:
                if since is None and self.marks.saved >= aim.after:
                    since = now
                if since is not None and now - since >= delay:
                    self._strike(child, number, stack)
                    delay = None
                    if number != signal.SIGKILL:  # and a short grace, as batch systems give
                        delay, number = self.draw.choice([0.02, 0.2, 30.0]), signal.SIGKILL
                        since = now
        doing = self.marks.doing.decode() or self._doing(stack.read_text())
        return Life(code, self.marks.started, self.marks.step, doing, startup, time.monotonic() - begin)

    def _child(self, arguments: tuple[str, ...], log: Path, stack: Path, run_dir: Path, aim: Aim) -> NoReturn:
        os.setsid()
        with log.open("w") as file, Path(os.devnull).open() as nothing:
            for i, each in enumerate((nothing, file, file)):
                os.dup2(each.fileno(), i)
        faulthandler.register(signal.SIGUSR1, stack.open("w"))
        watch(self.marks)
        arm(aim, self.marks, run_dir, self.cache_dir)
        sys.argv = ["gptlab.train", *arguments]
        code: Any = 0
        try:
            train.main()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _strike(self, child: int, number: int, stack: Path) -> None:
        """Ask what the process is at, then send it the signal."""
        os.kill(child, signal.SIGUSR1)
        for _ in range(20):
            if stack.stat().st_size:
                break
            time.sleep(0.0005)
        os.kill(child, number)

    def _doing(self, stack: str) -> str:
        found = next((words for pattern, words in DOING if re.search(pattern, stack)), "")
        if not found:
            return "between batches" if self.marks.started >= 0 else "starting"
        return "mid-accumulation" if found == "training" and self.marks.within else found

    def live_fresh(self, arguments: tuple[str, ...]) -> Life:
        """The same as a process of its own, which imports all anew; killed after a random time."""
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "gptlab.train", *arguments]
        with (self.folder / "log.txt").open("w") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
            before, begin, grown = self.size(), time.monotonic(), 0.0
            delay = self.draw.uniform(0.1, 1.5)
            while process.poll() is None:
                time.sleep(0.01)
                grown = grown or (time.monotonic() if self.size() != before else 0.0)
                if (grown and time.monotonic() - grown > delay) or time.monotonic() - begin > PATIENCE:
                    process.kill()
                    process.wait()
        return Life(process.returncode, -1, -1, "a new Python")

    def size(self) -> int:
        metrics = self.run_dir / "metrics.csv"
        return metrics.stat().st_size if metrics.exists() else -1

    # The plan.

    def arguments(self) -> tuple[str, ...]:
        """The same command again with resume=auto, or the run's folder alone, which must have its config by then."""
        if (self.run_dir / "config.yaml").exists() and self.draw.random() < 0.7:
            return (f"resume={self.run_dir}",)
        return (*self.run, "resume=auto", f"hydra.run.dir={self.run_dir}")

    def plan(self, pace: float, checkpoint_bytes: int) -> tuple[Aim, float | None, int]:
        """Where the next life ends: (place, seconds after it, signal); `pace`: checkpoints that it may save."""
        draw, after = self.draw, 0
        while after <= 2 * pace and draw.random() < pace / (1 + pace):  # geometric, of mean `pace`
            after += 1
        kinds = {
            "clock": 30,
            "checkpoint": 52,
            "curves": 7,
            "samples": 3,
            "data": 3 * self.prepares,
            "start": 2,
            "signal": 6,
        }
        (kind,) = draw.choices(list(kinds), list(kinds.values()))
        aim = Aim(kind, "", 0, after, 0, after + 2)
        if kind in ("clock", "signal"):
            delay = draw.uniform(0, self.interval + (0 if after else self.startup))
            return aim, delay, draw.choice([signal.SIGTERM, signal.SIGINT]) if kind == "signal" else signal.SIGKILL
        if kind == "checkpoint":
            aim.moment = draw.choice(["opened", *["written"] * 5, "closed", "renaming", "renamed", "renamed"])
            aim.size, aim.nth = draw.randrange(checkpoint_bytes), draw.randrange(2)
        elif kind in ("curves", "samples"):
            aim.moment = draw.choice(["opened", "written", "written", "closed", "cut"])
            aim.size, aim.nth = draw.randrange(60), draw.randrange(6 if kind == "curves" else 1)
        elif kind == "data":
            aim.moment = draw.choice(["opened", "written", "closed", "renaming", "renamed"])
            aim.after, aim.size, aim.nth = 0, draw.randrange(200), draw.randrange(3)
            shutil.rmtree(self.cache_dir, ignore_errors=True)
        else:
            aim.moment = draw.choice(["opened", "written", "closed", "renaming", "renamed"])
            aim.after, aim.size = 0, draw.randrange(200)
        return aim, None, 0

    def fault(self) -> None:
        """What else befalls a run between two lives."""
        draw, folder = self.draw, self.run_dir / "checkpoints"
        if draw.random() < 0.08 and self.size() > 0:
            with (self.run_dir / "metrics.csv").open("ab") as file:
                file.write(b"17,306,0.4,2.17"[: draw.randrange(1, 16)])
            self.faults["a torn line in metrics.csv"] += 1
        if draw.random() < 0.05 and folder.is_dir():
            (folder / f".last.ckpt.{draw.randrange(1 << 15)}.tmp").write_bytes(draw.randbytes(draw.randrange(9999)))
            self.faults["a temporary file"] += 1
        if draw.random() < 0.05:
            shutil.rmtree(self.cache_dir, ignore_errors=True)
            self.faults["the prepared data deleted"] += 1
        if self.bad_disk and draw.random() < 0.1 and self.older():
            last = folder / "last.ckpt"
            content = bytearray(last.read_bytes())
            place = draw.randrange(len(content))
            if draw.random() < 0.5:
                content[place] ^= 1 << draw.randrange(8)
                self.faults["a bit flipped in last.ckpt"] += 1
            else:
                del content[place:]
                self.faults["last.ckpt cut short"] += 1
            last.write_bytes(content)

    def older(self) -> bool:
        """Whether there is a sound checkpoint to break, and another, in a file of its own, to fall back on."""
        sound = {}
        for file in [self.run_dir / "checkpoints" / "last.ckpt", *(self.run_dir / "checkpoints").glob("step_*.ckpt")]:
            with suppress(UserError):
                checkpoint.read_checkpoint(file)
                sound[file.name] = file.stat().st_ino
        return "last.ckpt" in sound and len(set(sound.values())) > 1

    # The whole.

    def torture(self) -> None:
        """Make both runs.

        Raises:
            Failure: one ended otherwise than by our hand.
        """
        nothing = Aim("", "", 0, 0, 0, 0)
        for arguments, run_dir in ((self.first, self.folder / "base"), (self.run, self.untouched)):
            if arguments is None:
                continue
            life = self.live((*arguments, f"hydra.run.dir={run_dir}"), run_dir, nothing, None, 0)
            if life.code != 0:
                raise Failure(f"the untouched run failed:\n{tail(self.folder / 'log.txt')}")
        saves, size = self.marks.saved, (self.untouched / "checkpoints" / "last.ckpt").stat().st_size
        self.startup, self.interval = life.startup, (life.seconds - life.startup) / saves
        print(f"untouched: {self.max_steps} steps, {saves} times saved, {size:,} bytes a checkpoint", flush=True)
        self.prepares = self.cache_dir.exists()
        shutil.rmtree(self.cache_dir, ignore_errors=True)
        struck = 0
        reached = 0
        while struck < self.kills:
            left = saves * (1 - reached / self.max_steps)
            pace = max(left / (self.kills - struck) - 0.4, 0.0)  # a kill right after a checkpoint comes on top
            if struck in self.fresh:
                self.fresh.remove(struck)
                life = self.live_fresh(self.arguments())
            else:
                life = self.live(self.arguments(), self.run_dir, *self.plan(pace, size))
            polite = life.code in (143, 130, -signal.SIGTERM, -signal.SIGINT)
            if life.code != -signal.SIGKILL and not polite:
                raise Failure(f"a life ended with {life.code}:\n{tail(self.folder / 'log.txt')}")
            self.lives.append(life)
            struck += not polite
            reached = life.started if life.started >= 0 else reached
            name = "SIGKILL" if not polite else "stopped"
            steps = f"steps {life.started} to {life.step}" if life.started >= 0 else ""
            print(f"{name} {struck:3d} of {self.kills}  {steps:22}  {life.doing}", flush=True)
            self.fault()
        life = self.live(self.arguments(), self.run_dir, nothing, None, 0)
        self.lives.append(life)
        if life.code != 0:
            raise Failure(f"the last life ended with {life.code}:\n{tail(self.folder / 'log.txt')}")

    def lost(self) -> int:
        """The lives whose last steps had to be made again."""
        trained = [life for life in self.lives if life.started >= 0]
        return sum(a.step > b.started for a, b in zip(trained, trained[1:]))  # noqa: B905, RUF007 (3.9 has neither)


def write_examples(folder: Path, draw: random.Random) -> tuple[Path, Path]:
    """Write conversations and preferences; returns their files."""
    animals, verbs = ["cat", "dog", "king"], ["sees", "loves"]
    asked = [(f"the {draw.choice(animals)} {verb} a {animal}", animal) for verb in verbs for animal in animals * 8]
    files = folder / "answers.jsonl", folder / "pairs.jsonl"
    for file, keys in zip(files, (("completion",), ("chosen", "rejected")), strict=True):
        rows = [{"prompt": prompt, **dict(zip(keys, (animal, "king cat"), strict=False))} for prompt, animal in asked]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


class Failure(Exception):
    """A run did not do what it must."""


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def verdict(torture: Torture, seconds: float) -> bool:
    """Print what was done to the run and whether it shows; True: it does not."""
    killed = [life for life in torture.lives if life.code == -signal.SIGKILL]
    kinds = Counter(re.sub(r" \(.*?\)", "", life.doing) for life in killed)
    print("\nkilled while")
    for doing, count in kinds.most_common():
        print(f"  {doing:60} {count:4d} {'█' * count}")
    for fault, count in torture.faults.items():
        print(f"  and between lives: {fault:41} {count:4d} {'█' * count}")
    writing = sum("checkpoint" in life.doing for life in killed)
    stopped = len(torture.lives) - len(killed) - 1
    leftover = list(torture.run_dir.rglob("*.tmp"))
    found = list(islice(differences(torture.untouched, torture.run_dir), 20))
    print(
        f"{len(killed)} kills ({writing} of them while a checkpoint was written), {stopped} polite stops, "
        f"{torture.lost()} lives lost steps, {len(leftover)} temporary files left over, {seconds:.0f} s"
    )
    print("\n".join(["NOT the same run:", *found]) if found else "the same run as the untouched one, to the bit")
    return not found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.training.torture", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--variant", choices=[*VARIANTS, *TUNED], help="by default drawn from the seed")
    parser.add_argument("--seed", type=int, help="of everything that is drawn; by default of the clock")
    parser.add_argument("--fresh", type=int, default=0, help="so many lives begin with a new Python")
    optional = argparse.BooleanOptionalAction
    parser.add_argument("--bad-disk", action=optional, default=True, help="break checkpoints between lives, too")
    parser.add_argument("--keep", action="store_true", help="do not delete the runs")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else time.time_ns() % 100_000
    variant = given.variant or random.Random(seed).choice([*VARIANTS, *TUNED])
    again = f"--kills {given.kills} --variant {variant} --seed {seed}" + " --no-bad-disk" * (not given.bad_disk)
    print(f"python -m tests.training.torture {again}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    torture = Torture(folder, variant, given.kills, seed, given.bad_disk, given.fresh)
    begin = time.monotonic()
    same = False
    try:
        torture.torture()
        same = verdict(torture, time.monotonic() - begin)
    except Failure as failure:
        print(failure)
    finally:
        if same and not given.keep:
            shutil.rmtree(folder)
        else:
            print(f"the runs: {folder}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
