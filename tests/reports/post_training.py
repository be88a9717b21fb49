"""Runs of post-training, as their summaries look: for the tests of reports."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from tests.reports.test_report import fake_run

TEXT = {"name": "prompts", "sha256": "7deb6b2c", "tokenizer": "char", "vocab_size": 70}


def tuned_run(path: Path, task: str, seed: int, summary: dict[str, Any], loss: float = 1.0, **config: Any) -> Path:
    """A finished run of a task; its summary has no bits per byte. `config` is as of `fake_run`."""
    typed = [f"task={task}", *(f"{key.replace('__', '.')}={value}" for key, value in config.items())]
    fake_run(path, loss, seed, summary=summary | {"data": TEXT}, typed=typed, **config)
    content = yaml.safe_load((path / "config.yaml").read_text())
    content["task"] = {"name": task, **content.get("task", {})}
    (path / "config.yaml").write_text(yaml.dump(content, sort_keys=False))
    written = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(
        json.dumps({k: v for k, v in written.items() if k not in ("val/bpb", "val/ppl")})
    )
    return path


def rewarded_run(
    path: Path, task: str, seed: int, kl: float, reward: float, judged: float | None = None, **config: Any
) -> Path:
    """A run that was rewarded, with what it measured on its way; minus the reward is its loss."""
    draw = random.Random(f"{task} {seed} {kl}")
    kl, reward = kl * draw.uniform(0.95, 1.05), reward + draw.gauss(0, 0.008)
    summary: dict[str, Any] = {"test/reward": reward, "test/kl": kl, "test/win_rate": min(0.99, 0.5 + reward)}
    summary |= {"val/reward": reward, "val/kl": kl, "train/loss": -0.02}
    if judged is not None:
        summary["test/judged_reward"] = judged + draw.gauss(0, 0.01)
    tuned_run(path, task, seed, summary, -reward, **config)
    rows = ["step,train/loss,val/loss,val/reward,val/kl,val/judged_reward"]
    for step in range(0, 11):
        now = 0.1 + (reward - 0.1) * (1 - math.exp(-4 * step / 10)) / (1 - math.exp(-4))
        now += draw.gauss(0, 0.005) * (step > 0)
        by = "" if judged is None else judged * (step / 10) ** 0.7
        rows += [f"{step},-0.01,,,,", f"{step},,{-now},{now},{kl * (step / 10) ** 1.5},{by}"]
    (path / "metrics.csv").write_text("\n".join(rows) + "\n")
    return path


def best_of_n(seed: int, most: int = 64) -> list[list[float]]:
    """Rewards that rise with the square root of the KL."""
    draw = random.Random(seed)
    curve, n = [], 1
    while n <= most:
        kl = math.log(n) - (n - 1) / n
        curve.append([n, 0.1 + 0.19 * math.sqrt(kl) + draw.gauss(0, 0.004), kl])
        n *= 2
    return curve


def with_best_of_n(path: Path, rows: Any) -> None:
    change_summary(path, best_of_n=rows)


def change_summary(path: Path, **values: Any) -> None:
    content = json.loads((path / "summary.json").read_text()) | values
    (path / "summary.json").write_text(json.dumps(content))


def lexicon_runs(root: Path, seeds: int = 5, judged: bool = False) -> Path:
    """DPO at two temperatures, PPO and GRPO at different KLs, of which PPO with a small beta has gone too far."""
    for seed in range(seeds):
        for beta, kl, reward in ((0.1, 4.1, 0.47), (0.5, 1.2, 0.31)):
            path = root / f"dpo{beta}-{seed}"
            rewarded_run(path, "dpo", seed, kl, reward, optim__weight_decay=beta)
            with_best_of_n(path, best_of_n(seed))
        for decay, kl, reward, by in ((0.02, 14.0, 0.45, 1.3), (0.2, 6.0, 0.62, 0.8)):
            path = root / f"ppo{decay}-{seed}"
            rewarded_run(path, "ppo", seed, kl, reward, by if judged else None, optim__weight_decay=decay)
            share = 0.8 if judged else 1  # the judge chooses worse than the gold reward itself
            with_best_of_n(path, [[n, share * gold, kl] for n, gold, kl in best_of_n(seed)])
        rewarded_run(root / f"grpo-{seed}", "grpo", seed, 5.0, 0.66, 0.7 if judged else None)
    return root
