"""What wrapping and reading cost in memory: ``python -m benchmarks.memory [--quick] [--json]``.

GPT-2-small's shape with random weights, saved once. Each contender opens it in a process of its
own, runs one batch and keeps the residual stream before every layer; the operating system says how
much memory the process ever had (VmHWM) and has now (VmRSS). Beside ours: plain hooks,
TransformerLens asked for the same tensors, and TransformerLens's ``run_with_cache`` of everything.
All must read the same numbers before a ratio is stated.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from benchmarks.patching import SHAPES  # noqa: E402
from benchmarks.rivals import quiet  # noqa: E402
from benchmarks.timing import RESULTS, describe, machine, table, write  # noqa: E402

MIB = 2**20
AGREE = 1e-4
"""Largest relative deviation of the values read, in their standard deviation."""


def memory_now() -> dict[str, int]:
    """``peak`` and ``now``: bytes of this process, as the operating system counts them.

    Where there is no ``/proc`` the peak is that of ``getrusage`` and ``now`` psutil's.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
        return {"peak": int(found["VmHWM"]) * 1024, "now": int(found["VmRSS"]) * 1024}
    except (OSError, KeyError):
        import resource

        import psutil

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"peak": peak, "now": psutil.Process().memory_info().rss}


def forget_peak() -> bool:
    """Let the peak start again from what is held now, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _transformers(folder: str) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder, local_files_only=True).eval()


def _bridge(folder: str) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    module = _transformers(folder)
    module.set_attn_implementation("eager")
    return build_bridge_from_module(
        module, "GPT2LMHeadModel", hf_config=module.config, tokenizer=None, model_name="memory"
    )


def _interp(backend: str) -> Callable[[str], Any]:
    def load(folder: str) -> Any:
        import interp

        return interp.load_model(folder, backend=backend)

    return load


def _read_interp(model: Any, tokens: Any) -> list[Any]:
    import interp

    sites = [interp.Site("resid_pre", layer=n) for n in range(model.shape.n_layers)]
    run = model.run(tokens, read=sites, positions=[-1])
    return [run.reads[s] for s in sites]


def _read_hooks(model: Any, tokens: Any) -> list[Any]:
    found: list[Any] = []
    handles = [
        block.register_forward_pre_hook(lambda m, args: found.append(args[0].clone()))
        for block in model.transformer.h
    ]
    try:
        model(tokens, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _read_filtered(model: Any, tokens: Any) -> Any:
    names = [f"blocks.{n}.hook_resid_pre" for n in range(model.cfg.n_layers)]
    cache = model.run_with_cache(tokens, names_filter=names)[1]
    return [cache[name] for name in names]


def _read_everything(model: Any, tokens: Any) -> Any:
    cache = model.run_with_cache(tokens)[1]
    kept = [cache[f"blocks.{n}.hook_resid_pre"] for n in range(model.cfg.n_layers)]
    return _Held(kept, cache)


class _Held(list):
    """The tensors asked for, with everything else that came along kept alive."""

    def __init__(self, kept: list[Any], cache: Any) -> None:
        super().__init__(kept)
        self.cache = cache


CONTENDERS: dict[str, tuple[Callable[[str], Any], Callable[[Any, Any], Any]]] = {
    "plain hooks": (_transformers, _read_hooks),
    "interp, transformer_lens": (_interp("transformer_lens"), _read_interp),
    "interp, nnsight": (_interp("nnsight"), _read_interp),
    "interp, torch_module": (_interp("torch_module"), _read_interp),
    "transformer_lens, same tensors": (_bridge, _read_filtered),
    "transformer_lens, everything": (_bridge, _read_everything),
}
"""Name -> how it opens the model, how it reads the residual stream before every layer."""

OURS = [name for name in CONTENDERS if name.startswith("interp")]


def child(name: str, folder: str, batch: int, tokens: int, threads: int) -> dict[str, Any]:
    """Measure one contender in this process.

    Returns:
        Bytes: ``weights``; ``opened`` (held more than before opening), ``opening`` (peak of
        that); ``read`` (peak of one batch over what was held before it), ``kept`` (held more
        after it), ``needed`` (the tensors asked for); and ``marks``, a few of the values read.
    """
    torch.set_num_threads(threads)
    load, read = CONTENDERS[name]
    with quiet(), torch.no_grad():
        _warm(load)
        vocab = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(0, vocab, (batch, tokens), generator=generator)
        gc.collect()
        forget_peak()
        before = memory_now()
        model = load(folder)
        opened = memory_now()
        read(model, prompts[:1, :8])  # what a first call allocates once and for all
        gc.collect()
        exact = forget_peak()
        start = memory_now()
        values = read(model, prompts)
        end = memory_now()
    module = model.module() if hasattr(model, "module") and name in OURS else model
    marks = torch.stack([v[0, -1, :8].double() for v in values]).tolist()
    return {
        "weights": sum(p.numel() * p.itemsize for p in module.parameters()),
        "opened": opened["now"] - before["now"], "opening": opened["peak"] - before["now"],
        "read": end["peak"] - start["now"], "kept": end["now"] - start["now"],
        "needed": sum(v.numel() * v.itemsize for v in values),
        "exact": exact, "marks": marks,
    }  # fmt: skip


def _warm(load: Callable[[str], Any]) -> None:
    """Import what the contender needs, so that libraries are not counted as the model's."""
    with tempfile.TemporaryDirectory() as folder:
        save("tiny", folder)
        load(folder)


def save(shape: str, folder: str) -> None:
    """A random GPT-2 of a shape, as a person would have it on disk."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    fields: dict[str, Any] = {**SHAPES[shape], "bos_token_id": 0, "eos_token_id": 0}
    with quiet():
        GPT2LMHeadModel(GPT2Config(**fields)).save_pretrained(folder)


def measure(args: argparse.Namespace, name: str, folder: str) -> dict[str, Any]:
    """Measure one contender in a process of its own."""
    command = [
        sys.executable, "-m", "benchmarks.memory", "--child", name, "--folder", folder,
        "--batch", str(args.batch), "--tokens", str(args.tokens), "--threads", str(args.threads),
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr.strip()[-2000:]}")
    return {"name": name, **json.loads(done.stdout.splitlines()[-1])}


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with ``agrees`` and the ratios to TransformerLens's cache of everything.

    Args:
        rows: of ``measure``; the first is the one that the others are compared with.
    """
    wanted = torch.tensor(rows[0]["marks"])
    by_name = {r["name"]: r for r in rows}
    rival = by_name.get("transformer_lens, everything")
    out = []
    for row in rows:
        error = (torch.tensor(row["marks"]) - wanted).abs().max() / wanted.std()
        row = {**row, "agrees": bool(error < AGREE)}
        fair = row["agrees"] and rival is not None and rival["exact"] and row["exact"]
        row["times_less_than_everything"] = (
            rival["read"] / max(1, row["read"]) if fair and rival is not None else None
        )
        out.append(row)
    return out


def show(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The results as Markdown."""
    head = [
        "contender", "weights", "opened", "peak of opening", "tensors asked for",
        "peak of reading", "kept", "everything ÷ this",
    ]  # fmt: skip

    def mib(value: float) -> str:
        return f"{value / MIB:.0f} MiB"

    body = []
    for r in rows:
        ratio = r["times_less_than_everything"]
        said = "differs" if not r["agrees"] else "–" if ratio is None else f"{ratio:.1f}"
        sizes = (r[k] for k in ("weights", "opened", "opening", "needed", "read", "kept"))
        body.append([r["name"], *map(mib, sizes), said])
    facts = (
        f"{args.batch} prompts × {args.tokens} tokens, float32; the residual stream before every "
        "layer is kept. Opened and read are what the process holds more than before, its peak "
        "included; one small batch is run between them."
    )
    return f"{facts}\n\n{table(head, body)}"


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(prog="interp bench memory", description=__doc__)
    out.add_argument("--shape", choices=SHAPES, default="gpt2")
    out.add_argument("--batch", type=int, default=16)
    out.add_argument("--tokens", type=int, default=256)
    out.add_argument("--threads", type=int, default=2)
    out.add_argument("--only", default="all", help=f"of {'; '.join(CONTENDERS)}; or all")
    out.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    out.add_argument("--quick", action="store_true", help="a tiny shape: seconds")
    out.add_argument("--json", action="store_true", help="print the results as JSON")
    out.add_argument("--child", help=argparse.SUPPRESS)
    out.add_argument("--folder", help=argparse.SUPPRESS)
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, write its results, and return them."""
    args = parser().parse_args(argv)
    if args.child:
        found = child(args.child, args.folder, args.batch, args.tokens, args.threads)
        print(json.dumps(found))
        return found
    if args.quick:
        args.shape = "tiny"
        args.tokens = min(args.tokens, SHAPES["tiny"]["n_positions"])
    names = list(CONTENDERS) if args.only == "all" else args.only.split(";")
    names = [n.strip() for n in names]
    if unknown := sorted(set(names) - set(CONTENDERS)):
        sys.exit(f"Unknown: {', '.join(unknown)}. Known: {'; '.join(CONTENDERS)}; all.")
    facts = machine(torch.device("cpu"))
    facts["threads"] = args.threads
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save(args.shape, folder)
        for name in names:
            rows.append(measure(args, name, folder))
            print(f"{name}: {rows[-1]['read'] / MIB:.0f} MiB", file=sys.stderr, flush=True)
    data = {"machine": facts, "arguments": vars(args), "rows": judged(rows)}
    blocks = [f"# Memory, {args.shape} shape", describe(facts), show(data["rows"], args)]
    text = "\n\n".join(blocks)
    path = write(f"memory-{args.shape}-cpu-float32", data, text, args.out)
    print(f"written: {path}", file=sys.stderr)
    print(json.dumps(data, default=str) if args.json else text)
    return data


if __name__ == "__main__":
    main()
